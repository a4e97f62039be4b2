"""Schedules: functions of progress in training, in [0, 1]."""

from __future__ import annotations

import math

__all__ = ["learning_rate"]


def learning_rate(progress: float, schedule: str = "cosine", warmup: float = 0.05) -> float:
    """Factor of the learning rate: up from 0 in a line until `warmup`, then by the schedule.

    That is down to 0 along half a `cosine` or in a line (`linear`), or 1 (`constant`).
    """
    if progress < warmup:
        return progress / warmup
    rest = min((progress - warmup) / (1.0 - warmup), 1.0)
    return {
        "cosine": 0.5 * (1.0 + math.cos(math.pi * rest)),
        "linear": 1.0 - rest,
        "constant": 1.0,
    }[schedule]
