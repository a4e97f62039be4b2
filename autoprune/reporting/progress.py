"""Progress of a search, fed with its events: a bar on a terminal, lines elsewhere, nothing where
that is asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from autoprune.reporting import words
from autoprune.score import Candidate
from autoprune.searching.callback import CLOSING_S

__all__ = ["Bar", "Clock", "Lines", "Silent", "shown"]

_REFRESH_S = 0.2


@dataclass
class Clock:
    """Time left: the plan's before the first trial has ended, afterwards by the trials' own pace,
    and the closing."""

    now: Callable[[], float] = time.monotonic
    trials: int = 0
    planned_s: float | None = None
    position: float = 0.0  # trials done, with the share of the running one
    _start: float = 0.0
    # When the first trial after the dense model began, and its number
    _first: tuple[float, float] | None = None

    def plan(self, seconds: float | None, trials: int) -> None:
        """The whole is expected to take `seconds` from now."""
        self.trials, self.planned_s, self._start = trials, seconds, self.now()
        # Another search may have been told of before
        self.position, self._first = 0.0, None

    def move(self, position: float) -> None:
        """The search stands at `position`, in trials."""
        self.position = max(self.position, position)
        # Training the dense model says nothing about the others' pace
        if position >= 1 and self._first is None:
            self._first = (self.now(), position)

    def left(self) -> float | None:
        """Seconds left, or None where nothing is known yet."""
        if self._first is not None and self.position - self._first[1] >= 1:
            since, begun = self._first
            trials = (
                (self.now() - since)
                / (self.position - begun)
                * max(0.0, self.trials - self.position)
            )
            return trials + CLOSING_S
        if self.planned_s is None:
            return None
        return max(0.0, self.planned_s - (self.now() - self._start))

    def text(self) -> str:
        """`about 3 min 20 s left`, or nothing."""
        left = self.left()
        return "" if left is None else f"about {words.span(left)} left"


class Silent(AbstractContextManager["Silent"]):
    """A listener that shows nothing."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to put away."""

    def on_plan(self, seconds: float | None, trials: int) -> None:
        """The search will take so long, where that is known."""

    def on_step(self, trial: int, what: str) -> None:
        """A step of a trial begins."""

    def progress(self, share: float) -> None:
        """The share of the running step that is done, in [0, 1]."""

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        """A trial has ended; `best` is the best feasible one so far."""

    def note(self, text: str) -> None:
        """Something the user should know."""


@dataclass
class Lines(Silent):
    """A listener that writes a line for each trial, for logs and pipes."""

    console: Console
    clock: Clock = field(default_factory=Clock)
    _done: int = 0

    def on_plan(self, seconds: float | None, trials: int) -> None:
        """Write the estimate of the whole."""
        self.clock.plan(seconds, trials)
        self._write(estimate(seconds, trials))

    def on_step(self, trial: int, what: str) -> None:
        """Write what is not a step of one of the many trials: the dense model, the final ones, the
        export."""
        self.clock.move(trial)
        if trial == 0 or trial < self._done:
            self._write(what)

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        """Write the trial's outcome, the best so far and the time left."""
        self._done = max(self._done, candidate.number + 1)
        self.clock.move(self._done)
        parts = [
            f"trial {_of(candidate.number, self.clock.trials)}: {words.outcome(candidate)}",
            best_so_far(best),
            self.clock.text(),
        ]
        self._write("; ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        """Write it."""
        self._write(text)

    def _write(self, text: str) -> None:
        self.console.print(escape(text), highlight=False, soft_wrap=True)


class Bar(Silent):
    """A listener that draws a bar: trial, what is running, best so far, time left.

    It is drawn anew by events alone: a thread that redraws it would disturb the latencies measured
    meanwhile.
    """

    def __init__(self, console: Console, clock: Clock | None = None) -> None:
        """A bar on `console`; it shows from `__enter__` on."""
        self.clock = clock or Clock()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[best]}"),
            TextColumn("{task.fields[left]}", style="dim"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self.task = self.bar.add_task("", total=None, best="", left="")
        self.trial, self.done, self.what, self.best = 0, 0, "preparing", ""
        self._drawn = 0.0

    def __enter__(self) -> Bar:
        """Draw the bar."""
        self.bar.start()
        self._draw()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        self.bar.stop()

    def on_plan(self, seconds: float | None, trials: int) -> None:
        """Write the estimate of the whole above the bar."""
        self.clock.plan(seconds, trials)
        self.note(estimate(seconds, trials))

    def on_step(self, trial: int, what: str) -> None:
        """Show what is running."""
        self.trial, self.what = trial, what
        self.clock.move(trial)
        self._draw()

    def progress(self, share: float) -> None:
        """Move the bar, at most five times a second."""
        self.clock.move(self.trial + min(max(share, 0.0), 0.99))
        if self.clock.now() - self._drawn >= _REFRESH_S:
            self._draw()

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        """Move the bar and show the best so far."""
        self.done, self.best = max(self.done, candidate.number + 1), best_so_far(best)
        self.what = "choosing the next plan"
        self.clock.move(self.done)
        self._draw()

    def note(self, text: str) -> None:
        """Write it above the bar."""
        self.bar.console.print(escape(text), highlight=False)
        self._draw()

    def _draw(self) -> None:
        trials, many = self.clock.trials, self.trial > 0 and self.trial >= self.done
        name = f"trial {_of(self.trial, trials)}: " if many else ""
        total, done = (trials, min(self.clock.position, trials)) if trials else (None, 0)
        left = self.clock.text() if many or self.done == 0 else ""
        self.bar.update(
            self.task,
            description=escape(name + self.what),
            total=total,
            completed=done,
            best=self.best,
            left=left,
        )
        self.bar.refresh()
        self._drawn = self.clock.now()


def shown(console: Console, *, quiet: bool = False) -> Silent:
    """The listener for a console: a bar on a terminal, lines elsewhere, nothing where it is to be
    quiet."""
    if quiet:
        return Silent()
    return Bar(console) if console.is_terminal else Lines(console)


def estimate(seconds: float | None, trials: int) -> str:
    """What the whole will take, in words."""
    if seconds is None:
        return f"{trials} trials"
    crowd = words.busy()
    return (
        f"{trials} trials, about {words.expected_time(seconds)} in "
        f"all{f'; {crowd}' if crowd else ''}"
    )


def _of(number: int, trials: int) -> str:
    return f"{number} of {trials}" if number < trials else f"{number}"


def best_so_far(best: Candidate | None) -> str:
    """The best trial so far, in words."""
    return "" if best is None else f"best: trial {best.number}, {words.outcome(best)}"
