"""The Python interface: groups, prune, measure, search, load."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from autoprune import config
from autoprune.errors import InputError, ModelError, PlanError
from autoprune.exporting.load import load
from autoprune.group import Group
from autoprune.measuring.measure import measure as _measure
from autoprune.plan import Choice, Plan
from autoprune.pruning.evidence import Evidence
from autoprune.pruning.importance import Importance
from autoprune.pruning.proof import discover
from autoprune.pruning.pruned import apply
from autoprune.pruning.repair import repair as repaired
from autoprune.score import Candidate, Score
from autoprune.searching import records, results
from autoprune.searching.listener import Listener
from autoprune.searching.search import Result
from autoprune.searching.search import search as _search
from autoprune.space import Options, Space, uniform
from autoprune.study import Study
from autoprune.target import Target
from autoprune.task import Batch, Inputs, Recipe, Task, default_adapter
from autoprune.training import data as training_data
from autoprune.training import losses, tasks

__all__ = ["SearchResult", "groups", "load", "measure", "prune", "search"]


class Groups(tuple[Group, ...]):
    """The groups of a model; printed, it is a table with the refused ones and the reason."""

    def __str__(self) -> str:
        rows = [f"{'group':40} {'units':>7}  layers"]
        for group in self:
            what = f"refused: {group.refusal}" if group.refusal else ", ".join(group.layers)
            rows.append(f"{group.key:40} {group.size:7}  {what}")
        return "\n".join(rows)

    __repr__ = __str__


def groups(model: nn.Module, inputs: Any) -> Groups:
    """What one decision can act on: groups of coupled units and the weights of single layers, refusals with reasons.

    `inputs`: a tensor, a tuple of arguments or a dictionary of keyword arguments, batch first. `model` is untouched.
    Raises ModelError where its forward fails on them.
    """
    return Groups(discover(model, Inputs.of(inputs)).groups)


def prune(
    model: nn.Module,
    inputs: Any,
    plan: float | Plan | Mapping[str, Mapping[str, Any]],
    *,
    criterion: str = "l1",
    batches: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | str | None = None,
    adapter: Callable[[Any], Batch] = default_adapter,
    multiple_of: int = 1,
    repair: bool = False,
) -> nn.Module:
    """A smaller copy of `model`; `model` is untouched.

    `plan`: a ratio, the share of units removed from every group (structured, neuron and heads pruning); a Plan; or
    `{pattern on layer names: {"technique": ..., "ratio": ..., "criterion": ...}}`. Criteria that need gradients take
    them from `batches` and `loss`, those that need activations from `batches`. `repair` solves the cut layers anew by
    least squares on `batches` (He et al. 2017, arXiv:1707.06168): for a model that is not trained afterwards; one that
    is trains better from the weights as cut. Raises PlanError, with the reasons, where nothing can be cut; InputError
    for what does not fit.
    """
    if repair and batches is None:
        raise InputError("repair needs batches of data: give batches=")
    coupling = discover(model, Inputs.of(inputs))
    given = None if batches is None else lambda: (adapter(batch) for batch in batches)
    importance = Importance(model, coupling, Evidence(model, given, None if loss is None else losses.resolve(loss)))
    if not isinstance(plan, Plan):
        plan = _plan(coupling.groups, plan, criterion, multiple_of, importance)
    pruned = apply(model, coupling, plan, importance)
    if repair and given is not None:
        return repaired(pruned.finish(), model, pruned.cuts, given(), ridge=0.1)
    return pruned.finish()


def _plan(
    found: Sequence[Group],
    given: float | Mapping[str, Mapping[str, Any]],
    criterion: str,
    multiple_of: int,
    importance: Importance,
) -> Plan:
    if not isinstance(given, Mapping):
        if isinstance(given, bool) or not 0 < given < 1:
            raise PlanError(f"the ratio is the share removed, between 0 and 1; got {given!r}")
        units = [group for group in found if group.level == "units"]
        space = Space(Options(("structured", "neuron", "heads"), (0.0, 0.999), (criterion,)))
        if all(group.refusal for group in units):
            reasons = (
                "; ".join(f"{group.name}: {group.refusal}" for group in units) or "it has no layer whose units could go"
            )
            raise PlanError(f"nothing can be cut in this model: {reasons}")
        return uniform(space.resolve(found, multiple_of), ("structured", "neuron", "heads"), given)
    if not given:
        raise PlanError(
            "the plan names no layer, so nothing would be cut; give {pattern: {technique, ratio, criterion}}"
        )
    choices: dict[str, Choice] = {}
    for pattern, choice in given.items():
        known = {"technique", "ratio", "criterion", "multiple_of"}
        if not isinstance(choice, Mapping) or set(choice) - known or not {"technique", "ratio"} <= set(choice):
            raise PlanError(
                f"{pattern!r} needs technique and ratio, and may have criterion and multiple_of; got {choice!r}"
            )
        ratio = choice["ratio"]
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
            raise PlanError(f"{pattern!r}: the ratio is the share removed, in [0, 1); got {ratio!r}")
        technique = str(choice["technique"])
        step = choice.get("multiple_of", multiple_of)
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise PlanError(f"{pattern!r}: multiple_of is a whole number of at least 1; got {step!r}")
        options = Options((technique,), (0.0, 0.999), (str(choice.get("criterion", criterion)),), step)
        nothing = Options((), (0.0, 0.0), ())
        variables = Space(nothing, {pattern: options}).resolve(found, multiple_of, importance.refuses)
        fresh = uniform(variables, (technique,), float(ratio)).choices
        taken = set(fresh) & set(choices)
        if taken:
            raise PlanError(f"{pattern!r} and an earlier pattern both decide {', '.join(sorted(taken))}")
        choices |= fresh
    return Plan(choices)


def measure(
    model: nn.Module,
    inputs: Any,
    target: str | Mapping[str, Any] | Target = "cpu_onnxruntime",
    against: nn.Module | None = None,
    *,
    processes: int = 0,
) -> Score:
    """FLOPs, parameters, size and latency of `model` on `target`; the latency ratio to `against`, interleaved.

    With `processes` in so many fresh processes, the interval then taken over them. `target`: a bundled name, a YAML
    file, a mapping.
    """
    return _measure(model, Inputs.of(inputs), config.target(target), against, processes=processes)


@dataclass(frozen=True)
class Best:
    """The chosen candidate: its trial, plan and score, and its model."""

    candidate: Candidate
    model: nn.Module

    @property
    def plan(self) -> Plan:
        """What was done to each group."""
        return self.candidate.plan

    @property
    def score(self) -> Score:
        """Every figure of it."""
        return self.candidate.score


@dataclass(frozen=True)
class SearchResult:
    """What `search` found. `front` is Pareto-optimal in the study's objectives, `best` the best inside the budget."""

    study: Study
    result: Result
    dense_model: nn.Module

    def __str__(self) -> str:
        """One line for dense and for each candidate of the front."""
        chosen = None if self.result.best is None else self.result.best.number
        lines = [f"search {self.study.name!r}: {self.study.budget}; {self.run}"]
        for each in self.front:
            score = each.score
            ratio = "" if score.latency_ratio is None else f", latency {score.latency_ratio:.1%} of dense"
            mark = " best" if each.number == chosen else "" if each.feasible else " over budget"
            quality = f"{self.study.task.metric.name} {score.metric:.4g}"
            lines.append(
                f"  trial {each.number}{mark}: {quality}{ratio}, {score.params} parameters, {score.flops} FLOPs"
            )
        return "\n".join(lines)

    __repr__ = __str__

    @property
    def dense(self) -> Score:
        """Score of the dense model."""
        return self.result.dense

    @property
    def front(self) -> list[Candidate]:
        """The Pareto front, dense model included."""
        return self.result.front

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.result.run.folder

    @property
    def best(self) -> Best:
        """The best inside the budget, with its model.

        Raises ModelError where the search was interrupted before there was one.
        """
        if self.result.best is None:
            raise ModelError("the search was interrupted before a plan met the budget; call it again to go on")
        return Best(self.result.best, self.model(self.result.best.number))

    def model(self, trial: int) -> nn.Module:
        """The trained model of a trial on the front."""
        return records.kept_model(self.result.run, trial, self.dense_model)

    def export(self, out: str | Path, trial: int | None = None) -> Path:
        """Write the best, or another trial of the front, to a folder in every format of the study, and verify it."""
        number = self.best.candidate.number if trial is None else trial
        results.export_from(self.study, self.result.run, Path(out), number)
        return Path(out)


