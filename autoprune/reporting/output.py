"""Where a command's results go."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.reporting.progress import Silent

__all__ = ["Output"]

_WIDTH = 160  # of what is written to a file or a pipe


@dataclass(frozen=True)
class Output:
    """Tables, or one JSON object, on stdout; progress on stderr."""

    as_json: bool = False
    quiet: bool = False

    def show(self, record: Any, *tables: Any) -> None:
        """Print `record` where JSON is asked for, else the tables and lines of text unless it is to be quiet."""
        if self.as_json:
            print(json.dumps(record, indent=2))
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
