"""Score and Candidate: what a plan costs and gives; and the Pareto front of many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Plan
from autoprune.quantities import TIMED, is_resource

__all__ = [
    "Candidate",
    "Score",
    "better",
    "by_quality",
    "costs_of",
    "direction",
    "dominates",
    "pareto_front",
    "resources_of",
]

_FIELDS = {
    "size": "size_bytes",
    "size_compressed": "size_compressed_bytes",
}
# Of records written before quantities were plug-ins
_BEFORE = {"memory_bytes": "memory", "energy_mj": "energy"}
_LISTS = ("uncounted", "unavailable")


@dataclass(frozen=True)
class Score:
    """Every figure of one model. None: not measured at the stage this candidate reached.

    FLOPs are those of one call of the target's batch and follow fvcore: one multiply-add counts 1;
    `uncounted` names the operators that could not be counted. `size_bytes` is the size of the file
    that the target runs, `size_compressed_bytes` that of the same file after zlib (level 6): zeros
    cost next to nothing there. Of a study's candidates the milliseconds of `latency` are its ratio
    of the study's one dense figure (`beside`), which has its own interval. `resources` are what a
    call needs beside time, by quantity, as `memory` in bytes or `energy` in millijoules; how each
    is measured stands in its file in `measuring/quantities/`. `unavailable` names what could not be
    measured, each with the reason, as in `energy: this machine has no counter`. `metric_error` is
    the standard error of the metric over its samples. `weights` says which of a finished model's
    are kept, as the better on validation data: "trained", "repaired" (reconstructed by least
    squares) or, where nothing was to be reconstructed, "cut"; "inherited" are those of the trained
    model of a looser budget.
    """

    metric: float | None = None
    test_metric: float | None = None
    loss: float | None = None
    flops: int | None = None
    params: int | None = None
    nonzero_params: int | None = None
    size_bytes: int | None = None
    uncounted: tuple[str, ...] = ()
    size_compressed_bytes: int | None = None
    latency: LatencyFigures = field(default_factory=LatencyFigures)
    resources: Mapping[str, float] = field(default_factory=dict)
    unavailable: tuple[str, ...] = ()
    # on further targets, by their name
    elsewhere: Mapping[str, Score] = field(default_factory=dict)
    metric_error: float | None = None
    weights: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field, the latency's beside the others."""
        elsewhere = {name: score.to_json() for name, score in self.elsewhere.items()}
        lists = {name: list(getattr(self, name)) for name in _LISTS}
        flat = {key: value for key, value in asdict(self).items() if key != "latency"}
        return flat | self.latency.to_json() | lists | {"elsewhere": elsewhere}

    def on(self, target: str) -> Score:
        """The figures on a further target; all None where it was not measured there. "" is the
        study's own target."""
        return self if not target else self.elsewhere.get(target, Score())

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Score:
        """The score that `to_json` wrote; unknown keys are left out."""
        known = {candidate.name for candidate in fields(cls)}
        data = {**data, "resources": resources_of(data)}
        values = {key: value for key, value in data.items() if key in known}
        elsewhere = {
            name: cls.from_json(score) for name, score in values.get("elsewhere", {}).items()
        }
        lists = {name: tuple(values.get(name, ())) for name in _LISTS}
        latency = LatencyFigures.from_json(data)
        return cls(**values | lists | {"latency": latency, "elsewhere": elsewhere})

    def evolve(self, **figures: Any) -> Score:
        """A copy with some figures replaced."""
        return replace(self, **figures)

    def figure(self, name: str) -> float | None:
        """The figure of a quantity by its name in a study, as measured: `size` in bytes, `energy`
        in mJ, ..."""
        if is_resource(name):
            return self.resources.get(name)
        if name in TIMED:
            return self.latency.ms if name == "latency" else self.latency.throughput
        figure = getattr(self, _FIELDS.get(name, name))
        return None if figure is None else float(figure)

    def objective(self, name: str) -> float:
        """The figure that objective `name` optimises: metric, loss, flops, params, ...; see
        `direction`.

        Latency and throughput are the ratios to dense, which were measured call by call beside it.
        Raises ValueError.
        """
        ratio = self.latency.ratio
        if name in TIMED:
            figure = ratio if name == "latency" or not ratio else 1 / ratio
        else:
            figure = self.figure(name)
        if figure is None:
            raise ValueError(f"this score has no {name}")
        return float(figure)

    def at_middle(self) -> Score:
        """A copy whose latency intervals are closed to their middle: the noise of a first look is
        not to decide."""
        elsewhere = {name: score.at_middle() for name, score in self.elsewhere.items()}
        return replace(self, latency=self.latency.at_middle(), elsewhere=elsewhere)

    def beside(self, dense: Score) -> Score:
        """A copy whose milliseconds and throughput are its ratio's share of `dense`'s; on further
        targets too. See `LatencyFigures.beside`."""
        elsewhere = {name: score.beside(dense.on(name)) for name, score in self.elsewhere.items()}
        return replace(self, latency=self.latency.beside(dense.latency), elsewhere=elsewhere)

    def judged(self, stage: str) -> Score:
        """What the budget is held against: of a trial that was only screened, what is to be
        expected when trained."""
        return self.at_middle().evolve(metric=None) if stage == "screened" else self

    def fill_from(self, other: Score) -> Score:
        """A copy where the figures that are None are `other`'s; on further targets too."""
        figures = {
            name: getattr(other, name) for name, value in vars(self).items() if value is None
        }
        elsewhere = {
            name: score.fill_from(other.on(name)) for name, score in self.elsewhere.items()
        }
        return replace(
            self,
            **figures,
            latency=self.latency.fill_from(other.latency),
            resources={**other.resources, **self.resources},
            elsewhere={**other.elsewhere, **elsewhere},
        )


