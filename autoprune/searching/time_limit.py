"""The time limit of a search: what is kept of it for training, and for what follows the last
trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from autoprune.searching.callback import CLOSING_S, FRESH_S

__all__ = ["TimeLimit"]


@dataclass
class TimeLimit:
    """Counts from its making on, so it is made before anything else is done. `limit_s` None: there
    is none."""

    limit_s: float | None
    now: Callable[[], float] = time.monotonic
    closing_s: float = CLOSING_S
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        """The clock starts."""
        self._start = self.now()

    def prepared(self) -> None:
        """What precedes the first trial is done; the export of a model that took long to prepare
        takes long too."""
        self.closing_s = max(CLOSING_S, self.now() - self._start)

    def over(self, reserve_s: float = 0.0) -> bool:
        """Whether nothing is left but `reserve_s` and the closing."""
        return self.limit_s is not None and self._left() < reserve_s

    def over_for_judging(self, training_s: float, count: int) -> bool:
        """Whether what is left is for training `count` plans, which is granted half of the time at
        most."""
        if self.limit_s is None:
            return False
        half = max(0.0, self.limit_s - self.closing_s) / 2
        return self.over(min((training_s + FRESH_S) * count, half))

    def shortfall(self, baseline_s: float, training_s: float) -> str | None:
        """Where the limit is less than the least that a search takes, a sentence that says so; else
        None."""
        least = self.now() - self._start + baseline_s + training_s + FRESH_S + self.closing_s
        if self.limit_s is None or self.limit_s >= least:
            return None
        return (
            f"a time limit of {self.limit_s:g} s is less than the least that this search takes, "
            f"about {least:.0f} s: "
            "preparation and the dense model "
            f"{least - training_s - FRESH_S - self.closing_s:.0f}, one plan measured "
            f"and trained {training_s + FRESH_S:.0f}, measured again, exported and verified "
            f"{self.closing_s:.0f}; "
            "it ends when that is done"
        )

    def _left(self) -> float:
        assert self.limit_s is not None
        return self.limit_s - self.closing_s - (self.now() - self._start)
