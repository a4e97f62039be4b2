"""The Python interface: groups, prune, measure, search, load."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from autoprune import arguments, config, faults, plans
from autoprune.errors import InputError
from autoprune.exporting.load import load
from autoprune.group import Group
from autoprune.measuring.measure import measure as _measure
from autoprune.outcome import SearchResult
from autoprune.plan import Plan
from autoprune.pruning.calibration import Statistics
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.pruning.reconstruction.reconstruct import Reference
from autoprune.score import Score
from autoprune.searching.callback import Listener
from autoprune.searching.search import search as _search
from autoprune.target import Target
from autoprune.task import Batch, Data, Inputs, Recipe, Task, default_adapter
from autoprune.training import data as training_data
from autoprune.training import losses, tasks

__all__ = ["SearchResult", "groups", "load", "measure", "prune", "search"]


class Groups(tuple[Group, ...]):
    """The groups of a model; printed, it is a table with the refused ones and the reason, and
    `note`.

    `note` says what of the model is not followed: what runs in training alone, where its forward
    fails in that mode.
    """

    note: str | None = None

    def __str__(self) -> str:
        rows = [f"{'group':40} {'units':>7}  layers"]
        for group in self:
            what = f"refused: {group.refusal}" if group.refusal else ", ".join(group.layers)
            rows.append(f"{group.key:40} {group.size:7}  {what}")
        return "\n".join([*rows, self.note] if self.note else rows)

    __repr__ = __str__


def groups(model: nn.Module, inputs: Any) -> Groups:
    """What one decision can act on: groups of coupled units and the weights of single layers,
    refusals with reasons.

    `inputs`: a tensor, a tuple of arguments or a dictionary of keyword arguments, batch first.
    `model` is untouched. Raises ModelError where its forward fails on them.
    """
    with faults.boundary():
        coupling = _discover(arguments.module(model, inputs), inputs)
    listed = Groups(coupling.groups)
    listed.note = coupling.unfollowed
    return listed


def _discover(model: nn.Module, inputs: Any) -> Coupling:
    """The verified groups; warns where training cannot be followed."""
    coupling = discover(model, Inputs.of(inputs))
    if coupling.unfollowed:
        warnings.warn(coupling.unfollowed, stacklevel=3)
    return coupling


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

    `plan`: a ratio, the share of units removed from every group (structured, neuron and heads
    pruning; never depth or masks); a Plan; or `{pattern on layer names: {"technique": ..., "ratio":
    ..., "criterion": ...}}`. Criteria that need gradients take them from `batches` and `loss`,
    those that need activations from `batches`. Widths of at least twice `multiple_of` are rounded
    to it. `repair` reconstructs the cut layers by least squares on `batches` (He et al. 2017,
    arXiv:1707.06168) and keeps what a fifth of these, held out, speaks for. It wants some hundred
    inputs; training afterwards starts better from it than from the weights as cut. Warns of groups
    left uncut, and of shares more than 0.1 from what was asked. Raises PlanError, with the reasons,
    where nothing can be cut; InputError for what does not fit.
    """
    with faults.boundary():
        arguments.module(model, inputs)
        arguments.text(criterion, "criterion", "l1")
        arguments.whole(multiple_of, "multiple_of")
        given = arguments.batches(batches, adapter)
        if repair and given is None:
            raise InputError(
                "repair (layers reconstructed by least squares) needs batches of data: give "
                "batches="
            )
        scored = (
            None
            if loss is None
            else losses.resolve(arguments.callable_(loss, "loss", or_name=True))
        )
        coupling = _discover(model, inputs)
        importance = Importance(model, coupling, Statistics(model, given, scored))
        request = plans.resolve_request(plan, coupling.groups, importance, criterion, multiple_of)
        pruner = Pruner(model, coupling, importance)
        pruned = pruner.apply(request.plan, gradual=repair)
        if repair and given:
            pruned.fill(functools.partial(Reference(model, given()).repair, ridge=0.1))
        smaller = pruned.finish()
        request.tell(smaller, pruner)
        return smaller


