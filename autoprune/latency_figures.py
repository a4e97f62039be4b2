"""LatencyFigures: how long a call takes on one target, beside the dense model's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

__all__ = ["LatencyFigures"]

# What depends on how fast the machine is
_TIMED = ("ms", "ms_low", "ms_high", "ms_p90", "ms_p99", "throughput", "throughput_low")


@dataclass(frozen=True)
class LatencyFigures:
    """Figures of a call of the target's batch; None where it was not measured.

    `ms` is the median, `low` and `high` are the ends of its 95 % interval. `ratio` is the median
    ratio of a call to the dense model's call beside it. `throughput` is inputs per second, the
    batch over the median; `throughput_low` is the lower end of its interval.
    """

    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    ms_p90: float | None = None
    ms_p99: float | None = None
    throughput: float | None = None
    throughput_low: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """As in files: `latency_ms`, `latency_ratio_high`, `throughput`, ..."""
        return {_key(name): value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyFigures:
        """The figures that `to_json` wrote; other keys are left out."""
        return cls(**{field.name: data.get(_key(field.name)) for field in fields(cls)})

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The keys of `to_json`."""
        return tuple(_key(field.name) for field in fields(cls))

    def of_dense(self) -> LatencyFigures:
        """A copy whose ratio is 1: the dense model's to itself, by definition."""
        return replace(self, ratio=1.0, ratio_low=1.0, ratio_high=1.0)

    def at_middle(self) -> LatencyFigures:
        """A copy whose intervals are closed to their middle."""
        fastest = self.throughput if self.throughput is not None else self.throughput_low
        return replace(self, ms_high=self.ms, ratio_high=self.ratio, throughput_low=fastest)

    def at_least(self) -> LatencyFigures:
        """A copy at the fast end of its intervals."""
        return replace(self, ms_high=self.ms_low, ratio_high=self.ratio_low)

    def beside(self, dense: LatencyFigures) -> LatencyFigures:
        """A copy whose milliseconds and throughput are its ratio's share of `dense`'s.

        The dense figure is one constant for all that is compared: of the interval it leaves the
        ratio's. What is the dense model itself, at exactly 1, has the dense model's own.
        """
        of, ratio = dense.ms, self.ratio
        if of is None or ratio is None:
            return self
        if ratio == self.ratio_low == self.ratio_high == 1:
            return replace(self, **{name: getattr(dense, name) for name in _TIMED})
        stretch = ratio * of / self.ms if self.ms else None
        slowest = 1 / self.ratio_high if self.ratio_high else None
        return replace(
            self,
            ms=ratio * of,
            ms_low=_times(of, self.ratio_low),
            ms_high=_times(of, self.ratio_high),
            ms_p90=_times(self.ms_p90, stretch),
            ms_p99=_times(self.ms_p99, stretch),
            throughput=_times(dense.throughput, 1 / ratio),
            throughput_low=_times(dense.throughput, slowest),
        )

    def fill_from(self, other: LatencyFigures) -> LatencyFigures:
        """A copy where the figures that are None are `other`'s."""
        missing = [name for name, value in vars(self).items() if value is None]
        return replace(self, **{name: getattr(other, name) for name in missing})


def _key(name: str) -> str:
    return name if name.startswith("throughput") else f"latency_{name}"


def _times(figure: float | None, factor: float | None) -> float | None:
    return None if figure is None or factor is None else figure * factor
