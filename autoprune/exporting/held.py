"""What a check of `verify` gives, and how a figure is held to its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["Check", "Failed", "Found", "Held", "mismatches"]


class Found(NamedTuple):
    """What a check says, its figures, and what it could not check, each with the reason."""

    detail: str
    figures: dict[str, Any]
    unchecked: Mapping[str, str] = {}


Check = Callable[[], Found]


class Failed(Exception):
    """A check that did not pass; `figures` are what it compared."""

    def __init__(self, detail: str, **figures: Any) -> None:
        """`detail` says what was found and what was recorded."""
        super().__init__(detail)
        self.figures = figures


class Held(NamedTuple):
    """A figure as it was found here, as it is recorded, and by which share of the larger of the two
    they may differ."""

    now: float | None
    recorded: float | None
    within: float = 1e-9


def mismatches(figures: Mapping[str, Held]) -> list[str]:
    """A phrase for each figure that is not what is recorded, by its name in score.json; None agrees
    with None alone."""
    unlike = []
    for name, (now, recorded, within) in figures.items():
        if now is None or recorded is None:
            agree = now is recorded
        else:
            agree = abs(now - recorded) <= within * max(abs(now), abs(recorded)) + 1e-12
        if not agree:
            shown = "none is recorded" if recorded is None else f"recorded {_digits(recorded)}"
            unlike.append(f"{name} {'has no value here' if now is None else _digits(now)}, {shown}")
    return unlike


def _digits(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