def measure(
    model: nn.Module,
    inputs: Any,
    target: str | Mapping[str, Any] | Target = "cpu_onnxruntime",
    against: nn.Module | None = None,
    *,
    processes: int = 0,
) -> Score:
    """FLOPs, parameters, size and latency of `model` on `target`; the latency ratio to `against`,
    interleaved.

    With `processes` in so many fresh processes, the interval then taken over them. `target`: a
    bundled name, a YAML file, a mapping.
    """
    with faults.boundary():
        arguments.module(model, inputs, cut=False)
        with arguments.name_errors():
            where = config.target(target)
        return _measure(model, Inputs.of(inputs), where, against, processes=processes)


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
    trials: int = 200,
    finalists: int | Literal["all"] = 4,
    seed: int = 0,
    objectives: Iterable[str] = ("metric", "latency"),
    recovery: Mapping[str, Any] | None = None,
    formats: Iterable[str] = ("safetensors", "onnx", "program"),
    timeout: str | None = None,
    out: str | Path = "runs/study",
    listener: Listener | None = None,
) -> SearchResult:
    """Search the best pruned version of a trained `model` inside `budget` on `target`; continues
    the run in `out`.

    `train`, `validation`, `test`: data sets of `(inputs, target)` or of dictionaries with labels,
    or data loaders. `metric`: a built-in name or `function(outputs, targets) -> float` over a whole
    split. `space`, `recovery` as in a study's YAML. `trials` plans are evaluated without
    fine-tuning, the best `finalists` of them trained; "all": every plan inside the budget is
    trained. `model` is untouched. Raises BudgetError where no plan meets the budget, InputError for
    what does not fit.
    """
    asked = {
        "trials": trials,
        "finalists": finalists,
        "seed": seed,
        "objectives": arguments.as_list(objectives, "objectives"),
    }
    values: dict[str, Any] = {
        "name": Path(out).name,
        "budget": arguments.mapping({"latency": "50%"} if budget is None else budget, "budget"),
        "target": target.in_study() if isinstance(target, Target) else target,
        "search": asked | ({"timeout": timeout} if timeout else {}),
        "recovery": arguments.mapping(recovery or {"distill": 0.5}, "recovery"),
        "export": {"formats": arguments.as_list(formats, "formats")},
    } | ({"space": arguments.mapping(space, "space")} if space else {})
    kept = copy.deepcopy(arguments.module(model)).to("cpu").eval()
    with arguments.name_errors():
        read = config.from_mapping(values)
        data = training_data.check_data({"train": train, "validation": validation, "test": test})
        study = config.build(
            read, _task(kept, data, loss, metric, goal, adapter or default_adapter, read)
        )
        return SearchResult(
            study, _search(study, config.open_run(read.resolved(), Path(out)), listener), kept
        )


def _name(given: Any) -> str:
    """What a function is known by: a run is not gone on with under another."""
    if isinstance(given, str):
        return given
    if isinstance(given, functools.partial):
        return f"{_name(given.func)} {given.args} {given.keywords}"
    if not hasattr(given, "__qualname__"):
        plain = {
            key: value
            for key, value in sorted(vars(given).items())
            if isinstance(value, (bool, int, float, str))
        }
        return f"{_name(type(given))} {plain}" if given is not None else ""
    return f"{given.__module__}.{given.__qualname__}"


def _task(
    model: nn.Module,
    data: Data,
    loss: Callable[[Any, Any], Tensor] | str,
    metric: str | Callable[[Any, Any], float],
    goal: str | None,
    adapter: Callable[[Any], Batch],
    read: config.Config,
) -> Task:
    """The task of a study whose model and data are given in Python."""
    resolved_loss = losses.resolve(arguments.callable_(loss, "loss", or_name=True))
    given: Any = metric
    if not isinstance(metric, str):
        given = {"name": getattr(metric, "__name__", "metric"), "function": metric}
    if goal is not None:
        given = ({"name": given} if isinstance(given, str) else given) | {"goal": goal}
    return Task(
        build=lambda: copy.deepcopy(model),
        data=data,
        loss=resolved_loss,
        metric=tasks.metric(given, resolved_loss),
        training=Recipe(**read.resolved()["recovery"]),
        adapter=arguments.callable_(adapter, "adapter"),
        given=model,
        description={"model": "python"}
        | {
            "metric": given
            if isinstance(given, str)
            else {**given, "function": _name(given.get("function"))}
        }
        | {"loss": _name(loss), "adapter": _name(adapter)},
    )
