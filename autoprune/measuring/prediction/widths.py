"""The widths that a plan may choose, and plans drawn at random to learn what widths cost."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import InputError, ModelError, nearest
from autoprune.measuring.prediction.features import Array, Features, Operation, operations
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.task import Inputs

__all__ = ["Layout", "Row"]

# Width of every group, names of the blocks that go
Row = tuple[tuple[int, ...], tuple[str, ...]]

# What widths of a drawn plan are multiples of: the steps of the device have to be met to be learnt
_STEPS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Layout:
    """The operations of a model, its groups of units with their dense widths and cells, its
    removable blocks."""

    operations: tuple[Operation, ...]
    groups: Mapping[str, int]
    cells: Mapping[str, int]
    counted: tuple[str, ...]  # groups of heads, whose number is no width
    blocks: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, coupling: Coupling, model: nn.Module, inputs: Inputs) -> Layout:
        """The layout of `model` on one call with `inputs`. Raises ModelError where no units can be
        cut."""
        units = [group for group in coupling.prunable() if group.level == "units"]
        applied = tuple(operations(coupling, model, inputs))
        if not units or not applied:
            raise ModelError(
                "latency cannot be predicted: the model has no group of units that can be cut; "
                "measure plans instead"
            )
        blocks = {
            group.key: group.layers for group in coupling.prunable() if group.level == "blocks"
        }
        counted = tuple(group.key for group in units if "attention" in group.kinds)
        cells = {group.key: group.cells for group in units}
        return cls(applied, {group.key: group.size for group in units}, cells, counted, blocks)

    @property
    def kinds(self) -> list[int]:
        """Number of the kind of each operation."""
        names = sorted({operation.kind for operation in self.operations})
        return [names.index(operation.kind) for operation in self.operations]

    @property
    def dense(self) -> Row:
        """Nothing goes."""
        return tuple(self.groups.values()), ()

    def row(self, plan: Mapping[str, Tensor | int]) -> Row:
        """Of a plan: for each group that is cut what is kept, booleans (units,), or its width.

        Weights groups are passed over: zeros cost a dense kernel what other weights do.
        Raises InputError for an unknown group, or a width that the group cannot have.
        """
        gone: list[str] = []
        widths = dict(self.groups)
        for key, kept in plan.items():
            if key in self.blocks:
                gone += self._gone(key, kept)
            elif key in self.groups:
                widths[key] = self._width(key, kept)
            elif not key.endswith(":weights"):
                raise InputError(
                    f"unknown group {key!r}{nearest(key, self.groups)}; groups: "
                    f"{', '.join(self.groups)}"
                )
        return tuple(widths.values()), tuple(gone)

    def features(self, rows: Sequence[Row]) -> tuple[Array, Array]:
        """Features (plans, terms, operations), and the share left of each group (plans, groups)."""
        widths = np.array([widths for widths, _ in rows], float)
        shares = widths / np.array(list(self.groups.values()), float)
        return self._features(widths, [gone for _, gone in rows]), shares

    @functools.cached_property
    def _features(self) -> Features:
        return Features(self.operations, self.groups)

    def keep(self, row: Row) -> dict[str, Tensor]:
        """What is kept of each group, booleans (units,): the first ones of each cell; blocks only
        where some go."""
        widths, gone = row
        kept: dict[str, Tensor] = {}
        for (key, size), width in zip(self.groups.items(), widths, strict=True):
            cells = self.cells[key]
            first_units = torch.arange(size // cells, device="cpu") < width // cells
            kept[key] = first_units.repeat(cells)
        for key, names in self.blocks.items():
            if set(names) & set(gone):
                kept[key] = torch.tensor([name not in gone for name in names], device="cpu")
        return kept

    def random_row(self, random: np.random.Generator, blocks: bool = False) -> Row:
        """A plan whose groups lose random shares; widths are multiples of one step, of several or
        none.

        With `blocks` every other plan loses a random share of these as well.
        """
        low, high = random.choice([0.0, 0.0, 0.3]), random.choice([0.4, 0.7, 0.9])
        common, widths = random.choice([1, 8, 16, 0, 0]), []
        for key in self.groups:
            step = 1 if key in self.counted else int(common or random.choice(_STEPS))
            widths.append(self.width(key, random.uniform(low, high), step))
        share = random.uniform() if blocks and random.uniform() < 0.5 else 0.0
        names = [name for names in self.blocks.values() for name in names]
        return tuple(widths), tuple(name for name in names if random.uniform() < share)

    def width(self, key: str, ratio: float, step: int = 1) -> int:
        """What is left of a group that loses `ratio`: the same of each cell, a multiple of `step`
        where it is wide."""
        cells, size = self.cells[key], self.groups[key]
        step = max(1, step // cells)
        kept = size // cells * (1 - ratio)
        if size // cells >= 2 * step:
            kept = step * round(kept / step)
        return cells * min(max(1, round(kept)), size // cells)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """What `to_json` wrote."""
        blocks = {key: tuple(names) for key, names in data["blocks"].items()}
        made = tuple(Operation(**fields) for fields in data["operations"])
        return cls(made, dict(data["groups"]), dict(data["cells"]), tuple(data["counted"]), blocks)

    def _width(self, key: str, kept: Tensor | int) -> int:
        size = self.groups[key]
        if isinstance(kept, Tensor) and kept.numel() != size:
            raise InputError(
                f"group {key!r} has {size} units; what is kept was given for {kept.numel()}"
            )
        width = int(kept.sum()) if isinstance(kept, Tensor) else kept
        if not 1 <= width <= size:
            raise InputError(
                f"group {key!r} has {size} units; needed: a width from 1 to {size}, got {width}"
            )
        return width

    def _gone(self, key: str, kept: Tensor | int) -> list[str]:
        names = self.blocks[key]
        if not isinstance(kept, Tensor) or kept.numel() != len(names):
            raise InputError(
                f"{key!r} needs one boolean for each of its blocks, {', '.join(names)}; got "
                f"{kept!r}"
            )
        return [name for name, stays in zip(names, kept.tolist(), strict=True) if not stays]
