"""Subject: what `autoprune measure` was given, as a module with its inputs and its target."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune import config
from autoprune.errors import InputError, ModelError
from autoprune.exporting import artefact, recorded
from autoprune.reading.references import check_reference
from autoprune.target import Target
from autoprune.task import Inputs
from autoprune.training import tasks

__all__ = ["Subject", "of", "parse_input"]


@dataclass(frozen=True)
class Subject:
    """A module in eval mode on the CPU, the inputs of one call, and where it is to be measured."""

    name: str
    model: nn.Module
    inputs: Inputs
    target: Target


def of(given: str, shape: str | None = None, target: str | None = None) -> Subject:
    """The subject that `given` names.

    `package.module:factory`, `zoo:name` or `torchvision:name` (there 1x3x224x224 is the input unless `shape` says
    another); a folder, of an artefact or of a run that has one (this runs the factory that it names); or a study.
    Raises InputError.
    """
    inputs = None if shape is None else parse_input(shape)
    where = None if target is None else config.target(target)
    if Path(given).is_dir():
        subject = _recorded(Path(given))
    elif ":" in given and not Path(given).exists():
        subject = _factory(given, inputs)
    else:
        subject = _study(given)
    where = where or subject.target
    if inputs is not None:
        where = replace(where, batch=inputs.batch_size)
    model = subject.model.cpu().eval()
    if inputs is not None:
        _try(model, inputs, str(shape))
    return Subject(subject.name, model, inputs or subject.inputs, where)


def _try(model: nn.Module, inputs: Inputs, shape: str) -> None:
    """Raise InputError where the model does not run on the inputs that were asked for."""
    try:
        with torch.no_grad():
            inputs.call(model)
    except Exception as error:  # whatever the user's forward raises
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the model does not run on --input {shape} ({said}); needed: the batch first, as in 1x3x224x224, "
            "and a comma only between several inputs"
        ) from error


def parse_input(shape: str) -> Inputs:
    """Random numbers of the shape `1x3x224x224`; `1x128:int64` gives zeros, as embeddings take them.

    Several inputs are joined by commas. Raises InputError.
    """
    return Inputs(tuple(_tensor(part.strip()) for part in shape.split(",")))


def _tensor(shape: str) -> Tensor:
    match = re.fullmatch(r"([1-9][0-9]*(?:x[1-9][0-9]*)*)(?::(float32|int64))?", shape)
    if match is None:
        raise InputError(f"--input needs a shape with the batch first, as in 1x3x224x224 or 1x128:int64; got {shape!r}")
    sizes = [int(size) for size in match[1].split("x")]
    if match[2] == "int64":
        return torch.zeros(sizes, dtype=torch.int64)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def _factory(reference: str, inputs: Inputs | None) -> Subject:
    folders = (Path.cwd(),)
    check_reference(reference, folders, "model")
    if inputs is None and not reference.startswith("torchvision:"):
        raise InputError(f"{reference!r} does not say what it takes; give its input's shape, as in --input 1x3x224x224")
    model = tasks.model(reference, folders)()
    return Subject(reference, model, inputs or parse_input("1x3x224x224"), Target())


def _recorded(folder: Path) -> Subject:
    path = folder / "best" if (folder / "best").is_dir() else folder
    found = recorded.Recorded(artefact.require(path))
    with _readable(path):
        return Subject(path.name, found.model, found.reference[0].rows(found.target.batch), found.target)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn what a broken record raises into a ModelError."""
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: its records are broken: {artefact.brief(error)}") from error
    except (recorded.Skipped, recorded.NotHere) as error:
        raise InputError(f"the model of {folder} cannot be built here: {error.__cause__ or error}") from error


def _study(given: str) -> Subject:
    read = config.read(given)
    with read.locating():
        study = config.build(read)
        return Subject(study.name, study.task.build(), study.task.calibration(study.target.batch), study.target)
