"""Structured: whole filters and channels go, and the model really shrinks (Li et al. 2017, arXiv:1608.08710)."""

from dataclasses import dataclass

from torch import Tensor

from autoprune.group import Group
from autoprune.pruning.ranking import keep_most_important

__all__ = ["Structured"]


@dataclass(frozen=True)
class Structured:
    """Removes the least important channels of a group that a convolution produces."""

    level = "units"
    gradual = False

    def fits(self, group: Group) -> str | None:
        """Needs a group with a convolution, and no attention, among its producers."""
        fitting = "conv" in group.kinds and "attention" not in group.kinds
        what = "/".join(dict.fromkeys(group.kinds))
        return None if fitting else f"structured needs channels of a convolution; {group.name} is {what}"

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance` (units,)."""
        return keep_most_important(importance, ratio)
