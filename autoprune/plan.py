"""Plan: what is done to each group. Immutable, hashable, JSON, versioned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoprune.errors import PlanError

__all__ = ["Choice", "Plan"]

VERSION = 1


@dataclass(frozen=True)
class Choice:
    """One decision: `technique` removes the share `ratio`, least important by `criterion` first; 1
    is a whole block."""

    technique: str
    ratio: float
    criterion: str = "l1"

    def __post_init__(self) -> None:
        if not 0.0 <= self.ratio <= 1.0:
            raise PlanError(f"ratio is the share removed, in [0, 1]; got {self.ratio}")


@dataclass(frozen=True)
class Plan:
    """Choices by group key (`Group.key`); groups that are not named are left as they are.

    Choices of ratio 0 are dropped and keys sorted, so plans that do the same are equal and have one
    `digest`.
    """

    choices: Mapping[str, Choice] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kept = {
            key: self.choices[key] for key in sorted(self.choices) if self.choices[key].ratio > 0
        }
        for key, choice in kept.items():
            if key.endswith(":blocks") != (choice.ratio == 1):
                what = (
                    "a block goes whole, at a ratio of 1"
                    if choice.ratio < 1
                    else "of units and weights something must stay"
                )
                raise PlanError(
                    f"{choice.technique} cannot remove the share {choice.ratio:g} of {key!r}: "
                    f"{what}"
                )
        object.__setattr__(self, "choices", kept)

    def __hash__(self) -> int:
        return hash(tuple(self.choices.items()))

    def __iter__(self) -> Iterator[tuple[str, Choice]]:
        return iter(self.choices.items())

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name this plan's contents."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """A JSON object: `{"version": 1, "choices": {"conv1:units": {"technique": ..., "ratio":
        ..., ...}}}`."""
        choices = {
            key: {
                "technique": choice.technique,
                "ratio": choice.ratio,
                "criterion": choice.criterion,
            }
            for key, choice in self
        }
        return {"version": VERSION, "choices": choices}

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """The plan that `to_json` wrote. Raises PlanError for anything else."""
        if not isinstance(data, Mapping) or not isinstance(data.get("choices"), Mapping):
            raise PlanError(
                'a plan is a JSON object {"version": 1, "choices": {group: {technique, ratio, '
                "criterion}}}"
            )
        if data.get("version") != VERSION:
            raise PlanError(
                f"this plan has version {data.get('version')!r}; this release reads version "
                f"{VERSION}"
            )
        choices = {}
        for key, value in data["choices"].items():
            try:
                technique, ratio, criterion = (
                    value["technique"],
                    float(value["ratio"]),
                    value.get("criterion", "l1"),
                )
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise PlanError(
                    f"choice {key!r} needs technique, ratio and criterion; got {value!r}"
                ) from error
            if not (isinstance(technique, str) and isinstance(criterion, str)):
                raise PlanError(
                    f"choice {key!r} needs the names of a technique and a criterion; got {value!r}"
                )
            choices[key] = Choice(technique, ratio, criterion)
        return cls(choices)
