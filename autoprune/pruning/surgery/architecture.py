"""Architecture: what a cut model is beside its dense one, as JSON; enough to build it again without
a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from autoprune.pruning.surgery.patch_forward import bind, bindings_of
from autoprune.pruning.surgery.shrink import removed_blocks, resize, widths
from autoprune.pruning.surgery.sized_calls import Bindings

__all__ = ["Architecture"]


@dataclass(frozen=True)
class Architecture:
    """Shapes of the cut tensors, blocks that are gone, numbers in the code of forwards that are
    bound anew."""

    widths: Mapping[str, Sequence[int]] = field(default_factory=dict)
    removed: Sequence[str] = ()
    bound: Bindings = field(default_factory=dict)

    @classmethod
    def of(cls, dense: nn.Module, smaller: nn.Module) -> Architecture:
        """The architecture of a model that was cut from `dense`."""
        return cls(widths(dense, smaller), removed_blocks(smaller), bindings_of(smaller))

    def build(self, dense: nn.Module) -> nn.Module:
        """A copy of `dense` with this architecture; the values of cut tensors are the first of each
        dimension.

        Raises PlanError where `dense` does not have what the architecture names.
        """
        return bind(resize(dense, self.widths, self.removed), self.bound)

    def to_json(self) -> dict[str, Any]:
        """Part of a plan's record."""
        replaced: dict[str, Any] = {"removed": list(self.removed)} if self.removed else {}
        return {
            "widths": self.widths,
            "replaced": replaced | ({"bound": self.bound} if self.bound else {}),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Architecture:
        """Read what `to_json` wrote. Raises ValueError, KeyError, TypeError or AttributeError for
        anything else."""
        replaced = dict(record.get("replaced") or {})
        unknown = set(replaced) - {"removed", "bound"}
        if unknown:
            raise ValueError(
                f"it names replaced modules that this release cannot rebuild: {sorted(unknown)}"
            )
        bound = {
            str(module): {int(call): _change(change) for call, change in calls.items()}
            for module, calls in replaced.get("bound", {}).items()
        }
        shapes = {
            str(name): [int(size) for size in shape] for name, shape in record["widths"].items()
        }
        return cls(shapes, [str(name) for name in replaced.get("removed", [])], bound)


def _change(change: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no whole numbers as keys."""
    return {
        kind: {int(place): entry for place, entry in entries.items()}
        if isinstance(entries, dict)
        else entries
        for kind, entries in change.items()
    }
