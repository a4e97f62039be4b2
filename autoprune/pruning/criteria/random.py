"""Random: the control every other criterion has to beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Random"]


@dataclass(frozen=True)
class Random:
    """Uniform numbers, the same for the same seed and weights."""

    seed: int = 0
    scores = "elements"
    needs = ()
    comparable = False

    def score(self, weight: Tensor) -> Tensor:
        """Shaped like `weight`; differs between tensors of other contents."""
        salt = int(weight.detach().double().sum().cpu().view(torch.int64).item()) & (2**62 - 1)
        # a generator reads the low 32 bits of its seed only, and those of a sum of few floats are
        # zero
        generator = torch.Generator().manual_seed(
            (self.seed * 1_000_003 + (salt ^ (salt >> 32))) % 2**32
        )
        return torch.rand(weight.shape, generator=generator).to(weight.device)