def search(
    model: nn.Module,
    *,
    train: Any,
    validation: Any,
    test: Any = None,
    loss: Callable[[Any, Any], Tensor] | str = "cross_entropy",
    metric: str | Callable[[Any, Any], float] = "accuracy",
    goal: Literal["maximize", "minimize"] | None = None,
    adapter: Callable[[Any], Batch] | None = None,
    target: str | Mapping[str, Any] | Target = "cpu_onnxruntime",
    budget: Mapping[str, object] | None = None,
    space: Mapping[str, Any] | None = None,
    trials: int = 40,
    seed: int = 0,
    objectives: Iterable[str] = ("metric", "latency"),
    recovery: Mapping[str, Any] | None = None,
    formats: Iterable[str] = ("safetensors", "onnx", "program"),
    timeout: str | None = None,
    out: str | Path = "runs/study",
    listener: Listener | None = None,
) -> SearchResult:
    """Search the best pruned version of a trained `model` inside `budget` on `target`; continues the run in `out`.

    `train`, `validation`, `test`: data sets of `(inputs, target)` or of dictionaries with labels, or data loaders.
    `metric`: a built-in name or `function(outputs, targets) -> float` over a whole split. `space`, `recovery` as in a
    study's YAML. `model` is untouched.
    Raises BudgetError where no plan meets the budget, InputError for what does not fit.
    """
    mapping: dict[str, Any] = {
        "name": Path(out).name,
        "budget": dict({"latency": "50%"} if budget is None else budget),
        "target": target.to_json() if isinstance(target, Target) else target,
        "search": {
            "trials": trials,
            "seed": seed,
            "objectives": list(objectives),
            **({"timeout": timeout} if timeout else {}),
        },
        "recovery": dict(recovery or {"distill": 0.5}),
        "export": {"formats": list(formats)},
    } | ({"space": dict(space)} if space else {})
    read = config.from_mapping(mapping)
    resolved_loss = losses.resolve(loss)
    given = metric if isinstance(metric, str) else {"name": getattr(metric, "__name__", "metric"), "function": metric}
    if goal is not None:
        given = {"name": given, "goal": goal} if isinstance(given, str) else given | {"goal": goal}
    kept = copy.deepcopy(model).to("cpu").eval()
    task = Task(
        build=lambda: copy.deepcopy(kept),
        data=training_data.checked({"train": train, "validation": validation, "test": test}),
        loss=resolved_loss,
        metric=tasks.metric(given, resolved_loss),
        training=Recipe(**read.resolved()["recovery"]),
        adapter=adapter or default_adapter,
        given=kept,
        description={"model": "python"},
    )
    study = config.build(read, task)
    run = config.open_run(read.resolved(), Path(out))
    return SearchResult(study, _search(study, run, listener), kept)
