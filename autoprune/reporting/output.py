"""Where a command's results go."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.reporting.progress import Silent

__all__ = ["Output", "reserve_stdout"]

# Of what is written to a file or a pipe, which have no width of their own; rich would take 80 and
# fold every table
_WIDTH = 160
_own: TextIO | None = None  # stdout, where everybody else's goes to stderr


@contextlib.contextmanager
def reserve_stdout() -> Iterator[None]:
    """Keep stdout for the one JSON object: what anybody else prints meanwhile, child processes too,
    goes to stderr.

    A model, a data set, a library in C write to the file descriptor, which processes inherit; so
    that is what is moved.
    """
    global _own
    before, kept = sys.stdout, None
    before.flush()
    # A stream without a descriptor, as tests have
    with contextlib.suppress(OSError, ValueError):
        if before.fileno() == 1:
            kept = os.dup(1)
            os.dup2(2, 1)
    _own, sys.stdout = (
        before if kept is None else os.fdopen(kept, "w", encoding=before.encoding),
        sys.stderr,
    )
    try:
        yield
    finally:
        if kept is not None:
            with contextlib.suppress(BrokenPipeError):
                _own.flush()
            os.dup2(kept, 1)
            with contextlib.suppress(BrokenPipeError):
                _own.close()
        _own, sys.stdout = None, before


@dataclass(frozen=True)
class Output:
    """Tables, or one JSON object, on stdout; progress on stderr."""

    as_json: bool = False
    quiet: bool = False

    def show(self, record: Any, *tables: Any) -> None:
        """Print `record` where JSON is asked for, else the tables and lines of text unless it is to
        be quiet."""
        if self.as_json:
            print(json.dumps(record, indent=2), file=_own or sys.stdout, flush=True)
        elif not self.quiet:
            for table in tables:
                console().print(table, markup=False)

    def listener(self) -> Silent:
        """Who is told of a search's progress."""
        from autoprune.reporting import progress

        return progress.shown(console(err=True), quiet=self.quiet or self.as_json)


def console(err: bool = False) -> Console:
    """A console on stdout or stderr; wide where nobody looks at it directly."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDTH, highlight=False)
