"""Target: where the model will run. Budget: what it may cost there, every limit with its unit."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from autoprune.errors import InputError, nearest
from autoprune.score import Score

__all__ = ["QUANTITIES", "Budget", "Limit", "Target"]

_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LONGEST = 40  # characters of a limit
# quantity -> (units of absolute limits with their factor, an example of each spelling)
QUANTITIES: dict[str, tuple[dict[str, float], str]] = {
    "latency": ({"ms": 1.0, "us": 1e-3, "s": 1e3}, "50% (of dense) or 2.5ms"),
    "flops": ({"": 0.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}, "40% (of dense) or 300M"),
    "params": ({"": 0.0, "K": 1e3, "M": 1e6, "G": 1e9}, "25% (of dense) or 1.2M"),
    "nonzero_params": ({"": 0.0, "K": 1e3, "M": 1e6, "G": 1e9}, "10% (of dense) or 50K"),
    "size": (_BYTES, "30% (of dense) or 1.2MB"),
    "size_compressed": (_BYTES, "20% (of dense) or 200KB"),
    "memory": (_BYTES, "60% (of dense) or 20MB"),
    "throughput": ({"/s": 1.0, "K/s": 1e3, "M/s": 1e6}, "150% (of dense) or 200/s, at least"),
    "energy": ({"uJ": 1e-3, "mJ": 1.0, "J": 1e3}, "50% (of dense) or 3mJ, of one call"),
    "metric_drop": ({}, "0.01 (absolute, towards worse)"),
}
_LOWER = ("throughput",)  # quantities whose limit is the least that is needed
# What a target has a say in
_BY_TARGET = ("latency", "throughput", "memory", "energy", "size", "size_compressed")
_LONGEST = 100  # characters of a folder's name, of 255 bytes that file systems take
_NEVER_PRINTED = ("us", "s", "KiB", "MiB", "GiB")


def _digits(value: float) -> str:
    """As few digits as give the value back; a limit written into a study must be read as the same
    limit."""
    short = f"{value:.6g}"
    return short if math.isclose(float(short), value, rel_tol=1e-12) else f"{value:.15g}"


@dataclass(frozen=True)
class Target:
    """A device and the runtime on it. `batch` is the number of inputs in one call, `threads` what
    the runtime may use.

    `dtype` (fp32, bf16, fp16, int8) is what the model ships in: latency, size and metric are those
    in it, of candidates and of the dense model alike. Training is a matter of its own. Widths are
    rounded to a multiple of `multiple_of`, which the device's kernels like; 1 leaves them as the
    ratio says. `recorded`, the folder of a run, says that nothing is measured: its figures are the
    answer.
    """

    name: str = "cpu_onnxruntime"
    device: str = "cpu"
    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    dtype: str = "fp32"
    multiple_of: int = 1
    recorded: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field, without `recorded` where figures are measured."""
        return {key: value for key, value in asdict(self).items() if key != "recorded" or value}

    def in_study(self) -> dict[str, Any]:
        """As a study has it: of a recorded target where the figures come from."""
        given = asdict(self)
        recorded = given.pop("recorded")
        return given | ({"runtime": "recorded", "from": recorded} if recorded else {})


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
            if quantity in QUANTITIES and quantity not in _BY_TARGET:
                raise InputError(
                    f"{quantity} is the same on every target; write {quantity} without a target"
                )
            return replace(cls.parse(quantity, given), target=target)
        if quantity not in QUANTITIES:
            known = ", ".join(QUANTITIES)
            raise InputError(
                f"unknown quantity {quantity!r}{nearest(quantity, QUANTITIES)}; known: {known}"
            )
        units, example = QUANTITIES[quantity]
        # The pattern's time grows with the square of it
        plain = isinstance(given, str) and len(given) <= _LONGEST
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
        units = QUANTITIES[self.quantity][0]
        unit, factor = max(
            ((u, f) for u, f in units.items() if f and u not in _NEVER_PRINTED and f <= self.value),
            key=lambda pair: pair[1],
            default=next((u, f) for u, f in units.items() if f),
        )
        return f"{_digits(self.value / factor)}{unit}"

    def usage(self, score: Score, dense: Score, goal: str) -> float | None:
        """What `score` spends of this limit (of throughput: reaches), in the limit's terms; None
        while not measured.

        Latency is judged on the upper end of its interval, throughput on its lower: feasible means
        feasible. Where the dense figure is known, milliseconds are that of the ratio's end: a limit
        in ms and the same one in per cent of dense are one limit.
        """
        score, dense = score.on(self.target), dense.on(self.target)
        slowest = score.latency_ratio_high
        if self.quantity == "latency":
            ms = dense.latency_ms
            if self.relative or slowest is None or ms is None:
                return slowest if self.relative else score.latency_ms_high
            return slowest * ms
        if self.quantity == "throughput":
            fastest = 1.0 if self.relative else dense.throughput
            if fastest is not None and slowest:
                return fastest / slowest
            return None if self.relative else score.throughput_low
        if self.quantity == "metric_drop":
            if score.metric is None or dense.metric is None:
                return None
            return (
                dense.metric - score.metric if goal == "maximize" else score.metric - dense.metric
            )
        value, of = score.figure(self.quantity), dense.figure(self.quantity)
        if value is None or not self.relative:
            return value
        return value / of if of else None

    @property
    def lower(self) -> bool:
        """Whether this is the least that is needed, not the most that is allowed."""
        return self.quantity in _LOWER

    def broken(self, used: float) -> bool:
        """Whether `used`, as `usage` gives it, breaks this limit."""
        return used < self.value if self.lower else used > self.value

    def excess(self, used: float) -> str:
        """`flops 62%, over the limit of 50%`; four digits where they tell the two apart; of a
        latency the upper end."""
        rounded = float(f"{used:.4g}")
        shown = Limit(self.quantity, rounded if self.broken(rounded) else used, self.relative)
        end = " up to" if self.quantity == "latency" else ""
        return f"{self.key}{end} {shown}, {'under' if self.lower else 'over'} the limit of {self}"

    def violation(self, score: Score, dense: Score, goal: str) -> float | None:
        """`used / limit - 1` (throughput: `limit / used - 1`), at most 0 where it is kept; None
        while not measured."""
        used = self.usage(score, dense, goal)
        if used is None:
            return None
        if self.lower:
            return self.value / used - 1
        return used / self.value - 1 if self.value > 0 else used


