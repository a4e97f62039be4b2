"""Score and Candidate: what a plan costs and gives; and the Pareto front of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from autoprune.plan import Plan

__all__ = ["Candidate", "Score", "dominates", "pareto_front"]


@dataclass(frozen=True)
class Score:
    """Every figure of one model. None: not measured at the stage this candidate reached.

    FLOPs follow fvcore: one multiply-add counts 1; `uncounted` names the operators that could not be counted.
    `size_bytes` is the size of the file that the target runs. Latency intervals are 95 % intervals of the median;
    `latency_ratio` is measured against the dense model, interleaved with it call by call.
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

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return asdict(self) | {"uncounted": list(self.uncounted)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Score:
        """The score that `to_json` wrote; unknown keys are left out."""
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in data.items() if key in known}
        return cls(**values | {"uncounted": tuple(values.get("uncounted", ()))})

    def updated(self, **figures: Any) -> Score:
        """A copy with some figures replaced."""
        return replace(self, **figures)

    def objective(self, name: str) -> float:
        """The figure that objective `name` optimises: metric, loss, latency (the ratio to dense), flops, params, ..."""
        value = getattr(self, {"latency": "latency_ratio", "size": "size_bytes"}.get(name, name))
        if value is None:
            raise ValueError(f"this score has no {name}")
        return float(value)


@dataclass(frozen=True)
class Candidate:
    """A plan that was tried: its score, the stage it reached, and why it stopped there (None: it went all the way)."""

    number: int
    plan: Plan
    score: Score
    feasible: bool
    stage: str  # "dense", "cost", "latency", "untrained", "trained", "failed"
    reason: str | None = None

    @property
    def trained(self) -> bool:
        """Whether its quality is that of a trained model, so that it may stand on the front."""
        return self.stage in ("dense", "trained")


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is nowhere worse and somewhere better; smaller is better in every place."""
    return all(a <= b for a, b in zip(first, second, strict=True)) and tuple(first) != tuple(second)


def pareto_front(candidates: Sequence[Candidate], objectives: Sequence[str], goal: str) -> list[Candidate]:
    """The trained candidates that no other dominates, by the first objective, best first. `goal` is the metric's."""

    def costs(candidate: Candidate) -> list[float]:
        signs = [-1 if name == "metric" and goal == "maximize" else 1 for name in objectives]
        return [sign * candidate.score.objective(name) for sign, name in zip(signs, objectives, strict=True)]

    seen: dict[tuple[float, ...], Candidate] = {}
    for candidate in candidates:
        if candidate.trained:
            seen.setdefault(tuple(costs(candidate)), candidate)
    front = [point for point in seen if not any(dominates(other, point) for other in seen)]
    return [seen[point] for point in sorted(front)]
