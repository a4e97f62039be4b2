"""What all techniques that remove units share: the least important ones go."""

from dataclasses import dataclass

from torch import Tensor

from autoprune.pruning.ranking import keep_most_important

__all__ = ["Units"]


@dataclass(frozen=True)
class Units:
    """A technique for units; which kinds of group it fits is for the name that it is known by to
    say."""

    level = "units"
    gradual = False

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance` (units,)."""
        return keep_most_important(importance, ratio)
