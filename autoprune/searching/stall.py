"""A step in which nothing moves ends: code of the user's that hangs would else hold a search for
ever.

Python code in the main thread alone can be ended so. What hangs inside of one call into C (a lock,
a driver) is ended as soon as it returns to Python, if it does; processes that measure have a limit
of their own (`measuring.hosts`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from autoprune.errors import CodeError
from autoprune.faults import users_line
from autoprune.score import Candidate
from autoprune.searching.callback import Listener, Quiet
from autoprune.study import Study

__all__ = ["watch"]

# Where only the time limit of the whole is known: fifteen fresh processes measure for so long
_LEAST_S = 300.0


@contextmanager
def watch(study: Study, listener: Listener | None) -> Iterator[Listener]:
    """The listener, told of every step; a CodeError where it hears nothing for `search.stall`.

    Without that key, but with a `search.timeout`, for as long as that, and five minutes at least.
    Without either there is no such limit. Whoever swallows the error gets it again after the same
    time.
    """
    listener, settings = listener or Quiet(), study.search
    seconds = settings.stall_s
    if seconds is None and settings.timeout_s is not None:
        seconds = max(settings.timeout_s, _LEAST_S)
    if seconds is None:
        yield listener
        return
    if threading.current_thread() is not threading.main_thread():
        if settings.stall_s is not None:
            listener.note(
                "search.stall is not kept: only in the main thread can a step that hangs be ended"
            )
        yield listener
        return
    heard = _Watched(listener, seconds)
    before = signal.signal(signal.SIGALRM, lambda _, frame: _end(seconds, frame))
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        yield heard
    finally:
        # Whoever still tells it something later starts no time any more
        heard.seconds = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _end(seconds: float, frame: FrameType | None) -> None:
    where = users_line(frame)
    raise CodeError(
        f"nothing moved for {seconds:g} s{f', in {where}' if where else ''}: this step is ended. "
        "Where it needs "
        "longer, give it a longer time, as in search: {stall: 30m}"
    )


class _Watched:
    """Hands everything on, and starts the time anew with it."""

    def __init__(self, listener: Listener, seconds: float) -> None:
        self._listener, self.seconds = listener, seconds

    def _rearm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds)

    def on_plan(self, seconds: float | None, trials: int) -> None:
        self._rearm()
        self._listener.on_plan(seconds, trials)

    def on_step(self, trial: int, what: str) -> None:
        self._rearm()
        self._listener.on_step(trial, what)

    def progress(self, share: float) -> None:
        self._rearm()
        self._listener.progress(share)

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        self._rearm()
        self._listener.on_trial(candidate, best)

    def note(self, text: str) -> None:
        self._rearm()
        self._listener.note(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)