@dataclass(frozen=True)
class Budget:
    """Several limits, all of which must hold."""

    limits: tuple[Limit, ...] = ()

    @classmethod
    def parse(cls, given: Mapping[str, object]) -> Budget:
        """`Budget.parse({"latency": "50%"})`. Raises InputError."""
        return cls(tuple(Limit.parse(quantity, value) for quantity, value in given.items()))

    def violations(self, score: Score, dense: Score, goal: str) -> dict[str, float]:
        """Violation of every limit that is measured by now, by its key; at most 0 where it is
        kept."""
        found = {limit.key: limit.violation(score, dense, goal) for limit in self.limits}
        return {key: value for key, value in found.items() if value is not None}

    def broken(self, score: Score, dense: Score, goal: str) -> list[str]:
        """One phrase for each limit that is measured and not kept, as `latency up to 62%, over the
        limit of 50%`."""
        broken = []
        for limit in self.limits:
            used = limit.usage(score, dense, goal)
            if used is not None and limit.broken(used):
                broken.append(limit.excess(used))
        return broken

    def unmeasured(self, score: Score, dense: Score, goal: str) -> list[str]:
        """One phrase for each limit of which nothing is known: what cannot be told to be kept is
        not kept."""
        return [
            f"{limit.key} was not measured"
            for limit in self.limits
            if limit.usage(score, dense, goal) is None
        ]

    def to_json(self) -> dict[str, str]:
        """`{"latency": "50%"}`, as in a study."""
        return {limit.key: str(limit) for limit in self.limits}

    @property
    def folder_name(self) -> str:
        """`latency=30%,metric_drop=0.01`; with a digest where characters had to go, or the name
        would be too long."""
        whole = ",".join(f"{limit.key}={limit}" for limit in self.limits) or "no limit"
        plain = re.sub(r"[^\w.,=% +-]", "_", whole)[:_LONGEST]
        return (
            plain if plain == whole else f"{plain} {hashlib.sha256(whole.encode()).hexdigest()[:8]}"
        )

    def __str__(self) -> str:
        words = (
            f"{limit.key} at {'least' if limit.lower else 'most'} {limit}" for limit in self.limits
        )
        return ", ".join(words) or "no limit"
