"""L1: the absolute value of each weight (Li et al. 2017, arXiv:1608.08710)."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["L1"]


@dataclass(frozen=True)
class L1:
    """|w|; summed over a unit it is the L1 norm."""

    scores = "elements"
    needs = ()
    comparable = False
    order = "magnitude"

    def score(self, weight: Tensor) -> Tensor:
        """Shaped like `weight`."""
        return weight.abs()