def resources_of(data: Mapping[str, Any]) -> dict[str, float]:
    """What a call needs, of a score's JSON object; also of one with a field for each."""
    before = {name: data[key] for key, name in _BEFORE.items() if data.get(key) is not None}
    return before | dict(data.get("resources", {}))


@dataclass(frozen=True)
class Candidate:
    """A plan that was tried: its score, the stage it reached, and why it stopped there (None: it
    went all the way)."""

    number: int
    plan: Plan
    score: Score
    feasible: bool
    stage: str  # "dense", "cost", "latency", "screened", "trained", "failed"
    reason: str | None = None

    @property
    def trained(self) -> bool:
        """Whether its quality is that of a trained model, so that it may stand on the front."""
        return self.stage in ("dense", "trained")


def better(first: Score, second: Score, goal: str) -> bool:
    """Whether the quality of `first` is better; `goal` is the metric's.

    Where the metrics differ by no more than a standard error, that is by a few samples, the loss
    decides.
    """
    if (
        _alike(first, second)
        and first.loss is not None
        and second.loss is not None
        and first.loss != second.loss
    ):
        return first.loss < second.loss
    sign = 1 if goal == "maximize" else -1
    return sign * first.objective("metric") > sign * second.objective("metric")


def by_quality(candidates: Sequence[Candidate], goal: str) -> list[Candidate]:
    """Best metric first; those within a standard error of the best, and so on down, by their loss.

    Among equals the faster comes first, or the smaller.
    """
    sign, ordered = -1.0 if goal == "maximize" else 1.0, list[Candidate]()

    def cost(candidate: Candidate) -> tuple[float, float]:
        return candidate.score.latency.ratio or 0.0, float(candidate.score.nonzero_params or 0)

    def loss(candidate: Candidate) -> tuple[float, ...]:
        known = candidate.score.loss
        return (
            math.inf if known is None else known,
            sign * candidate.score.objective("metric"),
            *cost(candidate),
        )

    left = sorted(
        candidates,
        key=lambda candidate: (sign * candidate.score.objective("metric"), *cost(candidate)),
    )
    while left:
        alike = [candidate for candidate in left if _alike(candidate.score, left[0].score)]
        ordered += sorted(alike, key=loss)
        left = [candidate for candidate in left if candidate not in alike]
    return ordered


def _alike(first: Score, second: Score) -> bool:
    """Whether two metrics are too near each other to tell which is better."""
    apart = abs(first.objective("metric") - second.objective("metric"))
    return apart <= max(first.metric_error or 0.0, second.metric_error or 0.0)


def direction(objective: str, goal: str) -> Literal["maximize", "minimize"]:
    """Which way an objective is better; `goal` is the metric's."""
    upwards = goal == "maximize" if objective == "metric" else objective == "throughput"
    return "maximize" if upwards else "minimize"


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is nowhere worse and somewhere better; smaller is better in every place."""
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


def costs_of(score: Score, objectives: Sequence[str], goal: str) -> tuple[float, ...]:
    """The objectives, each turned so that less is better. `goal` is the metric's."""
    signs = [-1 if direction(name, goal) == "maximize" else 1 for name in objectives]
    return tuple(sign * score.objective(name) for sign, name in zip(signs, objectives, strict=True))


def pareto_front(
    candidates: Sequence[Candidate], objectives: Sequence[str], goal: str
) -> list[Candidate]:
    """The trained candidates that no other dominates, by the first objective, best first. `goal` is
    the metric's."""
    seen: dict[tuple[float, ...], Candidate] = {}
    for candidate in candidates:
        if candidate.trained:
            seen.setdefault(costs_of(candidate.score, objectives, goal), candidate)
    front = [point for point in seen if not any(dominates(other, point) for other in seen)]
    return [seen[point] for point in sorted(front)]
