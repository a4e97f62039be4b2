"""Sparse: single weights go gradually while training, on a polynomial schedule (Zhu & Gupta 2017, arXiv:1710.01878)."""

from dataclasses import dataclass

from torch import Tensor

from autoprune.group import Group
from autoprune.pruning.ranking import keep_most_important

__all__ = ["Sparse"]


@dataclass(frozen=True)
class Sparse:
    """Zeroes the least important weights of one layer step by step; each step chooses anew from the current weights."""

    level = "weights"
    gradual = True

    def fits(self, group: Group) -> str | None:
        """Fits any weight tensor."""
        return None

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance` (out, in, ...)."""
        return keep_most_important(importance, ratio)
