"""Everything that can be known before anything is trained: groups, decisions, dense cost, lowest
reachable cost."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from autoprune import faults
from autoprune.errors import BudgetError, ModelError, StudyError, TrainingError
from autoprune.plan import Plan
from autoprune.pruning.calibration import Statistics
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruned, Pruner
from autoprune.run import Run
from autoprune.score import Score
from autoprune.searching.callback import CLOSING_S, FRESH_S, Listener, Quiet
from autoprune.searching.evaluating.costs import Costs
from autoprune.searching.evaluating.origin import origin
from autoprune.space import Variable, uniform
from autoprune.study import Study
from autoprune.task import Batch, Inputs
from autoprune.training import losses
from autoprune.training.loop import train
from autoprune.training.placement import with_seed
from autoprune.training.weights import load_weights

__all__ = ["Prepared", "draw_batches", "importance", "out_of_reach", "prepare", "require_reachable"]

# Enough of timing steps of training, one at least: it is for an estimate that is shown as a range
_TIMING_S = 0.5
# About what precedes the first trial: the profile of the target, which ends by itself
_OPENING_S = 30.0


@dataclass(frozen=True)
class Prepared:
    """The dense model with its weights as far as they were given, and what pruning it can come to.

    `trained` says that it is taken as it is, `origin` why. `smallest` is the cost of the
    most-pruned plan. `epoch_s` is what one training epoch of the dense model takes.
    """

    model: nn.Module
    trained: bool
    inputs: Inputs
    coupling: Coupling
    variables: list[Variable]
    costs: Costs
    dense: Score
    smallest: Score
    epoch_s: float
    origin: str = ""

    def cut_by_magnitude(self, plan: Plan) -> Pruned:
        """The plan applied for its costs alone, ranked by weight magnitude."""
        plain = Plan(
            {key: type(choice)(choice.technique, choice.ratio, "l1") for key, choice in plan}
        )
        weights = Importance(self.model, self.coupling)
        return Pruner(self.model, self.coupling, weights).apply(plain)

    def pruner(self, study: Study) -> Pruner:
        """What makes models of plans, ranked by what the study's data shows of the model as it is
        now."""
        return Pruner(self.model, self.coupling, importance(study, self.model, self.coupling))

    def cost(self, plan: Plan) -> Score:
        """FLOPs, parameters, size and measured latency of a plan."""
        pruned = self.cut_by_magnitude(plan)
        return self.costs.latency(pruned, self.costs.score(pruned))

    def training_s(self, study: Study) -> float:
        """What training one plan takes, at half of the dense model's cost."""
        return 0.5 * self.epoch_s * study.recovery.epochs * (1.3 if study.recovery.distill else 1.0)

    def baseline_s(self, study: Study, trained: bool = False) -> float:
        """What training the dense model takes, where it is not `trained` yet."""
        return 0.0 if self.trained or trained else self.epoch_s * study.task.training.epochs

    def seconds(self, study: Study, trials: int | None = None, trained: bool = False) -> float:
        """Estimate of the search, or of the `trials` left: the dense model's training unless
        `trained`, a second or so for each trial, the training of the finalists (without them of
        half of the trials) at half cost, the profile of the target, the export.
        """
        trials = max(0, study.search.trials if trials is None else trials)
        baseline = self.baseline_s(study, trained)
        finalists = trials if study.search.finalists is None else study.search.finalists
        whole = (
            baseline
            + 1.2 * trials
            + (self.training_s(study) + FRESH_S) * finalists
            + _OPENING_S
            + CLOSING_S
        )
        limit = study.search.timeout_s
        return whole if limit is None else min(whole, max(baseline + CLOSING_S, limit))


def prepare(study: Study, run: Run | None = None, listener: Listener | None = None) -> Prepared:
    """Build the dense model, find and prove its groups, resolve the space, measure the dense and
    the most-pruned cost.

    Raises ModelError, StudyError where model and study do not fit; nothing is trained.
    """
    if study.task.given is not None:
        model = copy.deepcopy(study.task.given)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(study.search.seed)
            with faults.code("building the model"):
                model = study.task.build()
        if study.task.weights is not None:
            try:
                load_weights(model, study.task.weights)
            except ModelError as error:
                raise StudyError(str(error), key="task.weights") from error
    model.to("cpu").eval()
    listener = listener or Quiet()
    listener.on_step(0, "verifying the groups of units")
    inputs = study.task.calibration(max(2, study.target.batch))
    coupling = discover(model, inputs)
    refuses = importance(study, model, coupling, batches=1).refuses
    variables = study.space.resolve(coupling.groups, study.target.multiple_of, refuses)
    costs = Costs(study, model, coupling, inputs, run)
    begun = origin(study, model, inputs)
    seconds = _epoch_seconds(study, model)
    prepared = Prepared(
        model,
        begun.ready,
        inputs,
        coupling,
        variables,
        costs,
        Score(),
        Score(),
        seconds,
        begun.text,
    )
    offered = [name for variable in variables for name in variable.options.techniques]
    listener.on_step(0, f"measuring the dense and the smallest model on {study.target.name}")
    smallest = uniform(variables, ("weight", "sparse", *offered), 1.0)
    return Prepared(
        **vars(prepared) | {"dense": prepared.cost(Plan()), "smallest": prepared.cost(smallest)}
    )


def importance(
    study: Study, model: nn.Module, coupling: Coupling, batches: int | None = None
) -> Importance:
    """Importance on `model` as it is now; what criteria see of it on a few training batches is
    gathered when needed.

    One of the `batches` is enough to know what has a gradient or an input at all.
    """
    loss = functools.partial(losses.of_split, study.task.loss, split="train")
    return Importance(
        model,
        coupling,
        Statistics(model, lambda: itertools.islice(draw_batches(study), batches), loss),
    )


def draw_batches(study: Study) -> Iterator[Batch]:
    """Training batches, the same for the same seed, of a loader that shuffles by the global state
    too."""
    with with_seed(study.search.seed, torch.device("cpu")):
        yield from study.task.batches("train", seed=study.search.seed)


def require_reachable(study: Study, prepared: Prepared) -> None:
    """Raise BudgetError where even the most-pruned plan breaks the budget, before anything is
    trained."""
    broken = out_of_reach(study, prepared)
    if broken:
        raise BudgetError(
            "no plan can meet the budget: the most-pruned plan of this space still has "
            f"{'; '.join(broken)}. "
            f"Raise the limit above that, widen space.default.ratio, or allow more techniques"
        )


def out_of_reach(study: Study, prepared: Prepared) -> list[str]:
    """The limits that even the most-pruned plan breaks, a phrase each."""
    return study.feasibility(prepared.dense).reasons(prepared.smallest)


def _epoch_seconds(study: Study, model: nn.Module, steps: int = 3) -> float:
    """What an epoch of training takes, by timing a few steps on a copy."""

    class Enough(Exception):
        pass

    times: list[float] = []

    def report(progress: float) -> None:
        times.append(time.monotonic())
        if len(times) > steps or times[-1] - times[0] > _TIMING_S:
            raise Enough

    # A training that breaks down is told of when it is due
    with contextlib.suppress(Enough, TrainingError):
        recipe = replace(study.task.training, epochs=steps + 1, distill=0.0)
        train(copy.deepcopy(model), study.task, recipe, seed=0, report=report)
    count = study.task.steps("train")
    return (times[-1] - times[0]) / (len(times) - 1) * count if len(times) > 1 else 0.0
