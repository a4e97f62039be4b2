"""Group: what one decision acts on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Group"]


@dataclass(frozen=True)
class Group:
    """Units: coupled channels, decided once for all their layers. Weights: a layer's weight tensor.
    Blocks: one block.

    Level "units": `shape` is `(units,)`, `layers` are the layers that produce the units, in order
    of execution, and the units come in `cells` equal cells that must lose the same count (grouped
    convolution, channel shuffle, chunk). Level "weights": `shape` is the weight's shape, (out, in,
    ...), and `layers` is its one layer. Level "blocks": `layers` is one residual block, which can
    go whole, and `shape` is `(1,)`. `refusal` says why nothing may be cut here, or is None. `stage`
    names the groups of its level that are like it in resolution, or in shape; blocks have none.
    """

    name: str
    level: Literal["units", "weights", "blocks"]
    layers: tuple[str, ...]
    # Of the layers: "conv", "linear", "attention", "recurrent", "embedding", "block", "other"
    kinds: tuple[str, ...]
    shape: tuple[int, ...]
    cells: int = 1
    refusal: str | None = None
    stage: str = ""

    @property
    def key(self) -> str:
        """`name:level`, unique in a model; the first half of the search variables' names."""
        return f"{self.name}:{self.level}"

    @property
    def size(self) -> int:
        """Number of units, or of single weights."""
        size = 1
        for length in self.shape:
            size *= length
        return size
