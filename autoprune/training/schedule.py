"""Schedules: functions of progress in training, in [0, 1]."""

from __future__ import annotations

import math

__all__ = ["cosine"]


def cosine(progress: float, warmup: float = 0.05) -> float:
    """Factor of the learning rate: up from 0 in a line until `warmup`, then down to 0 along half a cosine."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min((progress - warmup) / (1.0 - warmup), 1.0)))
