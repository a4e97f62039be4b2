"""Where Optuna keeps the trials: the run's journal, mended before it is opened, or any storage by
its URL."""

from __future__ import annotations

import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import BaseJournalBackend

from autoprune.errors import InputError, MissingPackage, without_passwords
from autoprune.files import read_plain
from autoprune.run import Run, free_name, write_whole
from autoprune.searching.optuna_study.journal_lines import whole
from autoprune.study import Study

__all__ = ["mend", "open_journal", "open_storage"]

_VARIABLE = "AUTOPRUNE_STORAGE"
_LIMIT = 2**31  # bytes; a thousand trials take some megabytes


def open_storage(study: Study, run: Run, change: bool = True) -> tuple[Any, str, str | None]:
    """The storage, how the names of this run's studies in it begin, and what is to be said of it.
    Needs the run's lock.

    Without `change` the run's journal is only read.

    A storage by URL may hold other runs of the same study, so there the run's own mark is in the
    names. Raises InputError where it cannot be opened, MissingPackage where its driver is not
    installed.
    """
    url = study.search.storage
    if url is None:
        storage, said = open_journal(run.journal, change)
        return storage, f"{study.name} [", said
    if url == without_passwords(url) and "***" in url:  # of a run's own study.yaml
        url = os.environ.get(_VARIABLE, "")
        if without_passwords(url) != study.search.storage:
            raise InputError(
                f"the password of search.storage {study.search.storage!r} is not kept in a run; "
                "give the whole URL in "
                f"the environment variable {_VARIABLE}"
            )
    mark = run.recall("storage", "mark")
    if mark is None:
        mark = secrets.token_hex(4)
        run.cache("storage", "mark", mark)
    try:
        return optuna.storages.get_storage(url), f"{study.name} {mark} [", None
    except ImportError as error:
        raise MissingPackage(
            f"search.storage {url!r} needs a package that is not installed: {error}"
        ) from error
    except Exception as error:  # every driver has kinds of its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        url = without_passwords(url)
        raise InputError(f"search.storage {url!r} cannot be opened: {lines[0]}") from error


def mend(journal: Path) -> str | None:
    """Take out lines that cannot be read, and clear a stale lock: either spoils later opens. Needs
    the run's lock.

    What the file was is kept beside it, as NAME.damaged-N, before anything is changed; gives what
    is to be said of that. Raises InputError where no line of it can be read.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return None
    content = _content(journal)
    kept, lines = whole(content)
    if kept == content:
        return None
    copy = _kept_beside(journal, content)
    write_whole(journal, lambda temporary: temporary.write_bytes(kept))
    return (
        f"{journal} was damaged: {lines} lines cannot be read; as it was it is in "
        f"{copy.name}, the rest is used"
    )


class _Kept(BaseJournalBackend):
    """The lines of a journal that can be read, in memory: what reads a run does not change it."""

    def __init__(self, path: Path) -> None:
        kept, lost = whole(_content(path) if path.exists() else b"")
        self._logs: list[dict[str, Any]] = [json.loads(line) for line in kept.splitlines()]
        self.damage = (
            f"{path} is damaged: {lost} lines of it cannot be read and are left out"
            if lost
            else None
        )
        if self.damage is not None:
            logging.getLogger("autoprune").warning(self.damage)

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise NotImplementedError("this journal is read only")


def _content(journal: Path) -> bytes:
    try:
        return read_plain(journal, _LIMIT)
    except OSError as error:
        raise InputError(
            f"{journal} cannot be read: {error.strerror}; give another --out"
        ) from error


def _kept_beside(journal: Path, content: bytes) -> Path:
    copy = free_name(journal, "damaged-")
    write_whole(copy, lambda temporary: temporary.write_bytes(content))
    return copy


def open_journal(path: Path, change: bool) -> tuple[Any, str | None]:
    """The storage of a journal file, and what is said of damage in it; without `change` the file
    is left as it is."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        if not change:
            kept = _Kept(path)
            return JournalStorage(kept), kept.damage
        said = mend(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path))), said
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as a journal ({str(error)[:100]}); start again with --fresh, "
            "which keeps this folder"
        ) from error
