"""Schedules: functions of progress in training, in [0, 1]."""

from __future__ import annotations

import math

__all__ = ["cosine", "polynomial"]


def polynomial(progress: float, begin: float = 0.0, end: float = 0.7, power: float = 3.0) -> float:
    """Share of the final ratio that is to be pruned by now: 0 until `begin`, 1 from `end` on, fast at first.

    Polynomial decay of what remains, `1 - (1 - t)^power` (Zhu & Gupta 2017, arXiv:1710.01878, equation 1 from zero).
    After `end` the weights that stay have the rest of training to recover.
    """
    if not 0.0 <= begin < end <= 1.0:
        raise ValueError(f"begin and end must satisfy 0 <= begin < end <= 1, got {begin} and {end}")
    if power <= 0:
        raise ValueError(f"power must be more than 0, got {power}")
    t = min(max((progress - begin) / (end - begin), 0.0), 1.0)
    return float(1.0 - (1.0 - t) ** power)


def cosine(progress: float, warmup: float = 0.05) -> float:
    """Factor of the learning rate: up from 0 in a line until `warmup`, then down to 0 along half a cosine."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1.0 + math.cos(math.pi * min((progress - warmup) / (1.0 - warmup), 1.0)))
