"""The lowering record of an artefact: which sparse kernel runs which layer, beside the dense
weights with their zeros.

Sparse modules cannot be exported: every format holds the dense layers, and the others are rebuilt
from this record. It is written for targets of the runtime `eager_sparse` alone, where lowering made
the whole model faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import InputError, ModelError
from autoprune.files import read_mapping
from autoprune.measuring.sparse_kernels import lower
from autoprune.run import Run
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["LOWERING", "apply_lowering", "read", "write"]

LOWERING = "lowering.json"


def write(folder: Path, model: nn.Module, inputs: Inputs, target: Target) -> None:
    """Measure which layers of `model` run faster without their zeros, and write that down; nothing
    where none does."""
    if not lower.lowers(target):
        return
    lowering = lower.lower(model, inputs, target)
    if lowering.used:
        Run.write_json(folder / LOWERING, lowering.to_json())


def read(folder: Path) -> dict[str, Any] | None:
    """The record, or None where the artefact has none. Raises ModelError for a broken one."""
    if not (folder / LOWERING).exists():
        return None
    try:
        return read_mapping(folder / LOWERING)
    except ValueError as problem:
        raise ModelError(f"{folder}: {problem}") from problem


def apply_lowering(folder: Path, model: nn.Module, asked: bool | None = None) -> nn.Module:
    """`model` lowered as the record says; as it is where there is no record, or with `asked` False.

    Raises InputError where it was asked for and there is no record, ModelError where the record
    does not fit.
    """
    record = None if asked is False else read(folder)
    if record is not None:
        return lower.rebuild(model, record)
    if asked:
        raise InputError(
            f"{folder} has no {LOWERING}: its target is not of the runtime eager_sparse, or no "
            "sparse kernel was faster there; load it without lowered=True"
        )
    return model
