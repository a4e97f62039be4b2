"""The checks of `verify` that need no run: figures of the record against each other, its budget,
and its sizes."""

from __future__ import annotations

import itertools
from typing import Any

from autoprune.budget import Feasibility
from autoprune.exporting.held import Failed, Found, Held, mismatches
from autoprune.exporting.recorded import Recorded
from autoprune.measuring import measure, resources
from autoprune.score import Score

__all__ = ["agreement", "budget", "sizes", "sizes_elsewhere"]

# Of a figure that follows from others
_ROUNDING = 1e-6
# Of a size: an export anew names things in its own way
_EXPORTS = 0.02
# Of a compressed size: zlib-ng, which some systems have as zlib, packs otherwise
_ZLIB = 0.02
_LOST = "the dense model's weights are not in the artefact"


def agreement(recorded: Recorded) -> Found:
    """Figures that follow from others do: milliseconds from the ratio, throughput from these;
    intervals are in order.

    What a score says beside them, and nothing here can know, is told as unchecked.
    """
    problems, unchecked = (
        list[str](),
        {"trial": "the number of a search's trial; the search's folder knows it"},
    )
    unchecked |= {
        f"dense.{name}": _LOST for name in ("metric", "loss", "test_metric", "nonzero_params")
    }
    unchecked |= {"dense.latency_ms_p90, _p99": "only the dense model's median is measured again"}
    for name in ("", *(target.name for target in recorded.further)):
        own, dense = recorded.score.on(name), recorded.dense_score.on(name)
        within = "" if not name else f"elsewhere.{name}."
        problems += [
            within + disorder for disorder in (*_disorders(own, ""), *_disorders(dense, "dense."))
        ]
        if recorded.record.get("version", 1) < 2:
            unchecked["latency_ms, throughput"] = (
                "the record is of a version that measured them apart from the ratio"
            )
        elif own.latency.ratio is not None:
            batch = recorded.on(name).batch
            problems += [
                within + mismatch for mismatch in mismatches(_following(own, dense, batch))
            ]
    problems += _of_study(recorded)
    if problems:
        raise Failed("; ".join(problems))
    shown = {name: reason for name, reason in unchecked.items() if _is_recorded(recorded, name)}
    return Found("figures that follow from others do", {}, shown)


def _is_recorded(recorded: Recorded, name: str) -> bool:
    record: dict[str, Any] = (
        recorded.record["dense"] if name.startswith("dense.") else recorded.record
    )
    first = name.removeprefix("dense.").partition(",")[0]
    return record.get(first) is not None


def _following(own: Score, dense: Score, batch: int) -> dict[str, Held]:
    """Every figure of time beside what it has to be."""
    ratio, of = own.latency.ratio, dense.latency.ms
    # The dense model itself
    whole = ratio == own.latency.ratio_low == own.latency.ratio_high == 1
    figures: dict[str, Held] = {}
    ours, theirs = own.latency.to_json(), dense.latency.to_json()
    for end in ("", "_low", "_high"):
        figures[f"dense.latency_ratio{end}"] = Held(1.0, theirs[f"latency_ratio{end}"], 0.0)
        share = ours[f"latency_ratio{end}"]
        unit = theirs[f"latency_ms{end}"] if whole else of
        wanted = None if share is None or unit is None else share * unit
        figures[f"latency_ms{end} of latency_ratio{end}"] = Held(
            wanted, ours[f"latency_ms{end}"], _ROUNDING
        )
    for score, place in ((own, ""), (dense, "dense.")):
        for figure, ms in (
            ("throughput", score.latency.ms),
            ("throughput_low", score.latency.ms_high),
        ):
            wanted = batch * 1e3 / ms if ms else None
            figures[place + figure] = Held(wanted, score.latency.to_json()[figure], _ROUNDING)
    return figures


