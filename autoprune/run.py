"""Run: the folder of a search: its paths, its lock, whole-or-not-at-all writes, its caches."""

from __future__ import annotations

import contextlib
import fcntl
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

from autoprune.errors import InputError

__all__ = ["Run", "write_whole"]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there: readers see the old or the new, whole."""
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
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Run:
    """Paths of one run, all under `folder`.

    Trials, models and figures are shared by all budgets. Study, front, table and the exported best belong to one budget
    and lie together: those of the run's first in `folder` itself, of each other one in its `part`, as `latency=30%`.
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

    def cached(self, kind: str, key: str) -> Any:
        """What `cache` kept under this kind and key, or None."""
        path = self.folder / "cache" / kind / f"{key}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def cache(self, kind: str, key: str, value: Any) -> None:
        """Keep a JSON value, whole or not at all."""
        self.write_json(self.folder / "cache" / kind / f"{key}.json", value)

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
    def locked(self) -> Iterator[None]:
        """Hold the run alone; the lock goes with the process, however it ends. Raises InputError where it is taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"another search is running in {self.folder}; wait for it, or give another --out"
                raise InputError(message) from error
            yield

    def sweep(self) -> None:
        """Remove the temporary files and folders that a killed process left. Needs the lock."""
        ours = re.compile(r"\.(best|\w+\.(json|csv|yaml|safetensors))\..+")
        for pattern in (".*", "*/.*", "*/*/.*"):
            for path in self.folder.glob(pattern):
                if ours.fullmatch(path.name) and path.is_dir():
                    shutil.rmtree(path)
                elif ours.fullmatch(path.name):
                    path.unlink()

    def move_away(self) -> Path:
        """Rename the folder to the first free NAME.1, NAME.2, ... and return that; nothing is deleted."""
        number = 1
        while (target := self.folder.with_name(f"{self.folder.name}.{number}")).exists():
            number += 1
        return self.folder.rename(target)
