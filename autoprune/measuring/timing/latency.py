"""How long one call takes: warm-up, candidate and dense model interleaved call by call, medians
with intervals.

What keeps a ratio repeatable to under 1 % (with ONNX Runtime's defaults it was off by 14 % between
processes): the two models take turns on the same core, so that clock speed, caches and neighbours
fall on both alike; the order within a pair alternates; thread pools do not spin (the runtimes see
to it); the ratio is the median of the pairs' ratios, in which whatever lasts longer than a pair
cancels (a ratio of medians varied twice as much), and which a few interrupted calls do not move;
calls made while other processes needed the same cores are set aside, and made up for (see
`contention.py`); and calls go on until the ratio's own 95 % interval is within 1 % of it, or the
time is over. Where models lie in memory alone moves a ratio by 1 to 2 %, which no number of calls
shows: they are prepared several times, and what still differs between processes shows in several of
these; `Latency.merge` takes the interval over all. What drifts over minutes shows in none of these:
`Latency.at_any_time` makes room for it.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from autoprune.measuring.timing.contention import STRETCH_S, Contention

__all__ = ["Latency", "compare", "compare_anew", "median_interval"]

# Of the ratio (or of the median, where there is no dense model): half-width of the 95 % interval
PRECISION = 0.01
# Warm-up ends when the medians of two consecutive blocks agree to this
_WARM = 0.02
# Calls that are made of slow models even over the time budget: always, and while not settled
_FEWEST, _ENOUGH = 12, 40
# standard deviation of the ratio between figures of twelve processes, minutes apart, as a share of
# it: on a shared machine neighbours slow a large model down more than a small one
# (scripts/benchmarks/measuring, ONNX Runtime)
_DRIFT = 0.0045
# Times that models are prepared, at most: on OpenVINO where they lie moves a ratio by 2 %
_LAYOUTS = 10
# How much longer than its time budget a measurement may last for lack of quiet
_PATIENCE = 4.0
# Student's t, 97.5 %, by degrees of freedom
_T95 = (math.nan, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

Calls = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of a call, and the median ratio to the dense model's call beside it (None
    without one).

    With 95 % intervals. `calls` is the number of calls in all `processes` that the figures rest on,
    `set_aside` that of those made while other processes needed the same cores; `crowded` whether
    there was too little quiet to do without these. `settled`: whether the interval of the ratio
    came within 1 % in each process, over its calls and over where models lay in memory, before the
    time ran out. `p90_ms` and `p99_ms` are what 90 % and 99 % of the calls stay under. `dense_ms`
    is the median of the dense calls.
    """

    ms: float
    ms_low: float
    ms_high: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    calls: int
    settled: bool
    p90_ms: float | None = None
    p99_ms: float | None = None
    processes: int = 1
    set_aside: int = 0
    crowded: bool = False
    dense_ms: float | None = None

    @property
    def taken(self) -> str:
        """How the figure was taken, as `180 interleaved calls in 5 processes, within 1 %`."""
        where = f"{self.processes} process" + ("es" if self.processes > 1 else "")
        calls = (
            f"{self.calls} interleaved calls" if self.ratio is not None else f"{self.calls} calls"
        )
        aside = f", {self.set_aside} set aside (the cores were busy)" if self.set_aside else ""
        beside = ", beside other jobs" if self.crowded else ""
        return (
            f"{calls} in {where}, "
            f"{'within 1 %' if self.settled else 'not within 1 % in the time limit'}{aside}{beside}"
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return asdict(self)

    @staticmethod
    def merge(parts: Sequence[Latency]) -> Latency:
        """One latency of several processes, or of models prepared several times: the mean, and
        Student's t interval.

        What differs between them (memory layout, alignment) is in it, which no interval of the
        calls alone has. It is never narrower than what the calls leave open. One part stays as it
        is.
        """
        if not parts:
            raise ValueError("nothing to merge: no latency was given")
        if len(parts) == 1:
            return parts[0]
        ms = _between([(part.ms, part.ms_low, part.ms_high) for part in parts])
        ratios = [(part.ratio, part.ratio_low, part.ratio_high) for part in parts]
        known = [
            (a, b, c) for a, b, c in ratios if a is not None and b is not None and c is not None
        ]
        all_known = len(known) == len(parts)
        ratio: tuple[float | None, float | None, float | None] = (
            _between(known) if all_known else (None, None, None)
        )
        p90, p99 = (
            _beyond(ms[0], [(getattr(part, name), part.ms) for part in parts])
            for name in ("p90_ms", "p99_ms")
        )
        calls, settled = sum(part.calls for part in parts), all(part.settled for part in parts)
        processes, aside = (
            sum(part.processes for part in parts),
            sum(part.set_aside for part in parts),
        )
        crowded, dense = any(part.crowded for part in parts), [part.dense_ms for part in parts]
        beside = (
            None
            if None in dense
            else statistics.fmean(ms_of_dense for ms_of_dense in dense if ms_of_dense is not None)
        )
        return Latency(*ms, *ratio, calls, settled, p90, p99, processes, aside, crowded, beside)

    def at_any_time(self) -> Latency:
        """With the ratio's interval as wide as it has to be to hold for another hour too, not only
        for this minute."""
        if self.ratio is None or self.ratio_low is None or self.ratio_high is None:
            return self
        drift = 1.96 * _DRIFT * self.ratio
        low = max(self.ratio - math.hypot(self.ratio - self.ratio_low, drift), 0.0)
        return replace(
            self,
            ratio_low=low,
            ratio_high=self.ratio + math.hypot(self.ratio_high - self.ratio, drift),
        )


def compare(
    candidate: Callable[[], object],
    dense: Callable[[], object] | None = None,
    *,
    budget_s: float = 0.4,
    threads: int = 1,
) -> Latency:
    """Time `candidate`, and where `dense` is given the ratio to it, in about `budget_s` seconds, or
    until it settles.

    At least 12 calls are made of each, up to 40 while not settled, even where slow models need
    longer than `budget_s`. `threads` is how many cores a call needs: while other processes leave
    fewer, calls are set aside, and the time is prolonged up to fivefold to make up for them.
    """
    functions = [candidate] if dense is None else [candidate, dense]
    begin, contention = time.perf_counter(), Contention(threads)
    with _collector_off():
        _warm_up(functions, budget_s / 4)
        times, pairs = np.empty((len(functions), 0)), 4
        contention.restart()
        while True:
            times = np.concatenate([times, _rounds(functions, pairs, times.shape[1])], axis=1)
            quiet = contention.quiet(times.shape[1])
            count, spent = times.shape[1], time.perf_counter() - begin
            lost = min(contention.lost_s, _PATIENCE * budget_s)
            result = _summary(times, quiet)
            if _is_enough(result, spent - lost, budget_s) and (
                contention.judged or budget_s < STRETCH_S
            ):
                return result
            pair_s = float(times.sum()) / 1e3 / count
            left = max(0, int((budget_s - spent + lost) / pair_s))
            # At most doubles: few looks at the interval
            pairs = max(4, min(count, left, contention.stretch(pair_s)))


def compare_anew(
    prepare: Callable[[], Sequence[Callable[[], object]]],
    *,
    budget_s: float = 0.4,
    threads: int = 1,
) -> Latency:
    """As `compare` what `prepare` gives: the candidate, and the dense model where there is one.

    They are prepared up to ten times, each time elsewhere in memory because the earlier ones are
    kept, and the figures merged; fewer times in less than 0.4 s, where preparing takes as long as
    measuring, or a few calls fill the time.
    """
    layouts = max(1, min(_LAYOUTS, round(budget_s / STRETCH_S)))
    # Shorter ones would not see other jobs
    each_s = budget_s if layouts == 1 else max(STRETCH_S, budget_s / layouts)
    begin, measured_s = time.perf_counter(), 0.0
    kept, parts = list[Sequence[Callable[[], object]]](), list[Latency]()
    while True:
        kept.append(prepare())
        prepared = time.perf_counter()
        parts.append(compare(*kept[-1], budget_s=each_s, threads=threads))
        now = time.perf_counter()
        measured_s += now - prepared
        if (
            len(parts) == layouts
            or measured_s >= 2 * budget_s
            or now - begin - measured_s >= budget_s
        ):
            merged = Latency.merge(parts)
            return replace(merged, processes=1, settled=merged.settled and _precise(merged))


def median_interval(times: Calls) -> tuple[float, float]:
    """95 % interval of the median by order statistics; `times` in any unit, at least one."""
    ordered, count = np.sort(times), len(times)
    # The rank of the median among the calls is binomial: its standard deviation is sqrt(count) / 2
    reach = 1.96 * math.sqrt(count) / 2
    low, high = math.floor(count / 2 - reach), math.ceil(count / 2 + reach)
    return float(ordered[max(low, 0)]), float(ordered[min(high, count - 1)])


def _is_enough(result: Latency, spent_s: float, budget_s: float) -> bool:
    """Whether to stop: a few calls that happen to agree settle nothing, unless there is no time for
    more."""
    if result.calls < _FEWEST:
        return False
    if spent_s < budget_s:
        return result.settled and result.calls >= _ENOUGH and not result.crowded
    return result.settled or result.calls >= _ENOUGH or spent_s >= 10 * budget_s


def _summary(times: Calls, quiet: np.ndarray[Any, np.dtype[np.bool_]]) -> Latency:
    """Of the calls in `times` (functions, pairs) that were `quiet` (pairs,), where those are
    enough; else of all."""
    crowded = int(quiet.sum()) < min(_ENOUGH, times.shape[1])
    used = times if crowded else times[:, quiet]
    aside = {"set_aside": times.shape[1] - used.shape[1], "crowded": crowded}
    ms = float(np.median(used[0]))
    low, high = median_interval(used[0])
    p90, p99 = (float(percentile) for percentile in np.percentile(used[0], [90, 99]))
    count = used.shape[1]
    summary = Latency(ms, low, high, None, None, None, count, False, p90, p99, **aside)
    if len(used) > 1:
        ratios = used[0] / used[1]
        low, high = median_interval(ratios)
        ratio, dense_ms = float(np.median(ratios)), float(np.median(used[1]))
        summary = replace(summary, ratio=ratio, ratio_low=low, ratio_high=high, dense_ms=dense_ms)
    return replace(summary, settled=_precise(summary))


def _precise(found: Latency) -> bool:
    """Whether the interval of the ratio, or of the median where there is no dense model, is within
    1 %."""
    if found.ratio is None or found.ratio_low is None or found.ratio_high is None:
        return (found.ms_high - found.ms_low) / 2 <= PRECISION * found.ms
    return (found.ratio_high - found.ratio_low) / 2 <= PRECISION * found.ratio


def _rounds(functions: Sequence[Callable[[], object]], pairs: int, before: int) -> Calls:
    """Milliseconds of `pairs` calls of each function, taking turns; (functions, pairs)."""
    clock = time.perf_counter_ns
    times = np.empty((len(functions), pairs))
    forwards = list(enumerate(functions))
    orders = (forwards, forwards[::-1])
    for index in range(pairs):
        for row, function in orders[(before + index) % 2]:
            start = clock()
            function()
            times[row, index] = clock() - start
    return times / 1e6


def _warm_up(functions: Sequence[Callable[[], object]], limit_s: float) -> None:
    """Call until the medians of two consecutive blocks agree, or the time is over; at least
    twice."""
    begin, block, previous = time.perf_counter(), 1, None
    while True:
        medians = np.median(_rounds(functions, block, 0), axis=1)
        spent = time.perf_counter() - begin
        stable = previous is not None and bool(np.all(np.abs(medians / previous - 1) <= _WARM))
        if previous is not None and (spent >= limit_s or (stable and block >= 8)):
            return
        previous, block = medians, min(2 * block, 64)


def _between(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """(value, low, high) of each of at least two processes -> of all of them."""
    middles, count = [middle for middle, _, _ in parts], len(parts)
    mean = statistics.fmean(middles)
    # Of more parts than the table has, its last one: a little too wide, never too narrow
    t = _T95[count - 1] if count <= len(_T95) else 2.228
    between = t * statistics.stdev(middles) / math.sqrt(count)
    inside = statistics.median([(high - low) / 2 for _, low, high in parts]) / math.sqrt(count)
    reach = max(between, inside)
    return mean, max(mean - reach, 0.0), mean + reach


def _beyond(ms: float, parts: Sequence[tuple[float | None, float]]) -> float | None:
    """A percentile beside the median `ms`, from (percentile, median) of each part: the middle of
    how far it is off."""
    known = [
        percentile / median for percentile, median in parts if percentile is not None and median > 0
    ]
    return ms * statistics.median(known) if known else None


@contextmanager
def _collector_off() -> Iterator[None]:
    """Without collections in the middle of calls; none before either, which in a search took a
    quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
