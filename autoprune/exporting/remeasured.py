"""The checks of `verify` that run the model on the target: latency, throughput, what a call needs
beside time, against the record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autoprune import plugins, quantities
from autoprune.budget import Budget, Feasibility, Limit
from autoprune.errors import ModelError
from autoprune.exporting.held import Failed, Found, Held, mismatches
from autoprune.exporting.recorded import Recorded
from autoprune.measuring import measure, resources
from autoprune.measuring.timing.latency import Latency
from autoprune.score import Score

__all__ = ["latency", "resource"]

# Fresh ones, so many where the first disagree, and the time limit of each
_PROCESSES, _MORE, _SECONDS = 5, 15, 1.5
# Of the ratio, beside both intervals: between sessions, and beside other jobs
_ROOM, _BUSY = 0.10, 0.35
# Factors that milliseconds may be off by: a machine has its days
_DENSE, _P90, _P99 = 2.0, 2.0, 5.0
# Of a limit on what a call needs beside time
_LIMIT_ROOM = 0.03
_LATENCIES = ("ms", "ms_low", "ms_high", "ratio", "ratio_low", "ratio_high")


def latency(recorded: Recorded, name: str = "") -> Found:
    """Latency and throughput, in fresh processes against the dense model; `name` is that of a
    further target.

    Fails where even the better end of the interval breaks a limit, or where the figure is not the
    recorded one, and more processes say the same.
    """
    target = recorded.on(name)
    if target.recorded:
        why = f"nothing is measured: the target answers what {target.recorded} has recorded"
        return Found(why, {}, {_at("latency", name): why})
    artefacts, inputs = recorded.artefacts(name), recorded.reference[0]
    measured = measure.time_artefact(
        *artefacts, inputs, target, processes=_PROCESSES, budget_s=_SECONDS
    )
    problems, figures, unchecked = _compare_latency(recorded, name, measured)
    if problems:
        measured = measure.time_artefact(
            *artefacts, inputs, target, processes=_MORE, budget_s=_SECONDS
        )
        problems, figures, unchecked = _compare_latency(recorded, name, measured)
    figures |= {name: getattr(measured, name) for name in _LATENCIES} | {"taken": measured.taken}
    figures["runtime"] = plugins.load("runtime", target.runtime, recorded.folders)().version()
    said = (
        f"{measured.ms:.4g} ms, {measured.ratio:.1%} of dense ({measured.ratio_low:.1%} to "
        f"{measured.ratio_high:.1%})"
    )
    if problems:
        raise Failed(f"latency {said}: {'; '.join(problems)}", **figures)
    return Found(f"latency {said}; {measured.taken}", figures, unchecked)


def _compare_latency(
    recorded: Recorded, name: str, found: Latency
) -> tuple[list[str], dict[str, Any], dict[str, str]]:
    """What is wrong with a measured latency, the figures of its limits, and what cannot be checked
    of it here."""
    known, dense = recorded.score.on(name), recorded.dense_score.on(name)
    problems, figures, unchecked = list[str](), dict[str, Any](), dict[str, str]()
    now = measure.with_latency(Score(), found, recorded.on(name).batch).beside(dense)
    best = now.evolve(latency=now.latency.at_least())
    for limit in recorded.limits(name, "latency", "throughput"):
        if not limit.relative and (foreign := recorded.foreign):
            unchecked[limit.key] = foreign
            continue
        least, most = (_spent_share(limit, spent, dense) for spent in (best, now))
        figures |= {"limit": str(limit), "surely_inside": not limit.broken(most)}
        if limit.broken(least):
            problems.append(
                f"{limit.key} is {'under' if limit.lower else 'over'} the limit {limit} for sure"
            )
    if recorded.foreign:
        return problems, figures, unchecked | {_at("latency", name): recorded.foreign}
    if known.latency.ratio is None:
        return (
            problems,
            figures,
            unchecked | {_at("latency_ratio", name): "no figure of it is recorded"},
        )
    if found.crowded:
        unchecked[_at("latency_ms of dense, percentiles", name)] = (
            "other jobs needed the cores meanwhile"
        )
    else:
        problems += _percentiles(name, known, dense, found)
    problems += _ratio(name, known, found)
    return problems, figures, unchecked


def _spent_share(limit: Limit, score: Score, dense: Score) -> float:
    here = replace(limit, target="")
    used = Feasibility(Budget((here,)), dense, "maximize").usage(here, score)
    assert used is not None  # both were measured
    return used


def _ratio(name: str, known: Score, found: Latency) -> list[str]:
    """Whether the ratio measured now is the recorded one, within both intervals and some room."""
    assert known.latency.ratio is not None and found.ratio is not None
    room = (_BUSY if found.crowded else _ROOM) * max(known.latency.ratio, found.ratio)
    low, high = (
        known.latency.ratio_low or known.latency.ratio,
        known.latency.ratio_high or known.latency.ratio,
    )
    apart = max(low - (found.ratio_high or 0.0), (found.ratio_low or 0.0) - high)
    if apart <= room:
        return []
    return [f"{_at('latency_ratio', name)} {found.ratio:.4g}, recorded {known.latency.ratio:.4g}"]


def _percentiles(name: str, known: Score, dense: Score, found: Latency) -> list[str]:
    """Whether milliseconds of dense, and how far percentiles are from the median, are about those
    recorded."""
    ends = (
        ("", "_low", "_high") if found.dense_ms is not None and dense.latency.ms is not None else ()
    )
    names = [f"latency_ms{end}" for end in ends]
    figures = {
        f"dense.{name}": Held(found.dense_ms, dense.latency.to_json()[name], 1 - 1 / _DENSE)
        for name in names
    }
    for figure, percentile, factor in (("p90", found.p90_ms, _P90), ("p99", found.p99_ms, _P99)):
        recorded = known.latency.to_json()[f"latency_ms_{figure}"]
        if percentile is not None and recorded is not None and known.latency.ms:
            figures[f"latency_ms_{figure}"] = Held(
                percentile / found.ms * known.latency.ms, recorded, 1 - 1 / factor
            )
    return mismatches({_at(figure, name): held for figure, held in figures.items()})


def resource(recorded: Recorded, quantity: str, name: str = "") -> Found:
    """What a call needs beside time measured again, of the dense model too, held to limits and
    record."""
    key, target = _at(quantity, name), recorded.on(name)
    score, dense = recorded.score.on(name), recorded.dense_score.on(name)
    if target.recorded:
        why = f"nothing is measured: the target answers what {target.recorded} has recorded"
        return Found(why, {}, {key: why})
    own, other = recorded.artefacts(name)
    if not isinstance(own, bytes) and hasattr(own, "read_bytes"):
        own = own.read_bytes()
    try:
        inputs = recorded.reference[0]
        now, of = (
            resources.measure_resources(artefact, inputs, target, [quantity])[quantity]
            for artefact in (own, other)
        )
    except ModelError as problem:
        return Found(f"not checked: {problem}", {}, {key: str(problem)})
    measured, whole = Score(resources={quantity: now}), Score(resources={quantity: of})
    problems, unchecked = list[str](), dict[str, str]()
    for limit in recorded.limits(name, quantity):
        used = _spent_share(limit, measured, whole)
        if used > limit.value * (1 + _LIMIT_ROOM):
            problems.append(f"{limit.key} is {used / limit.value:.3g} times the limit {limit}")
    if recorded.foreign:
        unchecked[f"the record of {key}"] = recorded.foreign
    else:
        names = {
            quantity: (now, score.figure(quantity)),
            f"dense.{quantity}": (of, dense.figure(quantity)),
        }
        within = quantities.of_call(quantity).tolerance
        problems += mismatches(
            {
                _at(figure, name): Held(*pair, within)
                for figure, pair in names.items()
                if pair[1] is not None
            }
        )
    figures = {quantity: now, f"dense_{quantity}": of}
    if problems:
        raise Failed("; ".join(problems), **figures)
    return Found(f"{key} is {now:.6g}, of the dense model {of:.6g}", figures, unchecked)


def _at(figure: str, target: str) -> str:
    return f"{figure} on {target}" if target else figure
