"""What a plan leaves of each layer of a model, as numbers that explain latency: work, data moved,
staircases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.surgery.forward import output_tensors, plain_forward
from autoprune.task import Inputs

__all__ = ["SMOOTH_TERMS", "TERMS", "Array", "Features", "Operation", "operations"]

Array = np.ndarray[Any, np.dtype[np.float64]]

# Lengths of the vectors and blocks that kernels are made for
STEPS = (4, 8, 16, 32)
SMOOTH_TERMS = ("call", "work", "rows", "columns", "root", "written", "read")
STEP_TERMS = tuple(
    f"{term} {step}"
    for step in STEPS
    for term in ("blocks", "rows off", "columns off", "unaligned")
)
TERMS = SMOOTH_TERMS + STEP_TERMS


@dataclass(frozen=True)
class Operation:
    """One weight tensor at work: (rows, columns, ...), applied at `positions` places; `work` is
    multiply-adds.

    Each width is `fixed + sum(share[group] * width of the group)`; `kind` names operations that run
    in the same way.
    """

    tensor: str
    kind: str
    rows: int
    columns: int
    work: float
    written: float  # elements
    read: float
    row_shares: Mapping[str, float]
    column_shares: Mapping[str, float]
    block: str | None = None  # the removable residual block that it is in


def operations(coupling: Coupling, model: nn.Module, inputs: Inputs) -> list[Operation]:
    """The operations of one plain forward of `model`, in order of their tensors."""
    places = _places(model, inputs)
    blocks = [name for group in coupling.groups if group.level == "blocks" for name in group.layers]
    slots: dict[tuple[str, int], tuple[int, Tensor]] = {}
    # Attention names a place three times, each time other entries of it
    for slot in coupling.slots:
        place = (slot.tensor, slot.dim)
        before = slots[place][1] if place in slots else slot.units
        slots[place] = slot.groups, torch.where(before >= 0, before, slot.units)
    applied = []
    for name, tensor in model.named_parameters():
        owner = (
            name.partition(".parametrizations.")[0]
            if ".parametrizations." in name
            else name.rpartition(".")[0]
        )
        module = model.get_submodule(owner)
        if (
            tensor.dim() < 2
            or isinstance(module, (nn.Embedding, nn.EmbeddingBag))
            or owner not in places
        ):
            continue
        rows, columns, positions = tensor.shape[0], tensor.shape[1], places[owner]
        applied.append(
            Operation(
                name,
                _kind(module, tensor),
                rows,
                columns,
                float(positions * tensor.numel()),
                float(positions * rows),
                float(positions * columns * getattr(module, "groups", 1)),
                _shares(coupling, *slots.get((name, 0), (1, torch.empty(0)))),
                _shares(coupling, *slots.get((name, 1), (1, torch.empty(0)))),
                next((block for block in blocks if name.startswith(f"{block}.")), None),
            )
        )
    return applied


class Features:
    """What widths come to, as numbers that explain latency; what all plans have in common is worked
    out once.

    `groups` are the dense widths by group, in the order of the columns of `widths` below.
    """

    def __init__(self, operations: Sequence[Operation], groups: Mapping[str, int]) -> None:
        self._sizes = np.array(list(groups.values()), float)
        self._dense = [
            np.array([getattr(operation, side) for operation in operations], float)
            for side in ("rows", "columns")
        ]
        self._lost = [
            np.array([[shares.get(key, 0.0) for shares in side] for key in groups]).reshape(
                len(groups), len(side)
            )
            for side in (
                [it.row_shares for it in operations],
                [it.column_shares for it in operations],
            )
        ]
        self._work, self._written, self._read = (
            _normal([getattr(operation, name) for operation in operations])
            for name in ("work", "written", "read")
        )
        self._depthwise = np.array(
            [operation.kind.startswith("depthwise") for operation in operations]
        )
        self._blocks = [operation.block for operation in operations]

    def widths(self, widths: Array) -> tuple[Array, Array]:
        """(plans, groups) -> rows and columns of each operation, both (plans, operations), at least
        1."""
        lost = self._sizes - widths
        rows, columns = (
            np.maximum(np.round(dense - lost @ shares), 1.0)
            for dense, shares in zip(self._dense, self._lost, strict=True)
        )
        return rows, columns

    def __call__(self, widths: Array, gone: Sequence[Sequence[str]]) -> Array:
        """(plans, groups) widths, and the blocks that each plan removes -> (plans, terms,
        operations).

        A term of the dense model adds up to 1 over the operations wherever it is not about widths
        that are off a step.
        """
        (rows, columns), dense = self.widths(widths), self._dense
        work, written, read = self._work, self._written, self._read
        a, b = rows / dense[0], columns / dense[1]
        terms = [
            np.ones_like(a) / len(work),
            work * a * b,
            work * a,
            work * b,
            work * np.sqrt(a * b),
        ]
        terms += [written * a, read * np.where(self._depthwise, a, b)]
        for step in STEPS:
            off_rows, off_columns = (
                rows % step != 0,
                np.where(self._depthwise, False, columns % step != 0),
            )
            up = (
                _steps(rows, step)
                / _steps(dense[0], step)
                * _steps(columns, step)
                / _steps(dense[1], step)
            )
            terms += [work * up, work * a * b * off_rows, work * a * b * off_columns]
            terms += [(written * a + read * b) / 2 * (off_rows | off_columns)]
        features = np.stack(terms, 1)
        if any(gone):
            stays = np.array(
                [[block not in blocks for block in self._blocks] for blocks in gone], float
            )
            features = features * stays[:, None, :]
        return np.asarray(features)


def _steps(width: Array, step: int) -> Array:
    return np.asarray(np.ceil(width / step))


def _normal(values: Sequence[float]) -> Array:
    array = np.array(values, float)
    return np.asarray(array / max(float(array.sum()), 1e-30))


def _shares(coupling: Coupling, groups: int, units: Tensor) -> dict[str, float]:
    """How many entries of a dimension go with one unit of each group, on average."""
    shares = {}
    for key, members in coupling.members.items():
        entries = int(torch.isin(units, members).sum())
        if entries and coupling.group(key).refusal is None:
            shares[key] = entries / groups / members.numel()
    return shares


def _kind(module: nn.Module, tensor: Tensor) -> str:
    name = type(module).__name__.lower()
    if not isinstance(module, nn.modules.conv._ConvNd):
        return name
    area, stride = math.prod(tensor.shape[2:]), max(module.stride)
    grouped = (
        ""
        if module.groups == 1
        else "depthwise "
        if module.groups == module.in_channels
        else "grouped "
    )
    return f"{grouped}{name} {'1' if area == 1 else 'k'} stride {stride}"


def _places(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """By module with weights: at how many places its weights are applied in one forward."""
    counts: dict[str, int] = {}
    handles = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)) or isinstance(
            module, nn.MultiheadAttention
        ):
            handles.append(module.register_forward_hook(_counter(name, counts)))
    try:
        with plain_forward(model):
            inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return counts | dict(_inner(model, counts))


def _inner(model: nn.Module, found: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Modules whose weights the module around them uses without calling them, as attention its
    output's."""
    for name, module in model.named_modules():
        outer = name.rpartition(".")[0]
        if (
            name not in found
            and outer in found
            and any(True for _ in module.parameters(recurse=False))
        ):
            yield name, found[outer]


def _counter(name: str, found: dict[str, int]) -> Any:
    def count(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        tensor = given[0] if transposed else next(iter(output_tensors(output)))
        place = 1 - module.weight.dim() if isinstance(module, nn.modules.conv._ConvNd) else -1
        width = tensor.shape[place] if tensor.dim() else 1
        found[name] = found.get(name, 0) + tensor.numel() // max(1, width)

    return count
