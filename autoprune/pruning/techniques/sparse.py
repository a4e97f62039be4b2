"""Sparse: single weights go gradually, on a polynomial schedule (Zhu & Gupta 2017,
arXiv:1710.01878)."""

import math
from dataclasses import dataclass

from torch import Tensor

from autoprune.errors import InputError
from autoprune.group import Group
from autoprune.pruning.ranking import keep_most_important

__all__ = ["Sparse"]


@dataclass(frozen=True)
class Sparse:
    """Zeroes the least important weights of one layer step by step; each step chooses anew from the
    current weights.

    Of what goes, `initial` goes at once and the rest along a polynomial of degree `power`: from
    `begin` to `end`, in [0, 1] of the training; before it, where `end` is 0, in some steps between
    which the layers are solved anew, so that each chooses from weights that have made up for the
    last. Without a repair, all goes at once then, as with `weight`.
    """

    begin: float = 0.0
    end: float = 0.0
    initial: float = 0.0
    power: float = 3.0
    level = "weights"
    gradual = True
    elementwise = True

    def __post_init__(self) -> None:
        if not 0 <= self.begin <= self.end <= 1:
            raise InputError(
                "sparse needs 0 <= begin <= end <= 1, shares of the training; "
                f"got begin={self.begin:g} and end={self.end:g}"
            )
        if not 0 <= self.initial <= 1:
            raise InputError(
                f"sparse needs initial in [0, 1], a share of what goes; got {self.initial:g}"
            )
        if not 0 < self.power < math.inf:
            raise InputError(f"sparse needs a power of more than 0; got {self.power:g}")

    def filled(self, part: float) -> float:
        """Of all that goes, how much is gone after a `part` in [0, 1] of the way: equation 1 of the
        paper.

        `initial` stands for its initial sparsity over the final one.
        """
        return float(1.0 - (1.0 - self.initial) * (1.0 - part) ** self.power)

    def share(self, progress: float) -> float:
        """Of all that goes, how much is gone by `progress` in [0, 1] of the training; nothing
        before `begin`."""
        if progress < self.begin:
            return 0.0
        return self.filled(
            1.0 if progress >= self.end else (progress - self.begin) / (self.end - self.begin)
        )

    def fits(self, group: Group) -> str | None:
        """Fits any weight tensor."""
        return None

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance` (out, in, ...)."""
        return keep_most_important(importance, ratio)
