"""A small network and its data, behind the runs of earlier releases in this folder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    """(N, 1, 8, 8) -> (N, 3), with a residual block that can go."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = Block(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    """A convolution beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(width, 16, 3, padding=1), nn.Conv2d(16, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.relu(self.inner(x)))


def build() -> nn.Module:
    return Net()


def images(count: int, seed: int) -> TensorDataset:
    """Three patterns under noise."""
    patterns = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return TensorDataset(patterns[labels] + 1.5 * torch.randn(count, 1, 8, 8, generator=generator), labels)


def data() -> dict[str, Any]:
    return {"train": images(120, 0), "validation": images(60, 1), "test": images(60, 2)}
