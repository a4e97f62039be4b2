"""N:M sparsity: at most N of every M consecutive weights stay (Mishra et al. 2021,
arXiv:2104.08378)."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from autoprune.errors import InputError
from autoprune.group import Group

__all__ = ["NOfM"]


@dataclass(frozen=True)
class NOfM:
    """Of every `m` consecutive weights along dimension 1, k go: the least important ones; the ratio
    is k / m.

    `n_of_m` at 0.5 is 2:4, the pattern of sparse tensor cores. Dimension 1 is the input of linear
    layers and convolutions (of transposed convolutions it is the output). What a cut leaves over of
    the last m is filled up with zeros in thought: of a rest, no more than N stay either.
    """

    m: int = 4
    level = "weights"
    gradual = False
    elementwise = True

    def __post_init__(self) -> None:
        if self.m < 2:
            raise InputError(f"n_of_m needs m of at least 2, got {self.m}")

    def steps(self, shape: tuple[int, ...]) -> int:
        """It removes 0, 1/m, ... (m-1)/m of any weight."""
        return self.m

    def fits(self, group: Group) -> str | None:
        """Needs a dimension 1 that `m` divides."""
        size = group.shape[1]
        return (
            f"n_of_m needs an input size that {self.m} divides, got {size}"
            if size % self.m
            else None
        )

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance` (out, in, ...)."""
        scores = importance.movedim(1, -1)  # (out, ..., in)
        size = scores.shape[-1]
        filled = F.pad(scores, (0, -size % self.m), value=-math.inf)
        # Sorted twice: the place of each in the order, 0 the least important of its m; of equals
        # the earlier one goes
        rank = filled.reshape(-1, self.m).argsort(stable=True).argsort()
        keep: Tensor = rank >= min(round(self.m * ratio), self.m - 1)
        return keep.view(filled.shape)[..., :size].movedim(-1, 1).contiguous()
