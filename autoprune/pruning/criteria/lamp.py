"""LAMP: layer-adaptive magnitude (Lee et al. 2021, arXiv:2010.07611), scores that compare across
layers."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LAMP"]


@dataclass(frozen=True)
class LAMP:
    """w² over the sum of all squares in the layer that are no smaller; in one layer it ranks as
    magnitude does."""

    scores = "weights"
    needs = ()
    comparable = True
    order = "magnitude"

    def score(self, weight: Tensor) -> Tensor:
        """Shaped like `weight`, in [0, 1]; the largest weight of a layer has 1."""
        # In double: over millions of weights a sum in single precision stops growing
        squares, order = weight.flatten().double().square().sort(stable=True)
        surviving = squares.flip(0).cumsum(0).flip(0)
        scores = torch.empty_like(squares)
        # A layer of zeros scores zero
        scores[order] = squares / surviving.clamp_min(torch.finfo(torch.float64).tiny)
        return scores.view(weight.shape)
