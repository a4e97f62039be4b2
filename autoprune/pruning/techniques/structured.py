"""Structured: whole filters and channels go, and the model really shrinks (Li et al. 2017,
arXiv:1608.08710)."""

from dataclasses import dataclass

from autoprune.group import Group
from autoprune.pruning.techniques._units import Units

__all__ = ["Structured"]


@dataclass(frozen=True)
class Structured(Units):
    """Removes the least important channels of a group that a convolution produces."""

    def fits(self, group: Group) -> str | None:
        """Needs a group with a convolution, and no attention, among its producers."""
        fitting = "conv" in group.kinds and "attention" not in group.kinds
        what = "/".join(dict.fromkeys(group.kinds))
        return (
            None
            if fitting
            else f"structured needs channels of a convolution; {group.name} is {what}"
        )
