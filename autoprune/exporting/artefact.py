"""The artefact folder: its file names, its records, and the inputs and outputs that every later
check refers to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_flatten

from autoprune import plugins
from autoprune.errors import InputError, ModelError, brief
from autoprune.files import check_safetensors, read_mapping
from autoprune.plan import Plan
from autoprune.pruning.surgery.architecture import Architecture
from autoprune.task import Inputs

__all__ = [
    "PLAN",
    "REFERENCE",
    "SCORE",
    "STUDY",
    "VERIFICATION",
    "WEIGHTS",
    "digest",
    "error",
    "output_tensors",
    "read_plan",
    "read_reference",
    "require",
    "runs",
    "write_reference",
]

STUDY, PLAN, SCORE, VERIFICATION = "study.yaml", "plan.json", "score.json", "verification.json"
WEIGHTS, REFERENCE = "model.safetensors", "reference.safetensors"

# What a runtime takes -> the format of the file it runs
_RUNS = {"onnx": "onnx", "module": "safetensors"}


def require(folder: Path | str) -> Path:
    """`folder` as a path. Raises InputError where it is missing, or holds neither study.yaml nor
    plan.json."""
    path = Path(folder)
    if not path.is_dir():
        raise InputError(
            f"no artefact at {path}: there is no such folder; give the folder that export or "
            "search wrote"
        )
    if (path / "dense").is_dir() and not (path / PLAN).exists():
        raise InputError(f"{path} is the folder of a search; its artefact is {path / 'best'}")
    if not (path / STUDY).exists() and not (path / PLAN).exists():
        raise InputError(
            f"{path} is no artefact (neither {STUDY} nor {PLAN} in it); give the folder that "
            "export wrote"
        )
    return path


def runs(runtime: str, folders: Sequence[Path] = ()) -> str:
    """Name of the format whose file `runtime` runs."""
    return _RUNS[plugins.load("runtime", runtime, folders)().artefact]


def digest(path: Path) -> dict[str, Any]:
    """`{"sha256": ..., "size_bytes": ...}` of a file."""
    with open(path, "rb") as file:
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "size_bytes": path.stat().st_size,
        }


def read_plan(folder: Path) -> tuple[Plan, Architecture]:
    """The plan and the architecture of the model that it made. Raises ValueError for a broken
    record."""
    record = read_mapping(folder / PLAN)
    try:
        plan = Plan.from_json(record)
        architecture = Architecture.from_json(record)
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ValueError(
            f"{PLAN} is broken: {type(problem).__name__}: {brief(problem)}"
        ) from problem
    return plan, architecture


def output_tensors(output: Any) -> list[Tensor]:
    """Every tensor of a model's output, in order, on the CPU."""
    leaves = tree_flatten(dict(output) if isinstance(output, Mapping) else output)[0]
    return [leaf.detach().cpu() for leaf in leaves if isinstance(leaf, Tensor)]


def write_reference(path: Path, inputs: Inputs, outputs: Sequence[Tensor]) -> None:
    """Write `input.0`, ... and `output.0`, ... with the nesting of the arguments in the file's
    metadata.

    Raises ModelError for arguments that are not tensors and plain values in tuples, lists and
    dictionaries.
    """
    tensors: list[Tensor] = []
    structure = {
        "args": _describe(inputs.args, tensors),
        "kwargs": _describe(inputs.kwargs, tensors),
    }
    named = {f"input.{index}": tensor for index, tensor in enumerate(tensors)}
    named |= {f"output.{index}": tensor for index, tensor in enumerate(outputs)}
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}
    save_file(held, path, metadata={"structure": json.dumps(structure)})


def read_reference(path: Path) -> tuple[Inputs, list[Tensor]]:
    """What `write_reference` wrote. Raises ValueError where the file cannot be read, or holds no
    outputs."""
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            structure = json.loads(file.metadata()["structure"])
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no iterator of its own)
        args, kwargs = _rebuilt(structure["args"], held), _rebuilt(structure["kwargs"], held)
        outputs = [
            held[f"output.{index}"]
            for index in range(sum(name.startswith("output.") for name in held))
        ]
    except Exception as problem:
        # safetensors raises a kind of its own for each way a file can be broken
        raise ValueError(
            f"{path.name} cannot be read: {type(problem).__name__}: {brief(problem)}"
        ) from problem
    if not outputs:
        raise ValueError(f"{path.name} holds no outputs")
    return Inputs(args, kwargs), outputs


def error(recorded: Tensor, got: Tensor, scale: float | None = None) -> float:
    """max|a - b| / max|a| of two tensors, with `scale` for max|a| where given; infinite where they
    cannot be compared.

    An infinite value must stand in the same place in both; a NaN never agrees.
    """
    if recorded.shape != got.shape:
        return float("inf")
    a, b = recorded.double(), got.double()
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a[~finite], b[~finite]):
        return float("inf")
    difference = float((a[finite] - b[finite]).abs().max()) if finite.any() else 0.0
    scale = float(a[finite].abs().max()) if scale is None and finite.any() else scale
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def _describe(value: Any, tensors: list[Tensor]) -> dict[str, Any]:
    """`value` as JSON, its tensors taken out into `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"tensor": len(tensors) - 1}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _describe(item, tensors) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return {
            "tuple" if isinstance(value, tuple) else "list": [
                _describe(item, tensors) for item in value
            ]
        }
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise ModelError(
        f"the model's arguments hold a {type(value).__name__}; an export needs tensors and plain "
        "values in tuples, "
        "lists and dictionaries: give an adapter that makes them"
    )


def _rebuilt(described: dict[str, Any], held: Mapping[str, Tensor]) -> Any:
    ((kind, content),) = described.items()
    if kind == "tensor":
        return held[f"input.{content}"]
    if kind == "dict":
        return {key: _rebuilt(item, held) for key, item in content.items()}
    if kind in ("tuple", "list"):
        items = [_rebuilt(item, held) for item in content]
        return tuple(items) if kind == "tuple" else items
    return content
