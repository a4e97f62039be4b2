"""What can go wrong, as a tree; each kind knows the exit status of the command line.

AutopruneError
├── InputError            2  something the user gave cannot be used
│   ├── StudyError           a study or target file: file, line and key are named
│   ├── PlanError            a plan that does not fit the model
│   ├── ModelError           a model, its weights or its data cannot be used
│   │   └── CodeError           code of the user's own raised something; its line is named
│   └── MissingPackage       an optional package is not installed
├── BudgetError           3  no plan meets the budget
├── VerificationError     4  an artefact is not what its record says
├── TrialsError           5  trials fail one after the other
└── TrainingError         1  training broke down (a loss that is not finite)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "AutopruneError",
    "BudgetError",
    "CodeError",
    "InputError",
    "MissingPackage",
    "ModelError",
    "PlanError",
    "StudyError",
    "TrainingError",
    "TrialsError",
    "VerificationError",
    "brief",
    "nearest",
    "paragraph",
    "without_passwords",
]

_PASSWORD = re.compile(r"(://[^\s:/@'\"]*):[^\s'\"]*@")
_IN_QUERY = re.compile(r"([?&](?:\w*password|passwd|pwd|token)=)[^&\s'\"]*", re.IGNORECASE)

# Characters of a message, and of its end where the middle is left out
_LONGEST, _END = 500, 170


def paragraph(text: str, longest: int = _LONGEST) -> str:
    """`text` on one line, of at most so many characters, without a character that a terminal would
    act on.

    What is left out is the middle: what came stands at the beginning, what to do at the end.
    """
    if len(text) > 20 * longest:  # before anything is done to each character
        text = f"{text[: 10 * longest]} {text[-10 * longest :]}"
    text = without_passwords(text)
    plain = "".join(
        character if character.isprintable() else _escape(character)
        for character in " ".join(text.split())
    )
    if len(plain) <= longest:
        return plain
    end = min(_END, longest // 3)
    return f"{plain[: longest - end - 5]} ... {plain[-end:]}"


def brief(problem: BaseException) -> str:
    """What an exception says, on one line of at most 300 characters."""
    return " ".join(str(problem).split())[:300]


def without_passwords(text: str) -> str:
    """`text` with `***` for the password of every URL in it."""
    return _IN_QUERY.sub(r"\1***", _PASSWORD.sub(r"\1:***@", text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class AutopruneError(Exception):
    """The root of every error this package raises on purpose; as text it is one paragraph, whole
    only in `args`."""

    exit_status: ClassVar[int] = 1

    def __str__(self) -> str:
        return paragraph(super().__str__())


class InputError(AutopruneError):
    """Something the user gave cannot be used; the message says what came, what is needed and what
    to do."""

    exit_status = 2


class StudyError(InputError):
    """A study or target that cannot be used; names the file, the line and the key where they are
    known."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        key: str | None = None,
        line: int | None = None,
    ) -> None:
        place = ", ".join(
            part
            for part in (
                file,
                f"line {line}" if line is not None else None,
                f"key {key!r}" if key else None,
            )
            if part
        )
        super().__init__(f"{place}: {message}" if place else message)
        self.message, self.file, self.key, self.line = message, file, key, line


class PlanError(InputError):
    """A plan that does not fit the model it is applied to."""


class ModelError(InputError):
    """A model, its weights or its data that cannot be used."""


class CodeError(ModelError):
    """Code of the user's own (model, loss, metric, data, adapter, plug-in) raised something; its
    line is named."""


class MissingPackage(InputError):
    """A package that is needed for what was asked is not installed."""


class BudgetError(AutopruneError):
    """No plan meets the budget; the message says what was reachable."""

    exit_status = 3


class VerificationError(AutopruneError):
    """An exported artefact is not what its record says."""

    exit_status = 4


class TrialsError(AutopruneError):
    """Trials fail one after the other; the message says what they have in common."""

    exit_status = 5


class TrainingError(AutopruneError):
    """Training broke down: the loss is not finite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
