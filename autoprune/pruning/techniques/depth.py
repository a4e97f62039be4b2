"""Depth: residual blocks go whole, the identity stays in their place (Huang et al. 2016,
arXiv:1603.09382)."""

from dataclasses import dataclass

from torch import Tensor

from autoprune.group import Group
from autoprune.pruning.ranking import keep_most_important

__all__ = ["Depth"]


@dataclass(frozen=True)
class Depth:
    """Removes residual blocks whole: the network becomes less deep."""

    level = "blocks"
    gradual = False

    def fits(self, group: Group) -> str | None:
        """Fits every block."""
        return None

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance` (blocks,); at a ratio of 1 none stays."""
        return keep_most_important(importance, ratio) & (ratio < 1)
