"""Depth: residual blocks go whole, the identity stays in their place (Huang et al. 2016, arXiv:1603.09382)."""

from dataclasses import dataclass

from torch import Tensor

from autoprune.group import Group
from autoprune.pruning.ranking import keep_most_important

__all__ = ["Depth"]


@dataclass(frozen=True)
class Depth:
    """Removes the least important residual blocks: the network becomes less deep."""

    level = "blocks"
    gradual = False

    def fits(self, group: Group) -> str | None:
        """Fits every group of blocks."""
        return None

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance` (blocks,)."""
        return keep_most_important(importance, ratio)