def _disorders(score: Score, place: str) -> list[str]:
    """Intervals and percentiles that are not in order, a phrase each."""
    rows = (
        ("latency_ms_low", "latency_ms", "latency_ms_high"),
        ("latency_ratio_low", "latency_ratio", "latency_ratio_high"),
        ("latency_ms", "latency_ms_p90", "latency_ms_p99"),
        ("throughput_low", "throughput"),
        ("nonzero_params", "params"),
    )
    problems, figures = [], score.to_json()
    for row in rows:
        known = [(name, figures[name]) for name in row if figures[name] is not None]
        for (first, low), (second, high) in itertools.pairwise(known):
            if low > high * (1 + _ROUNDING):
                problems.append(f"{place}{first} {low:.6g} is more than {place}{second} {high:.6g}")
    return problems


def _of_study(recorded: Recorded) -> list[str]:
    """What the record repeats of study.yaml, and otherwise than there."""
    study, record = recorded.study, recorded.record
    goal = (
        study["task"].get("metric", {}).get("goal")
        if isinstance(study["task"].get("metric"), dict)
        else None
    )
    wrong = (
        [f"goal {record['goal']}, in the study {goal}"]
        if goal not in (None, record["goal"])
        else []
    )
    given = study.get("target")
    known = {
        key: value
        for key, value in record["target"].items()
        if isinstance(given, dict) and key in given
    }
    if isinstance(given, dict) and "from" not in given:
        unlike = {key: value for key, value in known.items() if value != given[key]}
        wrong += [
            f"target.{key} {value}, in the study {given[key]}" for key, value in unlike.items()
        ]
    return wrong


def budget(recorded: Recorded) -> Found:
    """The recorded figures keep every limit; what has to be measured has checks of its own
    beside."""
    feasibility = Feasibility(recorded.budget, recorded.dense_score, recorded.record["goal"])
    limits = [limit for limit in recorded.budget.limits if limit.quantity != "latency"]
    spent = {limit.key: feasibility.usage(limit, recorded.score) for limit in limits}
    broken = [
        f"{limit.key} has no figure" if used is None else limit.excess(used)
        for limit, used in zip(limits, spent.values(), strict=True)
        if used is None or limit.broken(used)
    ]
    if broken:
        raise Failed("; ".join(broken), **spent)
    lost = ("metric_drop", "nonzero_params", "size_compressed")
    unchecked = {
        limit.key: f"measured against the recorded figure of the dense model: {_LOST}"
        for limit in limits
        if limit.quantity in lost and (limit.relative or limit.quantity == "metric_drop")
    }
    return Found(
        f"{len(limits)} limits beside latency are kept by the recorded figures", spent, unchecked
    )


def sizes(recorded: Recorded) -> Found:
    """The file that the target runs has the recorded size, and packs to the recorded one."""
    path, score = recorded.runs_file, recorded.score
    size = path.stat().st_size
    figures = {"size_bytes": Held(size, score.size_bytes)}
    if score.size_compressed_bytes is not None:
        packed = resources.compressed_bytes(path.read_bytes())
        figures["size_compressed_bytes"] = Held(packed, score.size_compressed_bytes, _ZLIB)
    if unlike := mismatches(figures):
        raise Failed(
            f"{path.name}: {'; '.join(unlike)}", size_bytes=size, recorded=score.size_bytes
        )
    return Found(f"{path.name} has {size} bytes as recorded", {"size_bytes": size})


def sizes_elsewhere(recorded: Recorded) -> Found:
    """Sizes of the dense model's file, and of what further targets run; exported anew, so within 2
    %."""
    figures, unchecked = dict[str, Held](), dict[str, str]()
    for name in ("", *(target.name for target in recorded.further)):
        own, dense = recorded.artefacts(name)
        place = f"elsewhere.{name}." if name else ""
        pairs = [("dense.", dense, recorded.dense_score.on(name))]
        pairs += [("", own, recorded.score.on(name))] if name else []
        for role, artefact, score in pairs:
            if score.size_bytes is not None:
                key = f"{role}{place}size_bytes"
                figures[key] = Held(measure.size_bytes(artefact), score.size_bytes, _EXPORTS)
            if score.size_compressed_bytes is not None:
                unchecked[f"{role}{place}size_compressed_bytes"] = _LOST
    if unlike := mismatches(figures):
        raise Failed("; ".join(unlike))
    return Found(
        f"{len(figures)} sizes beside that of the file are about those recorded", {}, unchecked
    )
