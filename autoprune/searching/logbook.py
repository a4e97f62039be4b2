"""The log of a run, kept in its folder: whatever its listener hears, a line each with a time
stamp."""

from __future__ import annotations

import os
import time
from pathlib import Path

from autoprune import __version__
from autoprune.score import Candidate
from autoprune.searching.callback import Listener

__all__ = ["Logbook"]

# Bytes of a log; one that is longer loses its first half: a run may be gone on with for years
_MOST = 4 << 20
# Characters of a line: an exporter has errors of a whole graph
_LONGEST = 2000


class Logbook:
    """A listener that passes everything on, and appends to a file what happened when."""

    def __init__(self, listener: Listener, path: Path, begins: str) -> None:
        """Append to `path`, from `open` on, first what `begins`. Where that fails the listener is
        told, once."""
        self._listener, self._path, self._written = listener, path, True
        self._held: list[str] | None = []
        self._write(f"autoprune {__version__}: {begins}")

    def open(self) -> None:
        """Write what was heard so far, and from now on all at once: what is refused before leaves
        nothing."""
        held, self._held = self._held or [], None
        self._append("".join(held))

    def on_plan(self, seconds: float | None, trials: int) -> None:
        """Before the first trial: how long the whole may take."""
        self._listener.on_plan(seconds, trials)
        self._write(
            f"{trials} trials in all" + ("" if seconds is None else f", about {seconds:.0f} s")
        )

    def on_step(self, trial: int, what: str) -> None:
        """A piece of work begins."""
        self._listener.on_step(trial, what)
        self._write(f"trial {trial}: {what}" if trial else what)

    def progress(self, share: float) -> None:
        """Passed on alone."""
        self._listener.progress(share)

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        """A trial ended; the best inside the budget so far."""
        self._listener.on_trial(candidate, best)
        score = candidate.score
        figures = {
            "metric": score.metric,
            "loss": score.loss,
            "latency of dense": score.latency.ratio,
        }
        parts = [f"{name} {value:.4g}" for name, value in figures.items() if value is not None]
        parts += [candidate.reason] if candidate.reason else []
        parts += [f"best so far is trial {best.number}"] if best is not None else []
        self._write(f"trial {candidate.number} ends, {candidate.stage}: {'; '.join(parts)}")

    def note(self, text: str) -> None:
        """Something worth reading."""
        self._listener.note(text)
        self._write(text)

    def _write(self, text: str) -> None:
        shown = "".join(
            value if value.isprintable() else repr(value)[1:-1] for value in text[:_LONGEST]
        )
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {shown}\n"
        if self._held is None:
            self._append(line)
        else:
            self._held.append(line)

    def _append(self, lines: str) -> None:
        try:
            _append(self._path, lines.encode("utf-8", "replace"))
        except OSError as error:  # does not end a search
            if self._written:
                self._listener.note(f"{self._path} cannot be written: {error.strerror or error}")
            self._written = False


def _append(path: Path, lines: bytes) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    with os.fdopen(handle, "rb+") as file:
        if file.seek(0, os.SEEK_END) + len(lines) > _MOST:
            file.seek(-_MOST // 2, os.SEEK_END)
            kept = file.read().partition(b"\n")[2]
            file.seek(0)
            file.truncate()
            file.write(kept)
        file.write(lines)
