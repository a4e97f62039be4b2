"""Subject: what `autoprune measure` was given, as a module with its inputs and its target."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import config
from autoprune.errors import InputError, ModelError, brief
from autoprune.exporting import artefact, recorded
from autoprune.exporting.trust import require_trust
from autoprune.measuring.measure import measure
from autoprune.measuring.profiling.per_layer import Breakdown, breakdown
from autoprune.reading.references import check_reference
from autoprune.score import Score
from autoprune.target import Target
from autoprune.task import Inputs
from autoprune.training import tasks

__all__ = ["Measured", "Subject", "every", "measure_subject", "of", "parse_input"]

# That the latency is measured in: `measure` is asked by hand, and three show whether they agree
_PROCESSES = 3


@dataclass(frozen=True)
class Subject:
    """A module in eval mode on the CPU, the inputs of one call, and where it is to be measured."""

    name: str
    model: nn.Module
    inputs: Inputs
    target: Target

    def on(self, target: str, batch: int | None = None) -> Subject:
        """The same model for another target, by name or file; `batch`: instead of that target's.
        Raises StudyError."""
        where = config.target(target)
        return replace(self, target=where if batch is None else replace(where, batch=batch))


def every(
    given: Sequence[str], shape: str | None = None, targets: Sequence[str] = (), trust: bool = False
) -> Iterator[Subject]:
    """Each subject that is given, on each of `targets`, or on its own; a model is built once.
    Raises as `of`."""
    for name in given:
        subject = of(name, shape, trust=trust)
        batch = subject.inputs.batch_size if shape is not None else None
        yield from (subject.on(target, batch) for target in targets) if targets else (subject,)


@dataclass(frozen=True)
class Measured:
    """A subject on its target, what it costs there, and by layer where that was asked for."""

    name: str
    target: Target
    score: Score
    layers: Breakdown | None

    @property
    def title(self) -> str:
        """As `resnet18 on cpu_onnxruntime`."""
        return f"{self.name} on {self.target.name}"

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every figure."""
        layers = {"layers": None, "note": None} if self.layers is None else self.layers.to_json()
        return {
            "model": self.name,
            "target": self.target.to_json(),
            "score": self.score.to_json(),
            "layers": layers["layers"],
            "layers_note": layers["note"],
        }


def measure_subject(subject: Subject, by_layer: bool = True) -> Measured:
    """Every cost of a subject, the latency in fresh processes. Raises ModelError, InputError."""
    score = measure(subject.model, subject.inputs, subject.target, processes=_PROCESSES)
    layers = breakdown(subject.model, subject.inputs, subject.target) if by_layer else None
    return Measured(subject.name, subject.target, score, layers)


def of(
    given: str, shape: str | None = None, target: str | None = None, trust: bool = False
) -> Subject:
    """The subject that `given` names.

    `package.module:factory`, `zoo:name` or `torchvision:name` (there 1x3x224x224 is the input
    unless `shape` says another); a folder, of an artefact or of a run that has one (with `trust`,
    code of its own that it names is run); or a study. Raises InputError.
    """
    inputs = None if shape is None else parse_input(shape)
    where = None if target is None else config.target(target)
    if Path(given).is_dir():
        subject = _load_artefact(Path(given), trust)
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
            f"the model does not run on --input {shape} ({said}); needed: the batch first, as in "
            "1x3x224x224, "
            "and a comma only between several inputs"
        ) from error


def parse_input(shape: str) -> Inputs:
    """Random numbers of the shape `1x3x224x224`; `1x128:int64` gives zeros, as embeddings take
    them.

    Several inputs are joined by commas. Raises InputError.
    """
    return Inputs(tuple(_tensor(part.strip()) for part in shape.split(",")))


def _tensor(shape: str) -> Tensor:
    match = re.fullmatch(r"([1-9][0-9]*(?:x[1-9][0-9]*)*)(?::(float32|int64))?", shape)
    if match is None:
        raise InputError(
            "--input needs a shape with the batch first, as in 1x3x224x224 or 1x128:int64; got "
            f"{shape!r}"
        )
    sizes = [int(size) for size in match[1].split("x")]
    if match[2] == "int64":
        return torch.zeros(sizes, dtype=torch.int64)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def _factory(reference: str, inputs: Inputs | None) -> Subject:
    folders = (Path.cwd(),)
    check_reference(reference, folders, "model")
    if inputs is None and not reference.startswith("torchvision:"):
        raise InputError(
            f"{reference!r} does not say what it takes; give its input's shape, as in --input "
            "1x3x224x224"
        )
    model = tasks.model(reference, folders)()
    return Subject(reference, model, inputs or parse_input("1x3x224x224"), Target())


def _load_artefact(folder: Path, trust: bool) -> Subject:
    path = folder / "best" if (folder / "best").is_dir() else folder
    require_trust(artefact.require(path), trust, f"autoprune measure {folder} --trust")
    manifest = recorded.Recorded(artefact.require(path))
    with _readable(path):
        return Subject(
            path.name,
            manifest.lowered,
            manifest.reference[0].rows(manifest.target.batch),
            manifest.target,
        )


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn what a broken record raises into a ModelError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: its records are broken: {brief(error)}") from error
    except (recorded.Skipped, recorded.NotHere) as error:
        raise InputError(
            f"the model of {folder} cannot be built here: {error.__cause__ or error}"
        ) from error


def _study(given: str) -> Subject:
    read = config.read(given)
    with read.locating():
        study = config.build(read)
        return Subject(
            study.name, study.task.build(), study.task.calibration(study.target.batch), study.target
        )
