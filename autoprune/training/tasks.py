"""The task's section of a study -> Task: every reference resolved, every failure a StudyError that
names its key."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from autoprune import plugins
from autoprune.errors import StudyError, nearest
from autoprune.task import Batch, Metric, Recipe, Task, default_adapter
from autoprune.training import data, losses
from autoprune.training.references import call_factory, name_errors, resolve, sources, split
from autoprune.training.weights import load_weights

__all__ = ["build", "load_weights", "metric", "model", "recipe"]


def recipe(training: Mapping[str, Any]) -> Recipe:
    """How a study's `task.training` says that the dense model is trained; whether it is stands in
    the task."""
    return Recipe(**{key: value for key, value in training.items() if key != "baseline"})


def build(section: Mapping[str, Any], folders: Sequence[Path], recipe: Recipe) -> Task:
    """The task that a study's `task:` mapping describes; relative paths and users' modules are
    looked for in `folders`.

    `section` has model and data (a reference, or `{name: reference, args: {...}}`), and optionally
    weights, loss, metric and adapter. The data is loaded and its first batch adapted; the model is
    built when `Task.build` is called. Raises StudyError, and MissingPackage.
    """
    loss = _loss(section.get("loss") or "cross_entropy", folders)
    given_metric = section.get("metric") or "accuracy"
    task = Task(
        build=model(section.get("model"), folders),
        loss=loss,
        metric=metric(given_metric, loss, folders),
        adapter=_adapter(section.get("adapter"), folders),
        data=data.build(section.get("data"), folders),
        training=recipe,
        weights=_weights(section.get("weights"), folders),
        description=dict(section),
        baseline=(section.get("training") or {}).get("baseline", "auto"),
    )
    _try_batch(task)
    function = given_metric.get("function") if isinstance(given_metric, Mapping) else None
    used = [split(section[key], f"task.{key}")[0] for key in ("model", "data")]
    used += [
        name
        for name in (section.get("loss"), section.get("adapter"), function)
        if isinstance(name, str)
    ]
    return replace(task, sources=sources(used, folders))


def metric(
    given: str | Mapping[str, Any], loss: losses.Loss, folders: Sequence[Path] = ()
) -> Metric:
    """A built-in metric by name, or `{name, goal, function}`; function: (outputs, targets) ->
    float, or a reference.

    `loss` is what the metric named `loss` computes. Raises StudyError.
    """
    goals: dict[str, Goal] = plugins.import_reference("autoprune.zoo.metrics:GOALS")
    options: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
    name, function, goal = options.get("name"), options.get("function"), options.get("goal")
    if goal not in (None, "maximize", "minimize"):
        raise StudyError(f"goal must be maximize or minimize, got {goal!r}", key="task.metric.goal")
    if function is not None:
        if isinstance(function, str):
            function = resolve(None, function, folders, "task.metric.function")
        if not callable(function):
            raise StudyError(
                f"needs a function (outputs, targets) -> number, got {function!r}",
                key="task.metric.function",
            )
        if goal is None:
            raise StudyError(
                f"a metric of your own needs its goal: maximize or minimize; metric {name!r} has "
                "none",
                key="task.metric.goal",
            )
        return Metric(str(name or getattr(function, "__name__", "metric")), function, goal)
    if name not in goals:
        raise StudyError(
            f"unknown metric {name!r}{nearest(str(name), goals)}; known: {', '.join(goals)}; or "
            "give "
            '{name: ..., function: "my_module:function", goal: maximize or minimize}',
            key="task.metric.name",
        )
    if goal not in (None, goals[name]):
        raise StudyError(
            f"{name} is better the {_DIRECTION[goals[name]]}: its goal is {goals[name]}",
            key="task.metric.goal",
        )
    known = (
        _LossMetric(loss)
        if name == "loss"
        else plugins.import_reference(f"autoprune.zoo.metrics:{name}")
    )
    return Metric(str(name), known, goals[name])


Goal = Literal["maximize", "minimize"]
_DIRECTION = {"maximize": "higher", "minimize": "lower"}


class _LossMetric:
    """The task's own loss over a whole split, as a metric."""

    def __init__(self, loss: losses.Loss) -> None:
        self.loss = loss

    def __call__(self, outputs: Any, targets: Any) -> float:
        return float(self.loss(outputs, targets))


def model(given: object, folders: Sequence[Path]) -> Callable[[], nn.Module]:
    """A function that builds the module; the reference is resolved now, so that a wrong one fails
    early."""
    key = "task.model"
    reference, args = split(given, key)
    prefix, _, name = reference.partition(":")
    if prefix == "torchvision":
        factory = _torchvision_model(name)
        # without them, detection and segmentation models fetch a trained backbone
        own = inspect.signature(factory).parameters
        args = (
            {"weights": None}
            | ({"weights_backbone": None} if "weights_backbone" in own else {})
            | args
        )
    else:
        factory = resolve("model", reference, folders, key)

    def make() -> nn.Module:
        made = call_factory(factory, args, reference, key)
        if not isinstance(made, nn.Module):
            raise StudyError(
                f"{reference!r} must return a torch.nn.Module, it returned a {type(made).__name__}",
                key=key,
            )
        return made

    return make


def _torchvision_model(name: str) -> Any:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise StudyError(
            f"torchvision has no model {name!r}{nearest(name, known)}", key="task.model"
        )
    return models.get_model_builder(name)


def _loss(given: str, folders: Sequence[Path]) -> losses.Loss:
    with name_errors("task.loss", str(given)):
        return losses.resolve(given, folders)


def _adapter(given: str | None, folders: Sequence[Path]) -> Callable[[Any], Batch]:
    if given is None:
        return default_adapter
    adapter: Callable[[Any], Batch] = resolve(None, given, folders, "task.adapter")
    if not callable(adapter):
        raise StudyError(
            f"needs a function (batch) -> (args, kwargs, target), {given!r} is a "
            f"{type(adapter).__name__}",
            key="task.adapter",
        )
    return adapter


def _weights(given: str | None, folders: Sequence[Path]) -> Path | None:
    if given is None:
        return None
    path = data.relative(given, folders)
    if not path.is_file():
        raise StudyError(f"no weights file {str(path)!r}", key="task.weights")
    return path


def _try_batch(task: Task) -> None:
    """Load and adapt one batch, so that data of a wrong shape is refused before anything is
    trained."""
    key = "task.data" if task.adapter is default_adapter else "task.adapter"
    small = replace(
        task,
        training=replace(task.training, workers=0, batch_size=min(2, task.training.batch_size)),
    )
    with name_errors(key, "the first training batch"):
        batch = next(small.batches("train"), None)
    if batch is None:
        raise StudyError("the train data is empty", key="task.data")
    if not (
        isinstance(batch, tuple)
        and len(batch) == 3
        and isinstance(batch[0], tuple)
        and isinstance(batch[1], dict)
    ):
        raise StudyError(
            "the adapter must return (tuple of arguments, dictionary of keyword arguments, target)",
            key=key,
        )
