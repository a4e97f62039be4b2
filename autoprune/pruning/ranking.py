"""Keep the most important share: the one rule behind every technique that ranks elements."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["keep_most_important", "removed_count"]


def removed_count(size: int, ratio: float) -> int:
    """How many of `size` elements go at `ratio`: the nearest whole number, at least one stays."""
    return min(round(size * ratio), size - 1)


def keep_most_important(importance: Tensor, ratio: float) -> Tensor:
    """Boolean, shaped like `importance`; ties go to the earlier element, so that a higher ratio
    keeps a subset."""
    order = importance.flatten().argsort(stable=True)
    keep = torch.ones(importance.numel(), dtype=torch.bool, device=importance.device)
    keep[order[: removed_count(importance.numel(), ratio)]] = False
    return keep.view(importance.shape)
