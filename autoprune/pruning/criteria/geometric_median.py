"""Geometric median: filters that the others of their layer can replace go first (He et al. 2019,
arXiv:1811.00250)."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GeometricMedian"]


@dataclass(frozen=True)
class GeometricMedian:
    """Sum of the Euclidean distances of a filter to all filters of its layer, as FPGM does."""

    scores = "filters"
    needs = ()
    comparable = False

    def score(self, weight: Tensor) -> Tensor:
        """(filters, elements) -> (filters,)."""
        # Distances stay, and lose fewer digits to cancellation
        centred = weight - weight.mean(0)
        return torch.cdist(centred, centred).sum(1)
