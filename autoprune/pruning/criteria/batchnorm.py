"""Batch norm: the scale that a channel is multiplied by, as in Network Slimming (Liu et al. 2017,
arXiv:1708.06519)."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["BatchNorm"]


@dataclass(frozen=True)
class BatchNorm:
    """|γ|, which the paper ranks across all layers at once."""

    scores = "scales"
    needs = ()
    comparable = True

    def score(self, weight: Tensor) -> Tensor:
        """(channels,) -> (channels,)."""
        return weight.abs()
