"""Score and Candidate: what a plan costs and gives; and the Pareto front of many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from autoprune.plan import Plan
from autoprune.quantities import is_resource

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
    "latency": "latency_ms",
    "size": "size_bytes",
    "size_compressed": "size_compressed_bytes",
}
# Of records written before quantities were plug-ins
_BEFORE = {"memory_bytes": "memory", "energy_mj": "energy"}
_LISTS = ("uncounted", "unavailable")
_MS = ("latency_ms", "latency_ms_low", "latency_ms_high", "latency_ms_p90", "latency_ms_p99")
# What depends on how fast the machine is
_TIMED = (*_MS, "throughput", "throughput_low")


def _times(value: float | None, factor: float | None) -> float | None:
    return None if value is None or factor is None else value * factor


@dataclass(frozen=True)
class Score:
    """Every figure of one model. None: not measured at the stage this candidate reached.

    FLOPs are those of one call of the target's batch and follow fvcore: one multiply-add counts 1;
    `uncounted` names the operators that could not be counted. `size_bytes` is the size of the file
    that the target runs, `size_compressed_bytes` that of the same file after zlib (level 6): zeros
    cost next to nothing there. Latency intervals are 95 % intervals of the median; `latency_ratio`
    is the median ratio of a call to the dense model's call beside it. Of a study's candidates the
    milliseconds are that ratio of the study's one dense figure (`beside`), which has its own
    interval. `throughput` is inputs per second, the batch over the median latency; `throughput_low`
    is the lower end of its interval. `resources` are what a call needs beside time, by quantity, as
    `memory` in bytes or `energy` in millijoules; how each is measured stands in its file in
    `measuring/quantities/`. `unavailable` names what could not be measured, each with the reason,
    as in `energy: this machine has no counter`. `metric_error` is the standard error of the metric
    over its samples. `weights` says which of a finished model's are kept, as the better on
    validation data: "trained", "repaired" (reconstructed by least squares) or, where nothing was to
    be reconstructed, "cut"; "inherited" are those of the trained model of a looser budget.
    """

    metric: float | None = None
    test_metric: float | None = None
    loss: float | None = None
    flops: int | None = None
    params: int | None = None
    nonzero_params: int | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    latency_ms_low: float | None = None
    latency_ms_high: float | None = None
    latency_ratio: float | None = None
    latency_ratio_low: float | None = None
    latency_ratio_high: float | None = None
    uncounted: tuple[str, ...] = ()
    latency_ms_p90: float | None = None
    latency_ms_p99: float | None = None
    throughput: float | None = None
    throughput_low: float | None = None
    size_compressed_bytes: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    unavailable: tuple[str, ...] = ()
    # on further targets, by their name
    elsewhere: Mapping[str, Score] = field(default_factory=dict)
    metric_error: float | None = None
    weights: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        elsewhere = {name: score.to_json() for name, score in self.elsewhere.items()}
        return (
            asdict(self)
            | {name: list(getattr(self, name)) for name in _LISTS}
            | {"elsewhere": elsewhere}
        )

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
            name: cls.from_json(each) for name, each in values.get("elsewhere", {}).items()
        }
        return cls(
            **values
            | {name: tuple(values.get(name, ())) for name in _LISTS}
            | {"elsewhere": elsewhere}
        )

    def evolve(self, **figures: Any) -> Score:
        """A copy with some figures replaced."""
        return replace(self, **figures)

    def figure(self, name: str) -> float | None:
        """The figure of a quantity by its name in a study, as measured: `size` in bytes, `energy`
        in mJ, ..."""
        if is_resource(name):
            return self.resources.get(name)
        value = getattr(self, _FIELDS.get(name, name))
        return None if value is None else float(value)

    def objective(self, name: str) -> float:
        """The figure that objective `name` optimises: metric, loss, flops, params, ...; see
        `direction`.

        Latency and throughput are the ratios to dense, which were measured call by call beside it.
        Raises ValueError.
        """
        if name in ("latency", "throughput"):
            value = (
                self.latency_ratio
                if name == "latency" or not self.latency_ratio
                else 1 / self.latency_ratio
            )
        else:
            value = self.figure(name)
        if value is None:
            raise ValueError(f"this score has no {name}")
        return float(value)

    def at_middle(self) -> Score:
        """A copy whose latency intervals are closed to their middle: the noise of a first look is
        not to decide."""
        fastest = self.throughput if self.throughput is not None else self.throughput_low
        return replace(
            self,
            latency_ms_high=self.latency_ms,
            latency_ratio_high=self.latency_ratio,
            throughput_low=fastest,
            elsewhere={name: score.at_middle() for name, score in self.elsewhere.items()},
        )

    def beside(self, dense: Score) -> Score:
        """A copy whose milliseconds and throughput are its ratio's share of `dense`'s; on further
        targets too.

        The dense figure is one constant for all that is compared: of the interval it leaves the
        ratio's. What is the dense model itself, at exactly 1, has the dense model's own.
        """
        elsewhere = {name: score.beside(dense.on(name)) for name, score in self.elsewhere.items()}
        score, of, ratio = replace(self, elsewhere=elsewhere), dense.latency_ms, self.latency_ratio
        if of is None or ratio is None:
            return score
        if ratio == self.latency_ratio_low == self.latency_ratio_high == 1:
            return replace(score, **{name: getattr(dense, name) for name in _TIMED})
        stretch = ratio * of / self.latency_ms if self.latency_ms else None
        low, high, fastest = self.latency_ratio_low, self.latency_ratio_high, dense.throughput
        return replace(
            score,
            latency_ms=ratio * of,
            latency_ms_low=None if low is None else low * of,
            latency_ms_high=None if high is None else high * of,
            latency_ms_p90=_times(self.latency_ms_p90, stretch),
            latency_ms_p99=_times(self.latency_ms_p99, stretch),
            throughput=_times(fastest, 1 / ratio),
            throughput_low=_times(fastest, 1 / high if high else None),
        )

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
    sign, found = -1.0 if goal == "maximize" else 1.0, list[Candidate]()

    def cost(candidate: Candidate) -> tuple[float, float]:
        return candidate.score.latency_ratio or 0.0, float(candidate.score.nonzero_params or 0)

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
        found += sorted(alike, key=loss)
        left = [candidate for candidate in left if candidate not in alike]
    return found


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
