"""Widths written into the code of a forward: noted during the trace, patched in the cut model
(`patch_forward.py`).

`view(b, n, 3, 12, 64)`, `x[:, :24]`, `split([8, 16])` or `chunk(2)` mean a width of the dense
model. Where the code does not follow a cut by itself, the module's forward is wrapped: its n-th
such call gets the cut model's widths. Calls are counted over the module's own code, not over that
of the modules it calls; where training takes a path of its own, its calls have negative numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoprune.pruning.surgery.sized_calls import Call, Change
from autoprune.pruning.tracing.channel_ids import Labels, match_dims, varying

__all__ = ["Literal", "literal"]


@dataclass(frozen=True)
class Literal:
    """The `call`-th call of a module's own code: where channels meet numbers in its arguments.

    `ids` maps a place (an output dimension, a slice, 0) to the ids along it; `fixed` holds what
    else a change needs.
    """

    owner: str
    call: int
    kind: str
    ids: Mapping[int, Tensor]
    fixed: Any = None
    always: bool = False  # the code as it is does not fit every admissible cut

    def parts(self) -> list[Tensor]:
        """The ids of each part that is taken of a dimension."""
        if self.kind == "parts":
            return list(torch.split(self.ids[0], self.fixed["sizes"]))
        return (
            [ids[slice(*self.fixed[place])] for place, ids in self.ids.items()]
            if self.kind == "bounds"
            else []
        )

    def change(self, count: Callable[[Tensor, int, int], int]) -> Change:
        """The call's new numbers; `count(ids, start, stop)` is how many of a range of ids are
        kept."""
        if self.kind == "scalar":
            return {"scalar": self.fixed}
        if self.kind == "attribute":
            return {"attribute": self.fixed, "value": count(self.ids[0], 0, len(self.ids[0]))}
        if self.kind == "parts":
            sizes, start = [], 0
            for size in self.fixed["sizes"]:
                sizes.append(count(self.ids[0], start, start + size))
                start += size
            return {"parts": sizes, "dim": self.fixed["dim"]}
        if self.kind == "bounds":
            return {
                "bounds": {
                    place: [
                        count(ids, 0, bound) if bound is not None else None
                        for bound in self.fixed[place]
                    ]
                    for place, ids in self.ids.items()
                }
            }
        merged = self.fixed or ()
        return {
            self.kind: {
                place: -1 if place in merged else count(ids, 0, len(ids))
                for place, ids in self.ids.items()
            }
        }


def literal(call: Call, out: Any, labels: Labels, owner: str, number: int) -> Literal | None:
    """What of it depends on channels; None where nothing does."""
    source = labels.get(call.args[0]) if isinstance(call.args[0], Tensor) else None
    if call.kind == "scalar":
        tensor, scalar = call.args[:2] if isinstance(call.args[0], Tensor) else call.args[1::-1]
        return Literal(owner, number, "scalar", {}, scalar) if tensor in labels else None
    if source is None or call.args[0] not in labels:
        return None
    channels = labels.channels(source)
    if call.kind == "shape":
        return Literal(owner, number, "shape", {0: _line(source, source.dim() - 1)})
    if call.kind == "bounds":
        sliced = {place: dim for place, dim in call.slices.items() if dim in channels}
        bounds = {
            place: _bounds(call.args[1], place, source.shape[dim]) for place, dim in sliced.items()
        }
        lines = {place: _line(source, dim) for place, dim in sliced.items()}
        return Literal(owner, number, "bounds", lines, bounds) if sliced else None
    if call.kind == "parts":
        dim = int(call.kwargs.get("dim", call.args[2] if len(call.args) > 2 else 0)) % source.dim()
        fixed = {"sizes": [part.shape[dim] for part in out], "dim": dim}
        return (
            Literal(owner, number, "parts", {0: _line(source, dim)}, fixed)
            if dim in channels
            else None
        )
    return _sizes(call, out, source, labels, owner, number)


def _sizes(
    call: Call, out: Tensor, source: Tensor, held: Labels, owner: str, number: int
) -> Literal | None:
    labels = held.get(out)
    channels, before = held.channels(labels), varying(source)
    # Layers or directions: as many, whatever is cut
    rows = set(varying(labels)) - set(channels)
    expanded = len(call.args) > 0 and call.kind == "expand"
    runs = (
        [([], [dim]) for dim in range(out.dim())]
        if expanded
        else match_dims(source.shape, out.shape)
    )
    lines: dict[int, Tensor] = {}
    merged: list[int] = []  # dimensions that hold channels together with other things
    for old, new in runs:
        wide = [dim for dim in new if out.shape[dim] > 1]
        if not any(dim in channels for dim in new):
            continue
        mixed = any(dim not in before and source.shape[dim] > 1 for dim in old)
        lines |= {
            dim: _line(labels, dim) for dim in wide if dim in channels or not (mixed or dim in rows)
        }
        merged += wide if mixed and len(wide) == 1 else []
    return Literal(owner, number, "sizes", lines, tuple(merged)) if lines else None


def _line(labels: Tensor, dim: int) -> Tensor:
    """Ids along `dim` at the first place of the others."""
    return labels[tuple(slice(None) if d == dim else 0 for d in range(labels.dim()))].clone()


def _bounds(index: Any, place: int, size: int) -> list[int | None]:
    entry = index[place] if isinstance(index, tuple) else index
    start, stop, _ = entry.indices(size)
    return [start if entry.start is not None else None, stop if entry.stop is not None else None]
