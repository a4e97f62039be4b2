"""Budget: what a model may cost on its target, every limit with its unit; Feasibility: whether it
is kept."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from autoprune import quantities
from autoprune.errors import InputError
from autoprune.score import Score

__all__ = ["Budget", "Feasibility", "Limit"]

_LONGEST_LIMIT = 40  # characters
# Quantities whose limit is the least that is needed; of all others it is the most that is allowed
_LOWER = ("throughput",)
# Characters of a folder's name: file systems take 255 bytes, and a character may have four
_LONGEST_NAME = 100


def _digits(value: float) -> str:
    """As few digits as give the value back; a limit written into a study must be read as the same
    limit."""
    short = f"{value:.6g}"
    return short if math.isclose(float(short), value, rel_tol=1e-12) else f"{value:.15g}"


@dataclass(frozen=True)
class Limit:
    """One limit: `value` is a share of dense if `relative`, else in ms, FLOPs, parameters, bytes,
    mJ or metric points.

    All are upper limits but throughput's, in inputs per second: there the value is the least that
    is needed. `target` names a further target that it holds on, "" the study's own.
    """

    quantity: str
    value: float
    relative: bool
    target: str = ""

    @property
    def key(self) -> str:
        """As in a study: `latency`, or `latency on cpu_eager`."""
        return f"{self.quantity} on {self.target}" if self.target else self.quantity

    @classmethod
    def parse(cls, quantity: str, given: object) -> Limit:
        """`Limit.parse("latency", "2.5ms")`, or `Limit.parse("latency on cpu_eager", "60%")` for a
        further target.

        Raises InputError that shows the accepted spellings.
        """
        quantity, on, target = (part.strip() for part in quantity.partition(" on "))
        if on:
            parsed = cls.parse(quantity, given)
            if not quantities.depends_on_target(quantity):
                raise InputError(
                    f"{quantity} is the same on every target; write {quantity} without a target"
                )
            return replace(parsed, target=target)
        units, example = quantities.units(quantity)
        # The pattern's time grows with the square of it
        plain = isinstance(given, str) and len(given) <= _LONGEST_LIMIT
        text = (
            str(given) if plain or (isinstance(given, (int, float)) and abs(given) < 1e30) else ""
        )
        match = re.fullmatch(
            r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*(?:/s)?|%)\s*", text
        )
        if isinstance(given, bool) or not match:
            raise InputError(
                f"{quantity} needs a number with its unit, as in {example}; got {given!r}"
            )
        number, unit = float(match[1]), match[2]
        if not math.isfinite(number):
            raise InputError(f"{quantity} needs a finite number; got {given!r}")
        if quantity == "metric_drop":
            if unit:
                raise InputError(f"metric_drop is a plain number, as in {example}; got {given!r}")
            return cls(quantity, number, relative=False)
        if number <= 0:
            raise InputError(f"{quantity} must be more than zero; got {given!r}")
        if unit == "%":
            return cls(quantity, number / 100, relative=True)
        if not units.get(unit):
            raise InputError(f"{quantity} needs a unit: {example}; got {given!r}")
        return cls(quantity, number * units[unit], relative=False)

    def __str__(self) -> str:
        if self.relative:
            return f"{_digits(self.value * 100)}%"
        if self.quantity == "metric_drop":
            return _digits(self.value)
        unit, factor = quantities.largest_unit(self.quantity, self.value)
        return f"{_digits(self.value / factor)}{unit}"

    @property
    def lower(self) -> bool:
        """Whether this is the least that is needed, not the most that is allowed."""
        return self.quantity in _LOWER

    def broken(self, used: float) -> bool:
        """Whether `used`, as `usage` gives it, breaks this limit."""
        return used < self.value if self.lower else used > self.value

    def violation(self, used: float) -> float:
        """`used / limit - 1` (throughput: `limit / used - 1`), at most 0 where it is kept."""
        if self.lower:
            return self.value / used - 1
        return used / self.value - 1 if self.value > 0 else used

    def excess(self, used: float) -> str:
        """`flops 62%, over the limit of 50%`; four digits where they tell the two apart; of a
        latency the upper end."""
        rounded = float(f"{used:.4g}")
        shown = Limit(self.quantity, rounded if self.broken(rounded) else used, self.relative)
        end = " up to" if self.quantity == "latency" else ""
        return f"{self.key}{end} {shown}, {'under' if self.lower else 'over'} the limit of {self}"


@dataclass(frozen=True)
class Budget:
    """Several limits, all of which must hold."""

    limits: tuple[Limit, ...] = ()

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> Budget:
        """`Budget.parse({"latency": "50%"})`. Raises InputError."""
        return cls(tuple(Limit.parse(quantity, value) for quantity, value in given.items()))

    def to_json(self) -> dict[str, str]:
        """`{"latency": "50%"}`, as in a study."""
        return {limit.key: str(limit) for limit in self.limits}

    @property
    def folder_name(self) -> str:
        """`latency=30%,metric_drop=0.01`; with a digest where characters had to go, or the name
        would be too long."""
        whole = ",".join(f"{limit.key}={limit}" for limit in self.limits) or "no limit"
        plain = re.sub(r"[^\w.,=% +-]", "_", whole)[:_LONGEST_NAME]
        return (
            plain if plain == whole else f"{plain} {hashlib.sha256(whole.encode()).hexdigest()[:8]}"
        )

    def __str__(self) -> str:
        words = (
            f"{limit.key} at {'least' if limit.lower else 'most'} {limit}" for limit in self.limits
        )
        return ", ".join(words) or "no limit"


@dataclass(frozen=True)
class Feasibility:
    """A budget held against the scores of one study: `dense` is what its shares are shares of,
    `goal` the metric's."""

    budget: Budget
    dense: Score
    goal: str

    def usage(self, limit: Limit, score: Score) -> float | None:
        """What `score` spends of a limit (of throughput: reaches), in the limit's terms; None while
        not measured.

        Latency is judged on the upper end of its interval, throughput on its lower: feasible means
        feasible. Where the dense figure is known, milliseconds are that of the ratio's end: a limit
        in ms and the same one in per cent of dense are one limit.
        """
        score, dense = score.on(limit.target), self.dense.on(limit.target)
        slowest = score.latency.ratio_high
        if limit.quantity == "latency":
            ms = dense.latency.ms
            if limit.relative or slowest is None or ms is None:
                return slowest if limit.relative else score.latency.ms_high
            return slowest * ms
        if limit.quantity == "throughput":
            fastest = 1.0 if limit.relative else dense.latency.throughput
            if fastest is not None and slowest:
                return fastest / slowest
            return None if limit.relative else score.latency.throughput_low
        if limit.quantity == "metric_drop":
            if score.metric is None or dense.metric is None:
                return None
            drop = dense.metric - score.metric
            return drop if self.goal == "maximize" else -drop
        figure, of = score.figure(limit.quantity), dense.figure(limit.quantity)
        if figure is None or not limit.relative:
            return figure
        return figure / of if of else None

    def violations(self, score: Score) -> dict[str, float]:
        """`used / limit - 1` (throughput: `limit / used - 1`) of every limit that is measured by
        now, by its key; at most 0 where it is kept."""
        used = {limit: self.usage(limit, score) for limit in self.budget.limits}
        return {
            limit.key: limit.violation(spent) for limit, spent in used.items() if spent is not None
        }

    def violation(self, score: Score) -> float:
        """The worst of them, 0 where nothing is measured."""
        return max(self.violations(score).values(), default=0.0)

    def reasons(self, score: Score) -> list[str]:
        """Why the budget is not kept: one phrase for each limit that is measured and broken, as
        `latency up to 62%, over the limit of 50%`."""
        used = [(limit, self.usage(limit, score)) for limit in self.budget.limits]
        return [
            limit.excess(spent)
            for limit, spent in used
            if spent is not None and limit.broken(spent)
        ]

    def unmeasured(self, score: Score) -> list[str]:
        """One phrase for each limit of which nothing is known: what cannot be told to be kept is
        not kept."""
        limits = self.budget.limits
        return [
            f"{limit.key} was not measured" for limit in limits if self.usage(limit, score) is None
        ]

    def fits(self, score: Score) -> bool:
        """Whether no limit that is measured is broken."""
        return not self.reasons(score)
