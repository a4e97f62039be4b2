"""What can go wrong, as a tree; each kind knows the exit status of the command line.

AutopruneError
├── InputError            2  something the user gave cannot be used
│   ├── StudyError           a study or target file: file, line and key are named
│   ├── PlanError            a plan that does not fit the model
│   ├── ModelError           a model, its weights or its data cannot be used
│   └── MissingPackage       an optional package is not installed
├── BudgetError           3  no plan meets the budget
├── VerificationError     4  an artefact is not what its record says
└── TrainingError         1  training broke down (a loss that is not finite)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "AutopruneError",
    "BudgetError",
    "InputError",
    "MissingPackage",
    "ModelError",
    "PlanError",
    "StudyError",
    "TrainingError",
    "VerificationError",
    "nearest",
]


class AutopruneError(Exception):
    """The root of every error this package raises on purpose."""

    exit_status: ClassVar[int] = 1


class InputError(AutopruneError):
    """Something the user gave cannot be used; the message says what came, what is needed and what to do."""

    exit_status = 2


class StudyError(InputError):
    """A study or target that cannot be used; names the file, the line and the key where they are known."""

    def __init__(
        self, message: str, *, file: str | None = None, key: str | None = None, line: int | None = None
    ) -> None:
        place = ", ".join(
            part
            for part in (file, f"line {line}" if line is not None else None, f"key {key!r}" if key else None)
            if part
        )
        super().__init__(f"{place}: {message}" if place else message)
        self.message, self.file, self.key, self.line = message, file, key, line


class PlanError(InputError):
    """A plan that does not fit the model it is applied to."""


class ModelError(InputError):
    """A model, its weights or its data that cannot be used."""


class MissingPackage(InputError):
    """A package that is needed for what was asked is not installed."""


class BudgetError(AutopruneError):
    """No plan meets the budget; the message says what was reachable."""

    exit_status = 3


class VerificationError(AutopruneError):
    """An exported artefact is not what its record says."""

    exit_status = 4


class TrainingError(AutopruneError):
    """Training broke down: the loss is not finite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
