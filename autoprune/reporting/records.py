"""What `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from autoprune.group import Group
from autoprune.run import Run
from autoprune.score import Candidate, Score
from autoprune.searching.selecting.answers import Answer
from autoprune.space import Variable
from autoprune.task import Recipe

__all__ = ["Checked", "Measured", "Result", "checked_record", "measured_record", "result"]

VERSION = 1


class Checked(Protocol):
    """What a dry run tells."""

    @property
    def groups(self) -> Sequence[Group]:
        """Every group of the model."""

    @property
    def variables(self) -> Sequence[Variable]:
        """The decisions that the search would make."""

    @property
    def dense(self) -> Score:
        """Cost of the dense model."""

    @property
    def lowest(self) -> Score:
        """Cost of the most pruned plan."""

    @property
    def seconds(self) -> float | None:
        """Time that the whole search will take."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the user should know."""

    @property
    def origin(self) -> str:
        """Where the dense model's weights come from, and whether it is trained first."""

    @property
    def unreachable(self) -> str | None:
        """Why no plan can meet the budget, where the most pruned one does not."""

    @property
    def needless(self) -> str | None:
        """Why there is nothing to search, where the dense model keeps the budget."""

    @property
    def recipes(self) -> Mapping[str, Recipe]:
        """How what is trained is trained, by the study's key."""


class Result(Protocol):
    """What a search, or the application of one plan, ends with."""

    @property
    def run(self) -> Run:
        """Its folder."""

    @property
    def dense(self) -> Score:
        """The dense model's score."""

    @property
    def front(self) -> Sequence[Candidate]:
        """The Pareto front."""

    @property
    def best(self) -> Candidate | None:
        """The best feasible candidate."""

    @property
    def groups(self) -> Sequence[Group]:
        """Every group of the model."""

    @property
    def interrupted(self) -> bool:
        """Whether it was ended by Ctrl-C."""

    @property
    def answers(self) -> Sequence[Answer]:
        """The budgets that its run can answer now."""


class Measured(Protocol):
    """What was measured of one model on one target."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object: model, target, score, layers."""


def measured_record(found: Sequence[Measured]) -> dict[str, Any]:
    """What `measure` found, a JSON object."""
    return {"version": 2, "measured": [measured.to_json() for measured in found]}


def checked_record(report: Checked) -> dict[str, Any]:
    """A dry run as a JSON object."""
    names = {group.key: variable.name for variable in report.variables for group in variable.groups}
    return {
        "version": VERSION,
        "groups": [
            asdict(group) | {"key": group.key, "size": group.size, "variable": names.get(group.key)}
            for group in report.groups
        ],
        "variables": {variable.name: asdict(variable.options) for variable in report.variables},
        "dense": report.dense.to_json(),
        "lowest": report.lowest.to_json(),
        "baseline": report.origin,
        "recipes": {key: asdict(recipe) for key, recipe in report.recipes.items()},
        "seconds": report.seconds,
        "warnings": list(report.warnings),
        "unreachable": report.unreachable,
        "needless": report.needless,
    }


def result(found: Result) -> dict[str, Any]:
    """A result as a JSON object, its front as in front.json."""
    return {
        "version": VERSION,
        "run": str(Path(found.run.folder).resolve()),
        "results": str(Path(found.run.results).resolve()),
        "interrupted": found.interrupted,
        "baseline": found.dense.to_json(),
        "best": None if found.best is None else _candidate(found.best),
        "front": [_candidate(candidate) for candidate in found.front],
        "answers": [answer.to_json() for answer in found.answers],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return {
        "trial": candidate.number,
        "feasible": candidate.feasible,
        "plan": candidate.plan.to_json(),
        "score": candidate.score.to_json(),
    }
