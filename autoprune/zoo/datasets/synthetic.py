"""Made-up images: one random pattern for each class, under noise; for trying things out without any
files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from torch.utils.data import TensorDataset

from autoprune.task import Data

__all__ = ["synthetic"]


def synthetic(
    shape: Sequence[int] = (3, 64, 64),
    classes: int = 10,
    size: int = 256,
    seed: int = 0,
    noise: float = 1.0,
) -> Data:
    """`size` training images of `shape` (channels, height, width) with int64 labels; half as many
    to validate and test.

    An image, float32, is its class's pattern, blocks of 8 pixels of unit variance, plus `noise`
    times Gaussian noise. The same seed gives the same data.
    """
    if len(shape) != 3 or min(*shape, classes, size) < 1:
        raise ValueError(
            f"shape [channels, height, width], classes and size must be at least 1; got {shape}, "
            f"{classes}, {size}"
        )
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    coarse = torch.randn(
        classes, channels, max(1, height // 8), max(1, width // 8), generator=generator
    )
    patterns = functional.interpolate(coarse, size=(height, width), mode="nearest")

    def split(count: int) -> TensorDataset:
        labels = torch.arange(count) % classes  # every class equally often
        labels = labels[torch.randperm(count, generator=generator)]
        return TensorDataset(
            patterns[labels] + noise * torch.randn(count, *shape, generator=generator), labels
        )

    return Data(split(size), split(max(1, size // 2)), split(max(1, size // 2)))
