"""Heads: attention heads go whole, and the projections really shrink (Michel et al. 2019,
arXiv:1905.10650)."""

from dataclasses import dataclass

from autoprune.group import Group
from autoprune.pruning.techniques._units import Units

__all__ = ["Heads"]


@dataclass(frozen=True)
class Heads(Units):
    """Removes the least important heads of an attention; with grouped queries a head is a key with
    all its queries."""

    def fits(self, group: Group) -> str | None:
        """Needs a group whose units are attention heads."""
        what = "/".join(dict.fromkeys(group.kinds))
        return (
            None
            if "attention" in group.kinds
            else f"heads needs heads of an attention; {group.name} is {what}"
        )
