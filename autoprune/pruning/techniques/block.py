"""Block sparsity: whole tiles of the weight matrix go (Mao et al. 2017, arXiv:1705.08922)."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from autoprune.errors import InputError
from autoprune.group import Group
from autoprune.pruning.ranking import keep_most_important

__all__ = ["Block"]


@dataclass(frozen=True)
class Block:
    """Tiles of `rows` x `columns` of the (out, in * kernel) matrix go, those of the smallest sum
    first.

    Where a cut has left tiles that stick out, these are ranked by the sum over what is there of
    them, as if it went on like that over the whole tile.
    """

    rows: int = 16
    columns: int = 1
    level = "weights"
    gradual = False

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 1:
            raise InputError(
                f"block needs rows and columns of at least 1, got {self.rows} and {self.columns}"
            )

    def steps(self, shape: tuple[int, ...]) -> int:
        """How many tiles a weight of this shape has; it removes whole ones."""
        return shape[0] // self.rows * (math.prod(shape[1:]) // self.columns)

    def fits(self, group: Group) -> str | None:
        """Needs a matrix that consists of at least two whole tiles."""
        rows, columns = group.shape[0], math.prod(group.shape[1:])
        if rows % self.rows or columns % self.columns:
            return (
                f"block needs whole tiles of {self.rows}x{self.columns}; this weight is "
                f"{rows}x{columns}"
            )
        return (
            f"the whole weight is one tile of {rows}x{columns}"
            if group.size == self.rows * self.columns
            else None
        )

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance` (out, in, ...)."""
        matrix = importance.flatten(1)
        means = self._tiles(matrix) / self._tiles(matrix.new_ones(()).expand_as(matrix))
        kept = (
            keep_most_important(means, ratio)
            .repeat_interleave(self.rows, 0)
            .repeat_interleave(self.columns, 1)
        )
        return kept[: matrix.shape[0], : matrix.shape[1]].reshape(importance.shape)

    def _tiles(self, matrix: Tensor) -> Tensor:
        """Sum over each tile, those that stick out filled up with zeros."""
        rows, columns = matrix.shape
        filled = F.pad(matrix, (0, -columns % self.columns, 0, -rows % self.rows))
        down, across = filled.shape[0] // self.rows, filled.shape[1] // self.columns
        return filled.reshape(down, self.rows, across, self.columns).sum((1, 3))
