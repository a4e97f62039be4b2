"""Checks of a study that fits the schema: what it names is there, its parts make sense together. No
torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from autoprune import quantities
from autoprune.budget import Limit
from autoprune.reading.recorded import RECORDED
from autoprune.reading.references import check_plugin, check_reference
from autoprune.reading.schema import Options, StudySchema, TaskSchema
from autoprune.reading.yaml_lines import Document, KeyPath

__all__ = ["check"]


def check(values: StudySchema, document: Document, folders: Sequence[Path]) -> None:
    """Check limits, plug-ins, modules, files and packages; `folders` are where the study's own are
    looked for.

    Raises StudyError with file, key and line; MissingPackage.
    """
    _check_budget(values, document, folders)
    _check_space(values, document, folders)
    _check_recovery(values, document)
    if values.target.runtime != RECORDED:
        with document.placing(("target", "runtime")):
            check_plugin("runtime", values.target.runtime, folders)
    if values.search.executor != "inline":
        with document.placing(("search", "executor")):
            check_plugin("executor", values.search.executor, folders)
    for name in values.export.formats:
        with document.placing(("export", "formats")):
            check_plugin("format", name, folders)
    if values.task is not None:
        _check_task(values.task, document, folders)


def _check_budget(values: StudySchema, document: Document, folders: Sequence[Path]) -> None:
    for quantity, given in values.budget.items():
        with document.placing(("budget", quantity)):
            quantities.find([quantity], folders)
            Limit.parse(quantity, given)
    with document.placing(("search", "objectives")):
        quantities.find(values.search.objectives, folders)
    objectives, costs = set(values.search.objectives), set(values.budget) - {"metric_drop"}
    shown = ", ".join(values.search.objectives)
    if not costs and not objectives - {"metric", "loss"}:
        raise document.error(
            f"with {shown} the only objective and no limit on any cost, the dense model is the "
            "answer; give a budget, "
            "as in budget: {latency: 50%}, or a cost among the objectives",
            ("search", "objectives"),
        )
    if not objectives & {"metric", "loss"} and "metric_drop" not in values.budget:
        raise document.error(
            f"with {shown} alone nothing keeps the quality; add metric to the objectives, or "
            "metric_drop to the budget",
            ("search", "objectives"),
        )


def _check_recovery(values: StudySchema, document: Document) -> None:
    """Each cut but the last is trained for epochs // (iterations + 1): none of them may be left
    without."""
    epochs, iterations = values.recovery.epochs, values.recovery.iterations
    if 1 < iterations > epochs - 1:
        raise document.error(
            f"{iterations} iterations of cutting and training need at least {iterations + 1} "
            "epochs, "
            f"recovery.epochs is {epochs}; raise that, or write iterations: 1",
            ("recovery", "iterations"),
        )


def _check_space(values: StudySchema, document: Document, folders: Sequence[Path]) -> None:
    space = values.space
    sections: dict[KeyPath, Options] = {("space", "default"): space.default}
    sections |= {("space", "layers", pattern): options for pattern, options in space.layers.items()}
    for path, options in sections.items():
        for name in options.techniques or ():
            with document.placing((*path, "techniques")):
                check_plugin("technique", name, folders)
        for name in options.criteria or ():
            with document.placing((*path, "criteria")):
                check_plugin("criterion", name, folders)
    if space.default.techniques == [] and not any(
        options.techniques for options in space.layers.values()
    ):
        raise document.error(
            "no technique is allowed anywhere, so nothing could be pruned",
            ("space", "default", "techniques"),
        )


def _check_task(task: TaskSchema, document: Document, folders: Sequence[Path]) -> None:
    with document.placing(("task", "model")):
        check_reference(task.model.name, folders, "model")
    if ":" in task.data.name or not _exists(task.data.name, folders, directory=True):
        with document.placing(("task", "data")):
            check_reference(task.data.name, folders, "dataset")
    named = {
        ("loss",): task.loss if ":" in task.loss else None,
        ("adapter",): task.adapter,
        ("metric", "function"): task.metric.function,
    }
    for path, reference in named.items():
        if reference is not None:
            with document.placing(("task", *path)):
                check_reference(reference, folders)
    if task.weights is not None and not _exists(task.weights, folders, directory=False):
        places = ", ".join(str(folder) for folder in folders)
        raise document.error(
            f"there is no weights file {task.weights!r}; looked in {places}", ("task", "weights")
        )


def _exists(name: str, folders: Sequence[Path], *, directory: bool) -> bool:
    """Whether a file or directory is at a path as it is, or under one of `folders`."""
    paths = [folder / Path(name).expanduser() for folder in folders]
    return any(os.path.isdir(path) if directory else os.path.isfile(path) for path in paths)
