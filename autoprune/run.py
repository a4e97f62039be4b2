"""Run: the folder of a search: its paths, its lock, whole-or-not-at-all writes, its caches."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autoprune import scratch
from autoprune.errors import InputError
from autoprune.files import open_plain, read_json

__all__ = ["Run", "free_name", "write_whole"]

# Optuna's lock on the journal is a link by design, renamed before it is removed: a kill may leave
# either.
_LOCK_LINK = re.compile(r"study\.journal\.lock([0-9a-f-]{36}\.rename)?")
# Levels of a run's folder: cache/KIND/KEY.json, trials/NUMBER/model.safetensors
_DEPTH = 3


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there: readers see the old or
    the new, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        # A full disk is told of a descriptor
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def free_name(path: Path, mark: str) -> Path:
    """The first of `path`.`mark`1, `path`.`mark`2, ... that nothing has, a dangling link
    neither."""
    number = 1
    while os.path.lexists(place := path.with_name(f"{path.name}.{mark}{number}")):
        number += 1
    return place


@dataclass(frozen=True)
class Run:
    """Paths of one run, all under `folder`.

    Trials, models and figures are shared by all budgets. Study, front, table and the exported best
    belong to one budget and lie together: those of the run's first in `folder` itself, of each
    other one in its `part`, as `latency=30%`.
    """

    folder: Path
    part: str = ""

    @property
    def results(self) -> Path:
        """Where study, front, table and the exported best of this budget lie."""
        return self.folder / self.part

    @property
    def has_results(self) -> bool:
        """Whether a search has written a front here, under any budget."""
        return any(self.folder.glob("front.json")) or any(self.folder.glob("*/front.json"))

    @property
    def study(self) -> Path:
        """The resolved study."""
        return self.results / "study.yaml"

    @property
    def journal(self) -> Path:
        """Optuna's journal: the truth about the trials."""
        return self.folder / "study.journal"

    @property
    def dense(self) -> Path:
        """Folder of the dense model: model.safetensors, score.json."""
        return self.folder / "dense"

    @property
    def front(self) -> Path:
        """The front, derived from the journal and rewritten whole."""
        return self.results / "front.json"

    @property
    def table(self) -> Path:
        """trials.csv, derived from the journal and rewritten whole."""
        return self.results / "trials.csv"

    @property
    def best(self) -> Path:
        """The exported artefact."""
        return self.results / "best"

    def trial(self, number: int) -> Path:
        """Folder of a trial on the front: plan.json, model.safetensors, score.json."""
        return self.folder / "trials" / str(number)

    def recall(self, kind: str, key: str) -> Any:
        """What `cache` kept under this kind and key, or None."""
        path = self.folder / "cache" / kind / f"{key}.json"
        try:
            kept = read_json(path) if path.is_file() else None
            return (
                kept["value"]
                if kept is not None and kept["sha256"] == _digest(kept["value"])
                else None
            )
        except (ValueError, KeyError, TypeError):
            # torn, damaged, or of an earlier release: made anew
            return None

    def cache(self, kind: str, key: str, value: Any) -> None:
        """Keep a JSON value, whole or not at all, with its checksum. What cannot take its place
        gives way."""
        path = self.folder / "cache" / kind / f"{key}.json"
        if path.is_dir():
            path.rename(path.with_name(f"{path.name}.damaged"))
        self.write_json(path, {"sha256": _digest(value), "value": value})

    @staticmethod
    def write_json(path: Path, value: Any) -> None:
        """Write indented JSON, whole or not at all."""
        text = json.dumps(value, indent=2, allow_nan=False)
        write_whole(path, lambda temporary: temporary.write_text(text + "\n"))

    @staticmethod
    def write_yaml(path: Path, value: Any) -> None:
        """Write YAML in the given key order, whole or not at all."""
        text = yaml.safe_dump(value, sort_keys=False)
        write_whole(path, lambda temporary: temporary.write_text(text))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run alone, temporary files too; the lock goes with the process, however it ends.

        Raises InputError where it is taken, and where a link in the folder leads what a run writes
        out of it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ".lock"
        try:
            lock = open_plain(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EINVAL):
                raise _foreign(path) from error
            raise
        with os.fdopen(lock, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = (
                    f"another search is running in {self.folder}; wait for it, or give "
                    "another --out"
                )
                raise InputError(message) from error
            self._refuse_foreign()
            with scratch.inside(self.folder / ".scratch"):
                yield

    def sweep(self) -> None:
        """Remove the temporary files and folders that a killed process left. Needs the lock."""
        ours = re.compile(r"\.(best|\w+\.(json|csv|yaml|safetensors|journal))\..+")
        for entry in self._entries():
            if ours.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif ours.fullmatch(entry.name) or (
                _LOCK_LINK.fullmatch(entry.name) and entry.is_symlink()
            ):
                os.unlink(entry.path)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """What lies in the run's folder, three levels down; no link is followed."""
        level: list[str] = [str(self.folder)]
        for depth in range(_DEPTH):
            deeper: list[str] = []
            for folder in level:
                with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                    for entry in entries:
                        yield entry
                        if depth + 1 < _DEPTH and entry.is_dir(follow_symlinks=False):
                            deeper.append(entry.path)
            level = deeper

    def _refuse_foreign(self) -> None:
        """Raise InputError where a link, a pipe or a device lies here, or the journal is another
        file's too."""
        for entry in self._entries():
            plain = entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
            if not plain and not _LOCK_LINK.fullmatch(entry.name):
                raise _foreign(Path(entry.path))
        if self.journal.is_dir() or (self.journal.exists() and self.journal.stat().st_nlink > 1):
            raise InputError(
                f"{self.journal} is a folder, or a file that has another name too (a hard link), "
                "which would be "
                "written as well; put a copy in its place, or give another --out"
            )

    def move_away(self) -> Path:
        """Rename the folder to the first free NAME.1, NAME.2, ... and return that; nothing is
        deleted."""
        return self.folder.rename(free_name(self.folder, ""))


def _digest(value: Any) -> str:
    """Of a JSON value as it is read again: its keys are words."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _foreign(path: Path) -> InputError:
    what = f"a link to {os.readlink(path)}" if path.is_symlink() else "a pipe, a device or a folder"
    return InputError(
        f"{path} is {what}, and a run writes into its own folder only; remove it, or give another "
        "--out"[:500]
    )
