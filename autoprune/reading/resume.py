"""Starting a run, or going on with one: what of its study may have changed since, and what may
not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from autoprune.budget import Budget
from autoprune.errors import InputError, without_passwords
from autoprune.files import read_mapping
from autoprune.reading.schema import Recovery, Training
from autoprune.reading.yaml_lines import KeyPath
from autoprune.run import Run

__all__ = ["differences", "open_run", "refuse_changed"]

_MAY_CHANGE = (
    ("budget",),
    ("search", "trials"),
    ("search", "finalists"),
    ("search", "timeout"),
    ("search", "stall"),
    ("export",),
    ("folder",),
)
_NOTHING = object()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two resolved studies, a line each as `search.seed: 0 -> 1`.

    Left out is what may change when a run is continued: budget, trials, finalists, timeout, export,
    and where the study lies.
    """
    return list(_differing(old, new, ()))


def refuse_changed(resolved: Mapping[str, Any], folder: Path) -> None:
    """Raise InputError where the run in `folder` has results of another study, or `folder` holds
    something else."""
    run = Run(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give another folder with --out")
    if not run.study.exists():
        if folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(
                f"{folder} is not empty and holds no run of autoprune; give another folder with "
                "--out"
            )
        return
    if not _has_begun(run):
        return
    old = _recorded_study(run)
    changed = differences(old, resolved)
    if changed:
        raise InputError(
            f"{folder} holds a run of another study, and only budget, trials, finalists, timeout "
            "and export may "
            f"change; what differs: {'; '.join(changed)}. Start again with --fresh, which keeps "
            "the old folder as "
            f"{folder.name}.1, or give another folder with --out"
        )


def open_run(resolved: Mapping[str, Any], folder: Path, *, fresh: bool = False) -> Run:
    """The run in `folder`; a `fresh` one moves an earlier run away first.

    A run that has found nothing out yet gets the study written to it. Any other is left as it is:
    results under another budget than its own go to a folder in it that is named after that budget,
    and the search writes the study there once it is known that it goes on. Raises InputError as
    `refuse_changed`, and where another search is running there.
    """
    run = Run(folder)
    if fresh and run.study.exists():
        with run.lock():
            run.move_away()
    refuse_changed(resolved, folder)
    with run.lock():
        if not _has_begun(run):
            Run.write_yaml(run.study, dict(resolved))
            return run
        own, budget = (
            Budget.parse(study.get("budget") or {}) for study in (_recorded_study(run), resolved)
        )
    return run if set(own.limits) == set(budget.limits) else Run(folder, budget.folder_name)


def _has_begun(run: Run) -> bool:
    """Whether something was found out already that another study could spoil."""
    return run.study.exists() and (run.journal.exists() or run.dense.exists())


def _recorded_study(run: Run) -> dict[str, Any]:
    """The study that a run was begun with. Raises InputError where that cannot be read."""
    try:
        old = read_mapping(run.study)
    except ValueError as error:
        raise InputError(
            f"{run.folder}: {error}; --fresh starts again and keeps the old folder as NAME.1"
        ) from error
    if not isinstance(old.get("budget") or {}, dict):
        raise InputError(
            f"{run.study} has no budget; --fresh starts again and keeps the old folder as NAME.1"
        )
    search = old.get("search")
    # Runs before this had the password in it
    if isinstance(search, dict) and isinstance(search.get("storage"), str):
        old["search"] = search | {"storage": without_passwords(search["storage"])}
    return old


def _before(path: KeyPath) -> Any:
    """What was so before a key of a recipe was there, its default; nothing of any other."""
    sections: dict[KeyPath, BaseModel] = {
        ("task", "training"): Training(),
        ("recovery",): Recovery(),
    }
    return getattr(sections.get(path[:-1]), str(path[-1]), _NOTHING) if path else _NOTHING


def _differing(old: Any, new: Any, path: KeyPath) -> Iterator[str]:
    if path in _MAY_CHANGE:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys((*old, *new)):
            yield from _differing(old.get(key, _NOTHING), new.get(key, _NOTHING), (*path, key))
    elif old is _NOTHING and new == _before(path):
        return
    elif old != new:
        first, second = ("nothing" if side is _NOTHING else repr(side) for side in (old, new))
        yield f"{'.'.join(path)}: {first} -> {second}"
