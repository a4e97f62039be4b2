"""Neuron: hidden units of linear and recurrent layers go, and the model really shrinks."""

from dataclasses import dataclass

from autoprune.group import Group
from autoprune.pruning.techniques._units import Units

__all__ = ["Neuron"]


@dataclass(frozen=True)
class Neuron(Units):
    """Removes the least important hidden units of a group that only linear or recurrent layers
    produce."""

    def fits(self, group: Group) -> str | None:
        """Needs a group that neither a convolution nor an attention produces."""
        other = "conv" in group.kinds or "attention" in group.kinds
        what = "/".join(dict.fromkeys(group.kinds))
        return (
            f"neuron needs hidden units of linear or recurrent layers; {group.name} is {what}"
            if other
            else None
        )
