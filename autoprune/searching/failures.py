"""What goes wrong in a trial: the reason in a line, and when so many have failed that the search
ends."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

from autoprune.errors import AutopruneError, CodeError, TrialsError, paragraph
from autoprune.faults import Fault
from autoprune.run import Run, write_whole

__all__ = ["Failures", "ends_the_search", "reason_of"]

# Characters: a reason is a cell of a table, and its whole text lies beside the trial
_REASON = 400
_IN_A_ROW = 5  # what a few trials hit by chance, so many hit for one reason
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no later trial could be kept either


def ends_the_search(error: BaseException) -> bool:
    """Whether what a trial raised is not the trial's: an interruption, or a disk that nothing can
    be kept on."""
    if any(
        isinstance(value, OSError) and value.errno in _DISK for value in (error, error.__cause__)
    ):
        return True
    return isinstance(error, (KeyboardInterrupt, GeneratorExit, TrialsError))


def reason_of(error: BaseException) -> str:
    """Why something failed, in one line; an error of ours says its place itself."""
    return paragraph(str(error if isinstance(error, AutopruneError) else Fault.of(error)), _REASON)


class Failures:
    """Failures of a run that came one after the other; `clear` is for what succeeds between
    them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._row: list[tuple[Fault, str]] = []

    def add(self, error: BaseException, folder: Path) -> str:
        """The reason in one line; the traceback is written to `folder`/error.txt. Passes on what
        ends the search."""
        if ends_the_search(error):
            raise error
        fault = Fault.of(
            error.__cause__ if isinstance(error, CodeError) and error.__cause__ else error
        )
        reason = reason_of(error)
        text = "".join(traceback.format_exception(error))
        path = folder / "error.txt"
        write_whole(
            path, lambda file: file.write_text(text, encoding="utf-8", errors="backslashreplace")
        )
        self._row.append((fault, reason))
        return reason

    def clear(self) -> None:
        """Something succeeded."""
        self._row.clear()

    def check(self) -> None:
        """Raise TrialsError where so many failed in a row that the next would too: says what they
        have in common."""
        if len(self._row) < _IN_A_ROW:
            return
        ways = {(fault.kind, fault.place) for fault, _ in self._row}
        what = "all in the same way" if len(ways) == 1 else f"in {len(ways)} ways, the last"
        raise TrialsError(
            f"{len(self._row)} trials failed one after the other, {what}: "
            f"{paragraph(self._row[-1][1], 220)}. The "
            f"tracebacks are in {self._run.folder}/trials/*/error.txt; remove the cause and give "
            "the same command again: "
            "what was evaluated and trained so far is kept"
        )
