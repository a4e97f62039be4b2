"""Figures as people read them: units, intervals, times."""

from __future__ import annotations

import os
from dataclasses import asdict

from autoprune import quantities
from autoprune.group import Group
from autoprune.plan import Choice
from autoprune.pruning.widths import units_left
from autoprune.score import Candidate, Score
from autoprune.task import Recipe

__all__ = [
    "MISSING",
    "busy",
    "choice",
    "count",
    "expected_time",
    "latency",
    "metric",
    "milliseconds",
    "outcome",
    "quality",
    "ratio",
    "recipe",
    "resource",
    "size",
    "span",
]

MISSING = "–"
# Times an estimate, that a search was seen to take beside other work: so an estimate is a range
_UNSURE = 3.0
_OTHERS = 1.0  # processes that wait for a core, from which on a machine is busy


def count(value: float | None) -> str:
    """1234567 as `1.23M`."""
    if value is None:
        return MISSING
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:g}"


def size(value: float | None) -> str:
    """Bytes, as `1.23 MB`."""
    if value is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:g} B"


def resource(name: str, score: Score) -> str:
    """What a call needs, as `1.23 MB` of memory."""
    value = score.figure(name)
    return MISSING if value is None else quantities.show(name, value)


def milliseconds(value: float | None) -> str:
    """`0.123 ms`."""
    return MISSING if value is None else f"{value:.3g} ms"


def metric(value: float | None) -> str:
    """Four decimals."""
    return MISSING if value is None else f"{value:.4f}"


def quality(score: Score) -> str:
    """The metric, and its standard error where that is known, as `0.9918 ±0.0047`."""
    known = score.metric is not None and score.metric_error is not None
    return f"{metric(score.metric)} ±{score.metric_error:.4f}" if known else metric(score.metric)


def latency(score: Score) -> str:
    """`0.123 ms [0.121, 0.125]`, the median and its 95 % interval."""
    return _interval(score.latency.ms, score.latency.ms_low, score.latency.ms_high, 1.0, " ms")


def ratio(score: Score) -> str:
    """`48.1 % [47.9, 48.3]` of the dense model's latency."""
    return _interval(
        score.latency.ratio, score.latency.ratio_low, score.latency.ratio_high, 100.0, " %"
    )


def span(seconds: float) -> str:
    """`45 s`, `3 min 20 s` or `1 h 5 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def expected_time(seconds: float) -> str:
    """An estimate as `1 min 0 s to 3 min 0 s`: what a search takes depends on what else the machine
    does."""
    return f"{span(seconds)} to {span(seconds * _UNSURE)}"


def busy() -> str | None:
    """That others want the cores, so that everything takes longer; None where they do not."""
    cores = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except OSError:
        return None
    if load < cores + _OTHERS:
        return None
    return (
        f"this machine is busy (load {load:.0f} on {cores} cores): expect the longer time, or more"
    )


def recipe(key: str, given: Recipe) -> str:
    """One line of every key of a recipe, as a study writes them: `recovery: epochs 5, batch_size
    64, ...`."""
    values = (
        (name, f"{value:g}" if isinstance(value, float) else value)
        for name, value in asdict(given).items()
    )
    return f"{key}: {', '.join(f'{name} {value}' for name, value in values)}"


def choice(given: Choice | None, group: Group) -> str:
    """`structured 128 → 56 (l1)`; of single weights `weight -45 % (l1)`; of a block that goes whole
    `depth: gone`."""
    if given is None:
        return MISSING
    if given.ratio == 1:
        return f"{given.technique}: gone"
    if group.level == "units":
        return f"{given.technique} {group.size} → {units_left(group, given)} ({given.criterion})"
    return f"{given.technique} -{given.ratio * 100:.0f} % ({given.criterion})"


def outcome(candidate: Candidate) -> str:
    """One candidate in a few words: its quality and latency, or why it stopped."""
    score = candidate.score
    screened = candidate.stage == "screened"
    kind = {"screened": "screened ", "cost": "as cut, ", "latency": "as cut, "}.get(
        candidate.stage, ""
    )
    parts = [] if score.metric is None else [f"{kind}metric {quality(score)}"]
    if score.weights not in (None, "trained"):
        parts.append(f"weights as {score.weights.replace('repaired', 'reconstructed')}")
    if score.latency.ratio is not None:
        parts.append(f"latency {score.latency.ratio * 100:.1f} % of dense")
    if candidate.reason:
        parts.append(f"{'outside' if screened else 'stopped'}: {candidate.reason}")
    elif not candidate.feasible and not screened:
        parts.append("over the budget")
    return ", ".join(parts) or candidate.stage


def _interval(
    value: float | None, low: float | None, high: float | None, factor: float, unit: str
) -> str:
    if value is None:
        return MISSING
    if low is None or high is None:
        return f"{value * factor:.3g}{unit}"
    digits = 1 if factor > 1 or value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return (
        f"{value * factor:.{digits}f}{unit} [{low * factor:.{digits}f}, {high * factor:.{digits}f}]"
    )
