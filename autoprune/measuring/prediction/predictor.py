"""Latency of any plan without measuring it: learned from a bounded profile on the target, corrected
by every candidate.

predictor = Predictor.profile(coupling, model, inputs, measure, budget_s=60)
predictor.predict(keep)  # Prediction(ratio=0.43, low=0.41, high=0.45, ms=3.1)
predictor.observe(keep, measure(keep))
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from autoprune.errors import InputError, nearest
from autoprune.measuring.prediction.features import SMOOTH_TERMS, TERMS, Array
from autoprune.measuring.prediction.gaussian_process import Measured, Posterior, fit, prior, spread
from autoprune.measuring.prediction.widths import Layout, Row
from autoprune.measuring.timing.latency import Latency
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.task import Inputs

__all__ = ["Prediction", "Predictor"]

Keep = Mapping[str, Tensor]
Plan = Mapping[str, Tensor | int]

# Plans of a profile, whatever the budget
_FEWEST, _MOST = 6, 150
# What terms cost is fitted anew after so many times as many measurements: in between they are taken
# in under the last fit, which takes no search
_AGAIN = 1.25
_VERSION = 1


@dataclass(frozen=True)
class Prediction:
    """Ratio to the dense latency, its 95 % interval as a measurement would have it, and
    milliseconds."""

    ratio: float
    low: float
    high: float
    ms: float


@dataclass(frozen=True)
class _Observation:
    row: Row
    ratio: float
    error: float  # relative standard error of the ratio
    dense_ms: float


class Predictor:
    """Latency by widths. Deterministic: the same measurements give the same predictions."""

    def __init__(self, layout: Layout, observations: Sequence[_Observation]) -> None:
        self.layout = layout
        self._observations = list(observations)
        self._fitted = 0
        # How much wider intervals are; found out when one is asked for
        self._spread: float | None = None
        self._prior = prior(len(TERMS), len(SMOOTH_TERMS))
        self._fit()

    @classmethod
    def profile(
        cls,
        coupling: Coupling,
        model: nn.Module,
        inputs: Inputs,
        measure: Callable[[Keep], Latency],
        budget_s: float = 60.0,
        seed: int = 0,
        plans: int = _MOST,
        blocks: bool = False,
    ) -> Predictor:
        """Measure random plans for `budget_s` seconds, or `plans` of them; at least 6.

        `measure(keep)` gives the latency of a plan with its ratio to dense; `inputs` are those of
        one call. Which plans are measured depends on `seed` alone, how many on the time as well:
        many rough figures teach more than few exact ones. Without `blocks` these stay, as where a
        plan without them takes an export; their work is known even so. Raises ModelError where no
        units can be cut.
        """
        layout, random, begin = (
            Layout.of(coupling, model, inputs),
            np.random.default_rng(seed),
            time.perf_counter(),
        )
        seen: list[_Observation] = []
        while len(seen) < _FEWEST or (len(seen) < plans and time.perf_counter() - begin < budget_s):
            row = layout.random_row(random, blocks)
            seen.append(_observation(row, measure(layout.keep(row)), seen))
        return cls(layout, seen)

    @property
    def dense_ms(self) -> float:
        """Median of the dense model's milliseconds beside the measured plans."""
        return statistics.median(observation.dense_ms for observation in self._observations)

    @property
    def measured(self) -> int:
        """Number of measurements."""
        return len(self._observations)

    def predict(self, plan: Plan) -> Prediction:
        """Latency of a plan: for each group that is cut what is kept, booleans (units,), or its
        width.

        Raises InputError for an unknown group or a width that it cannot have.
        """
        return self.predict_all([plan])[0]

    def predict_all(self, plans: Sequence[Plan]) -> list[Prediction]:
        """As `predict`, many at once; some 0.1 ms each."""
        rows = [self.layout.row(plan) for plan in plans]
        ratios, reach, dense = self._ratios(rows), self._reach(rows), self.dense_ms
        return [
            Prediction(ratio, max(0.0, ratio - margin), ratio + margin, ratio * dense)
            for ratio, margin in zip(ratios.tolist(), reach.tolist(), strict=True)
        ]

    def ratio(self, plan: Plan) -> float:
        """That of `predict` alone: how sure it is takes five more fits to know, after all that is
        learnt."""
        return float(self._ratios([self.layout.row(plan)])[0])

    def observe(self, plan: Plan, latency: Latency) -> None:
        """Learn from a measured plan. Raises InputError as `predict`, or for a latency that is no
        positive number."""
        self._observations.append(_observation(self.layout.row(plan), latency, self._observations))
        if len(self._observations) >= _AGAIN * self._fitted:
            self._fit()
        else:
            self._posterior = Posterior(self._all_measurements(), self.layout.kinds, self._logs)

    def step_widths(self, key: str) -> list[int]:
        """The widths of a group that the target likes, all else dense: the last ones before a step
        of the staircase.

        None wider costs hardly more: each unit beyond costs at least half of what a unit costs on
        average. Raises InputError for an unknown group.
        """
        if key not in self.layout.groups:
            known = self.layout.groups
            raise InputError(
                f"unknown group {key!r}{nearest(key, known)}; groups: {', '.join(known)}"
            )
        size, cells = self.layout.groups[key], self.layout.cells[key]
        widths = np.arange(cells, size + 1, cells)
        ratios = self._ratios([self.layout.row({key: int(width)}) for width in widths])
        if len(widths) == 1:
            return [size]
        slope = max(0.0, float(ratios[-1] - ratios[0])) / float(widths[-1] - widths[0])
        level = ratios - 0.5 * slope * widths
        wider = np.minimum.accumulate(level[::-1])[::-1][1:]
        return [
            int(width)
            for width, good in zip(widths, [*(level[:-1] < wider), True], strict=True)
            if good
        ]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the layout and every measurement."""
        seen = [
            [
                list(observation.row[0]),
                list(observation.row[1]),
                observation.ratio,
                observation.error,
                observation.dense_ms,
            ]
            for observation in self._observations
        ]
        return {"version": _VERSION, "layout": self.layout.to_json(), "observations": seen}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Predictor:
        """The predictor that `to_json` wrote, fitted anew. Raises InputError for another
        version."""
        if data.get("version") != _VERSION:
            raise InputError(
                f"this record of a predictor has version {data.get('version')!r}; needed: "
                f"{_VERSION}; "
                "profile the target again"
            )
        seen = [
            _Observation((tuple(widths), tuple(gone)), ratio, error, dense_ms)
            for widths, gone, ratio, error, dense_ms in data["observations"]
        ]
        return cls(Layout.from_json(data["layout"]), seen)

    def _fit(self) -> None:
        measured, self._spread = self._all_measurements(), None
        self._logs = fit(measured, self.layout.kinds, self._prior)
        self._posterior = Posterior(measured, self.layout.kinds, self._logs)
        self._fitted = len(self._observations)

    def _all_measurements(self) -> Measured:
        """The dense model, which takes its own time, and all that was observed."""
        features, shares = self.layout.features(
            [self.layout.dense, *(observation.row for observation in self._observations)]
        )
        ratios = np.array([1.0, *(observation.ratio for observation in self._observations)])
        return Measured(
            features,
            shares,
            ratios,
            # The dense model's own ratio is 1 by definition
            np.array([1e-3, *(observation.error for observation in self._observations)]),
        )

    def _ratios(self, rows: Sequence[Row]) -> Array:
        """Ratio to dense of each plan."""
        return self._posterior.mean(*self.layout.features(rows))

    def _reach(self, rows: Sequence[Row]) -> Array:
        """Half of the 95 % interval of each plan's ratio."""
        if self._spread is None:
            fitted_to = self._all_measurements().only(slice(self._fitted + 1))
            self._spread = spread(fitted_to, self.layout.kinds, self._prior)
        return 1.96 * self._spread * self._posterior.deviation(*self.layout.features(rows))


def _observation(row: Row, latency: Latency, before: Sequence[_Observation]) -> _Observation:
    dense = statistics.median(latency.dense_ms for latency in before) if before else None
    ratio = latency.ratio if latency.ratio is not None or dense is None else latency.ms / dense
    if ratio is None or not (0 < ratio < float("inf")):
        raise InputError(
            f"a latency with its ratio to dense is needed, got ratio {ratio}: measure the plan "
            "beside the dense model"
        )
    low, high = (
        (latency.ratio_low, latency.ratio_high) if latency.ratio is not None else (None, None)
    )
    # A 95 % interval is 2 * 1.96 standard errors wide; without one 2 % are supposed
    error = (high - low) / (2 * 1.96) / ratio if low is not None and high is not None else 0.02
    return _Observation(row, ratio, error, latency.ms / ratio)
