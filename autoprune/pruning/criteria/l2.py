"""L2: the square of each weight; a unit's sum ranks as its L2 norm does."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["L2"]


@dataclass(frozen=True)
class L2:
    """w²; summed over a unit it is the squared L2 norm."""

    scores = "elements"
    needs = ()
    comparable = False
    order = "magnitude"

    def score(self, weight: Tensor) -> Tensor:
        """Shaped like `weight`."""
        return weight.square()
