"""Whether other processes needed the cores that timed calls needed: then what is timed is the
neighbours.

A model on two threads of a machine with two cores, one of them busy with something else, runs at
half its speed, and a pruned one at another part of its own: a ratio of 0.30 became 0.35. Processes
are told from one another by the CPU time that the system counts in all, less this process's own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

__all__ = ["STRETCH_S", "Contention", "busy_s", "cores"]

# Of calls at least that are judged together; the system counts CPU time in steps of 10 ms
STRETCH_S = 0.1
# Cores that others may take beyond what is free
_SPARE = 0.25


class Contention:
    """Tells the calls made while others left less than `threads` cores, stretch by stretch."""

    def __init__(self, threads: int) -> None:
        self._cores = cores()
        self._room = len(self._cores) - threads + _SPARE
        self._quiet = np.zeros(0, dtype=bool)
        self.lost_s, self.judged, self._free = 0.0, False, True
        self.restart()

    def restart(self) -> None:
        """A stretch begins now."""
        self._wall, self._own, self._all = (
            time.perf_counter(),
            time.process_time(),
            busy_s(self._cores),
        )
        self._begin = len(self._quiet)

    def stretch(self, pair_s: float) -> int:
        """How many pairs of calls of `pair_s` seconds can be judged."""
        return max(1, math.ceil(STRETCH_S / max(pair_s, 1e-6)))

    def quiet(self, count: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of `count` pairs of calls had the cores that they needed, (count,); those since the
        last call are new.

        While a stretch is too short (`judged` is false) it passes for what the one before was; more
        calls decide.
        """
        elapsed = time.perf_counter() - self._wall
        others = (busy_s(self._cores) - self._all - (time.process_time() - self._own)) / max(
            elapsed, 1e-9
        )
        self.judged = elapsed >= STRETCH_S
        if self.judged:
            self._free = others <= self._room
            self.lost_s += 0.0 if self._free else elapsed
        self._quiet = np.concatenate(
            [self._quiet[: self._begin], np.full(count - self._begin, self._free)]
        )
        if self.judged:
            self.restart()
        return self._quiet


def cores() -> list[int]:
    """Those that this process may run on."""
    process = psutil.Process()
    return (
        process.cpu_affinity()
        if hasattr(process, "cpu_affinity")
        else list(range(os.cpu_count() or 1))
    )


def busy_s(cores: Sequence[int]) -> float:
    """Seconds that all processes, and other guests of the machine's host, have had these cores
    since it started."""
    # Guests' time is in user and nice already
    apart = ("idle", "iowait", "guest", "guest_nice")
    by_core = psutil.cpu_times(percpu=True)
    times = [by_core[core] for core in cores if core < len(by_core)]
    return float(
        sum(
            sum(core_times) - sum(getattr(core_times, name, 0.0) for name in apart)
            for core_times in times
        )
    )
