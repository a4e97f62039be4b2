"""Ctrl-C or SIGTERM, in two steps: the first lets the search finish in order, the second ends the
process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["STATUS", "Interrupt"]

STATUS = 130  # of a process that was interrupted


class Interrupt:
    """A context in which the first SIGINT or SIGTERM raises KeyboardInterrupt in the main thread,
    once.

    `requested` tells of it. A second one ends the process with status 130, whatever it is doing.
    Outside the main thread, and of a signal that is ignored, nothing changes.
    """

    def __init__(self) -> None:
        """Nothing is changed before `__enter__`."""
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        """Take the signals over."""
        main = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGINT, signal.SIGTERM):
            if main and signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, before in self._before.items():
            signal.signal(number, before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if sys.stderr.isatty():
                # A progress bar hides the cursor
                os.write(sys.stderr.fileno(), b"\x1b[?25h\n")
            os._exit(STATUS)
        self.requested = True
        raise KeyboardInterrupt
