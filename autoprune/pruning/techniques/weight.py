"""Weight: single weights go, at once, the least important first (Han et al. 2015,
arXiv:1506.02626)."""

from dataclasses import dataclass

from torch import Tensor

from autoprune.group import Group
from autoprune.pruning.ranking import keep_most_important

__all__ = ["Weight"]


@dataclass(frozen=True)
class Weight:
    """Zeroes the least important weights of one layer before training and holds them at zero
    through it."""

    level = "weights"
    gradual = False
    elementwise = True

    def fits(self, group: Group) -> str | None:
        """Fits any weight tensor."""
        return None

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance` (out, in, ...)."""
        return keep_most_important(importance, ratio)
