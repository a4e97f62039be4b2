"""Which lines of a damaged journal still stand: those that replay, each for the trial that it was
written for.

Optuna numbers trials by the order of the lines that create them, so a line that is lost must not
renumber what follows.
"""

from __future__ import annotations

import json
import re
from typing import Any

from optuna.storages.journal._storage import JournalOperation, JournalStorageReplayResult

from autoprune.errors import InputError
from autoprune.plan import Plan
from autoprune.score import Score

__all__ = ["whole"]

# Optuna numbers trials by the lines that create them: one lost shifts all that follow
_CREATES = re.compile(rb'"op_code"\s*:\s*4\b')
_STUDY = re.compile(rb'"study_id"\s*:\s*(\d{1,6})\b')
_WRITER = "damaged"  # stands for the process in a line that takes a lost one's place


def whole(content: bytes) -> tuple[bytes, int]:
    """The lines that stand, and how many do not. Raises InputError where there are lines and none
    stands.

    A lost line that created a trial is replaced by one that creates it anew, as running: its later
    lines then fill it in, and where they do not, it is tried again.
    """
    replay, kept, lost, missing = JournalStorageReplayResult("reader"), list[bytes](), 0, 0
    # Lost lines that created a trial; at the end of a journal they have numbered nothing
    due: list[bytes] = []
    for line in content.splitlines(keepends=True):
        record = _record(line)
        if record is not None:
            kept += [_create_line(replay, trial) for trial in due if replay._studies]
            due = []
        if (
            record is not None
            and missing
            and replay._studies
            and record.get("trial_id") == len(replay._trials)
        ):
            missing -= 1  # the trial of this line was created by one that is lost
            kept.append(_create_line(replay, b""))
        if record is not None and _replays(replay, record):
            kept.append(line)
            continue
        creations = len(_CREATES.findall(line))
        lost, missing, due = lost + 1, missing + (not creations), due + [line] * creations
    if lost and not replay._studies:
        raise InputError(
            "no line of this run's study.journal can be read; put a copy in its place, or start "
            "again with --fresh, which keeps the old folder"
        )
    return b"".join(kept), lost


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _replays(replay: JournalStorageReplayResult, record: dict[str, Any]) -> bool:
    """Apply one line; whether it is one that Optuna and this package can read."""
    try:
        trial = record.get("trial_id")
        if trial is not None and (type(trial) is not int or trial not in replay._trials):
            return False
        if "study_id" in record and record["study_id"] not in replay._studies:
            return False
        attributes = record.get("user_attr", {})
        if "trial_id" in record and "score" in attributes:
            Score.from_json(attributes["score"])
        if "trial_id" in record and "plan" in attributes:
            Plan.from_json(attributes["plan"])
        replay.apply_logs([record])
    except Exception:  # a changed line breaks anything: keys, types, distributions, dates
        return False
    return True


def _create_line(replay: JournalStorageReplayResult, line: bytes) -> bytes:
    """The line that creates a trial in place of the lost `line`; of the study that this names, else
    the newest."""
    written = _STUDY.search(line)
    study = (
        int(written[1]) if written and int(written[1]) in replay._studies else max(replay._studies)
    )
    new = {
        "op_code": int(JournalOperation.CREATE_TRIAL),
        "worker_id": _WRITER,
        "study_id": study,
        "datetime_start": "2000-01-01T00:00:00",
    }
    replay.apply_logs([new])
    return json.dumps(new, separators=(",", ":")).encode() + b"\n"
