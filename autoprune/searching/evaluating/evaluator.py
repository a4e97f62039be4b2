"""One plan -> Candidate: the cheapest check first, stop at the first broken limit, train what is
left."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from autoprune.budget import Feasibility
from autoprune.errors import TrainingError
from autoprune.plan import Plan
from autoprune.pruning.pruner import Pruned, Pruner
from autoprune.quantities import needs_run
from autoprune.score import Candidate, Score
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating.origin import fewer
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.evaluating.recovery import Recovery
from autoprune.study import Study
from autoprune.task import Task
from autoprune.training.batches import sample
from autoprune.training.loop import Quality, evaluate

__all__ = ["PROCESSES", "Evaluated", "Evaluator", "decide"]

# Fresh processes that the latency of finalists is measured in: from one to the next addresses and
# caches lie otherwise, which calls inside one process never show
PROCESSES, _MORE = 5, 15

_BLUR = 0.03  # of the budget: what the model that ships may leave of it
# Inputs of training and of validation data, that untrained plans are judged on: a second a plan,
# and a loss over so many tells plans apart that a metric does not
_JUDGED = 1000


def decide(measured: Callable[[int], Score], feasibility: Feasibility) -> Score:
    """What is measured in fresh processes; in more of them where the first leave open whether the
    budget is kept."""
    score = measured(PROCESSES)
    open_still = not feasibility.fits(score) and feasibility.fits(score.at_middle())
    return measured(_MORE) if open_still else score


@dataclass(frozen=True)
class Evaluated:
    """A candidate, and its trained model where it went all the way."""

    candidate: Candidate
    model: nn.Module | None = None


@dataclass(frozen=True)
class Evaluator:
    """What every evaluation needs: the study, the prepared and trained dense model with its score,
    what makes models of plans."""

    study: Study
    prepared: Prepared
    dense: Score
    pruner: Pruner
    listener: Listener

    def __call__(self, plan: Plan, number: int, shallower: Pruned | None = None) -> Evaluated:
        """Judge a plan; see `Recovery.recover`. A training that breaks down is a failed candidate,
        not an error."""
        study, listener = self.study, self.listener
        pruned = self.pruner.apply(plan)
        listener.on_step(number, "counting")
        score = self.prepared.costs.score(pruned)
        if any(map(needs_run, study.search.objectives)) or not self.feasibility.reasons(score):
            listener.on_step(number, f"measuring on {study.target.name}")
            score = self._measure_latency(pruned, score)
        if reasons := self.feasibility.reasons(score):
            stage = "latency" if score.latency.ms is not None else "cost"
            return self._judge_infeasible(plan, number, pruned, score, stage, "; ".join(reasons))
        listener.on_step(number, f"training {study.recovery.epochs} epochs")
        try:
            done = self.recovery.recover(plan, number, shallower)
        except TrainingError as error:
            return Evaluated(Candidate(number, plan, score, False, "failed", str(error)))
        model, quality = done.model, done.score
        nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
        score = score.evolve(
            metric=quality.metric,
            metric_error=quality.metric_error,
            loss=quality.loss,
            weights=quality.weights,
            nonzero_params=nonzero,
        )
        score = self.prepared.costs.with_stored_size(model, pruned, score)
        return replace(self.judge_known(plan, number, score), model=model)

    @functools.cached_property
    def feasibility(self) -> Feasibility:
        """The budget, held against scores."""
        return self.study.feasibility(self.dense)

    @functools.cached_property
    def recovery(self) -> Recovery:
        """How plans get their quality back."""
        return Recovery(self.study, self.pruner, self.prepared.inputs, self.listener)

    def _measure_latency(self, pruned: Pruned, score: Score) -> Score:
        """With the latency; a finalist's, which was chosen by a brief look at it, from fresh
        processes.

        Where neither a limit nor an objective rests on it, from this one: what ships is measured
        again in any case.
        """
        latency = functools.partial(self.prepared.costs.latency, pruned, score)
        asked = {
            *self.study.search.objectives,
            *(limit.quantity for limit in self.study.budget.limits),
        }
        if self.study.search.finalists is None or not any(map(needs_run, asked)):
            return latency()
        score = decide(lambda processes: latency(processes=processes), self.feasibility)
        return latency(processes=_MORE) if self._is_blurred(score) else score

    def _is_blurred(self, score: Score) -> bool:
        """Whether an interval takes more of the budget than may be left of it: in more processes it
        is narrower."""
        used, middle = map(self.feasibility.violation, (score, score.at_middle()))
        return used - middle > _BLUR and middle < -_BLUR

    def finalist(self, plan: Plan, number: int) -> Score:
        """What a plan costs, as it is before it is trained: what is limited in fresh processes."""
        pruned = self.pruner.apply(plan)
        score = self.prepared.costs.score(pruned)
        if not any(needs_run(limit.quantity) for limit in self.study.budget.limits):
            return score
        self.listener.on_step(number, f"measuring on {self.study.target.name}")
        return self._measure_latency(pruned, score)

    def screen(self, plan: Plan, number: int) -> Evaluated:
        """Judge a plan without training it: its costs, a first look at its latency, and its quality
        when repaired.

        Among plans of equal latency the quality after a least-squares repair ranks as training
        does, for a second each. The loss is the mean over training and validation data, each at its
        best temperature: it tells plans apart that a metric does not, and a confidence that the
        repair has put off does not count.
        """
        listener = self.listener
        pruned = self.pruner.apply(plan)
        listener.on_step(number, f"measuring on {self.study.target.name}")
        score = self.prepared.costs.latency(pruned, self.prepared.costs.score(pruned), brief=True)
        listener.on_step(number, "evaluating it without fine-tuning")
        try:
            quality = self.judge_untrained(plan)
        except TrainingError as error:
            return Evaluated(Candidate(number, plan, score, False, "failed", str(error)))
        score = score.evolve(metric=quality.metric, loss=quality.loss)
        broken = self.feasibility.reasons(score.judged("screened"))
        return Evaluated(
            Candidate(number, plan, score, False, "screened", "; ".join(broken) or None)
        )

    def judge_untrained(self, plan: Plan) -> Quality:
        """The quality of a plan's model when repaired; of the empty plan that of the dense model on
        the same inputs."""
        model = self.recovery.untrained_model(plan)
        device = self.study.recovery.device
        seen, unseen = (
            evaluate(model, task, "validation", device, tempered=True) for task in self._samples
        )
        return Quality(unseen.metric, (seen.loss + unseen.loss) / 2)

    @functools.cached_property
    def _samples(self) -> tuple[Task, Task]:
        """The task with a part of its training data to be judged on, and with a part of its
        validation data."""
        task = self.study.task
        parts = (
            sample(data, fewer(self.prepared.inputs, _JUDGED))
            for data in (task.data.train, task.data.validation)
        )
        seen, unseen = (replace(task, data=replace(task.data, validation=part)) for part in parts)
        return seen, unseen

    def judge_known(self, plan: Plan, number: int, score: Score) -> Evaluated:
        """A plan that is trained, with the score that it came to; where that was before, its model
        was kept then."""
        broken = self.feasibility.reasons(score)
        return Evaluated(
            Candidate(number, plan, score, not broken, "trained", "; ".join(broken) or None)
        )

    def _judge_infeasible(
        self, plan: Plan, number: int, pruned: Pruned, score: Score, stage: str, reason: str
    ) -> Evaluated:
        """A plan outside the budget, with the quality it really has untrained: samplers see
        completed trials only.

        In fp32, whatever the target's dtype: it only tells samplers which way is better.
        """
        self.listener.on_step(number, "evaluating it without fine-tuning")
        try:
            quality = evaluate(
                self.recovery.untrained_model(plan, repair=False),
                self.study.task,
                "validation",
                self.study.recovery.device,
            )
        except TrainingError as error:
            return Evaluated(Candidate(number, plan, score, False, "failed", f"{reason}; {error}"))
        return Evaluated(
            Candidate(
                number,
                plan,
                score.evolve(metric=quality.metric, loss=quality.loss),
                False,
                stage,
                reason,
            )
        )

    def baseline(self) -> Evaluated:
        """Trial 0: the dense model itself."""
        broken = self.feasibility.reasons(self.dense)
        candidate = Candidate(
            0,
            Plan(),
            self.dense.evolve(test_metric=None),
            not broken,
            "dense",
            "; ".join(broken) or None,
        )
        return Evaluated(candidate, copy.deepcopy(self.prepared.model))
