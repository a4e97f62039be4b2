"""Rebuild the torch module of an artefact: the dense module, cut to the recorded widths, with the
recorded weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import InputError, ModelError, PlanError, StudyError, brief
from autoprune.exporting import artefact
from autoprune.exporting import lowered as lowering
from autoprune.files import read_mapping
from autoprune.formats.safetensors import Safetensors
from autoprune.pruning.surgery.architecture import Architecture
from autoprune.training import tasks
from autoprune.training.references import split

__all__ = ["load", "rebuild", "search_folders"]


Given = nn.Module | Callable[[], nn.Module]


def load(
    folder: Path | str, model: Given | None = None, trust: bool = False, lowered: bool | None = None
) -> nn.Module:
    """The pruned module that `folder` holds, on the CPU and in eval mode.

    The dense module comes from `model` (a module, which is left untouched, or a function that
    builds it), else from the study's factory: one of `zoo:` or `torchvision:` at once, any other
    only with `trust=True`, because that runs code which the artefact names. Nothing is ever
    unpickled.

    Where the artefact was made for the runtime `eager_sparse` and has layers that run faster there
    without their zeros, they come as such, for inference only; `lowered=False` gives dense layers,
    to train or export, `lowered=True` insists. Raises InputError where the folder is no artefact or
    the dense module cannot be had, ModelError where records or weights are broken or do not fit it.
    """
    path = artefact.require(folder)
    # Building draws initial weights, which are overwritten
    with torch.random.fork_rng(devices=[]):
        dense = _dense(path, model, trust)
    try:
        _, architecture = artefact.read_plan(path)
    except ValueError as problem:
        raise ModelError(f"{path}: {problem}") from problem
    return lowering.apply_lowering(path, rebuild(path, dense, architecture), lowered)


def rebuild(folder: Path, dense: nn.Module, architecture: Architecture) -> nn.Module:
    """A copy of `dense` cut to `architecture`, with the artefact's weights. Raises ModelError where
    they do not fit."""
    try:
        model = architecture.build(dense)
    except PlanError as problem:
        raise ModelError(
            f"{folder / artefact.PLAN} does not fit the dense model: {problem}"
        ) from problem
    Safetensors.fill(model, folder / artefact.WEIGHTS)
    return model.cpu().eval()


def search_folders(folder: Path, study: Mapping[str, Any]) -> tuple[Path, ...]:
    """Where the study's own modules are looked for: its recorded folder, then the current one,
    never the artefact."""
    recorded = [Path(study["folder"])] if isinstance(study.get("folder"), str) else []
    return tuple(
        place
        for place in (*recorded, Path.cwd())
        if place.is_dir() and place.resolve() != folder.resolve()
    )


def _dense(folder: Path, model: Given | None, trust: bool) -> nn.Module:
    if model is None:
        return _from_study(folder, trust)
    built = model if isinstance(model, nn.Module) else model() if callable(model) else model
    if not isinstance(built, nn.Module):
        raise InputError(
            "model= must be a torch module or a function that builds one, it is a "
            f"{type(built).__name__}"
        )
    return built


def _from_study(folder: Path, trust: bool) -> nn.Module:
    try:
        study = read_mapping(folder / artefact.STUDY)
        section: Mapping[str, Any] = study["task"]
        reference, args = split(section["model"], "task.model")
    except (StudyError, ValueError, KeyError, TypeError) as problem:
        what = f"{folder / artefact.STUDY} is broken: {brief(problem)}"
        raise ModelError(f"{what}; give the dense module: load(folder, model=...)") from problem
    if reference == "python":
        raise InputError(
            f"the model of {folder} was given in Python; give it again: load(folder, model=MyNet())"
        )
    danger = None if trust else _danger(reference, args)
    if danger:
        raise InputError(
            f"the model of {folder} is built by {reference!r}, which {danger}; give the dense "
            "module, "
            "load(folder, model=...), or trust it, load(folder, trust=True)"
        )
    return tasks.model(section["model"], search_folders(folder, study))()


def _danger(reference: str, args: Mapping[str, Any]) -> str | None:
    """What building this model would do that `load` does not do unasked."""
    # `zoo:mine:build` would be imported too
    if not re.fullmatch(r"(zoo|torchvision):\w+", reference):
        return "is neither zoo: nor torchvision: and would run code of its own"
    if reference.startswith("torchvision:") and (
        args.get("weights") or args.get("weights_backbone")
    ):
        return "would download pretrained weights and unpickle them"
    return None
