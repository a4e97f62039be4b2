"""Where Optuna keeps the trials: the run's journal, mended before it is opened, or any storage by its URL."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import optuna

from autoprune.errors import InputError, MissingPackage
from autoprune.run import Run
from autoprune.study import Study

__all__ = ["mend", "opened"]


def opened(study: Study, run: Run) -> tuple[Any, str]:
    """The storage, and how the names of this run's studies in it begin. Needs the run's lock.

    A storage by URL may hold other runs of the same study, so there the run's own mark is in the names.
    Raises InputError where it cannot be opened, MissingPackage where its driver is not installed.
    """
    url = study.search.storage
    if url is None:
        return _journal(run.journal), f"{study.name} ["
    mark = run.cached("storage", "mark")
    if mark is None:
        mark = secrets.token_hex(4)
        run.cache("storage", "mark", mark)
    try:
        return optuna.storages.get_storage(url), f"{study.name} {mark} ["
    except ImportError as error:
        raise MissingPackage(f"search.storage {url!r} needs a package that is not installed: {error}") from error
    except Exception as error:  # every driver has kinds of its own
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"search.storage {url!r} cannot be opened: {said[0]}") from error


def mend(journal: Path) -> bool:
    """Cut off last lines that a crash tore, and clear a stale lock: either spoils later opens. Needs the run's lock.

    Gives whether a torn line was found.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return False
    content = journal.read_bytes()
    end = len(content)
    while end:
        start = content.rfind(b"\n", 0, end - 1) + 1
        if content[start:end].endswith(b"\n") and _is_record(content[start:end]):
            break
        end = start
    if end == len(content):
        return False
    with open(journal, "rb+") as file:
        file.truncate(end)
    return True


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _journal(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    mend(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, AssertionError) as error:
        raise InputError(
            f"{path} cannot be read as a journal ({error}); start anew with --fresh, which keeps the old folder"
        ) from error
