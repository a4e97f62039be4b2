"""Budgets that need no search, and those that no plan meets: how near the best came, and which was
reachable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from autoprune.budget import Feasibility
from autoprune.score import Candidate, Score
from autoprune.searching.selecting.answers import answers, in_words
from autoprune.study import Study

__all__ = ["nearest_miss", "needless"]

# Stages of a plan that was to be trained: it was, or a limit that is broken stopped it before
_MEASURED = ("trained", "latency", "cost")


def needless(study: Study, dense: Score) -> str | None:
    """Why there is nothing to search, where the dense model keeps the budget; None where it does
    not.

    With no limit on a cost there is the cheapest model to be found that keeps its quality.
    """
    limits = study.budget.limits
    costs = set(study.search.objectives) - {"metric", "loss"}
    if costs and {limit.quantity for limit in limits} <= {"metric_drop"}:
        return None
    used = {
        limit.key: (limit, study.feasibility(dense).usage(limit, dense))
        for limit in limits
        if limit.quantity != "metric_drop"
    }
    if any(value is None or limit.broken(value) for limit, value in used.values()):
        return None
    spent = ", ".join(
        f"{key} {replace(limit, value=float(f'{value:.3g}'))}"
        for key, (limit, value) in used.items()
    )
    return (
        f"the dense model keeps the budget ({study.budget}) "
        f"already{f': it has {spent}' if spent else ''}. "
        "There is nothing to search, and nothing was changed. Give a limit that it breaks, as in "
        "--budget latency=50% (of dense), or limit metric_drop alone for the cheapest model that "
        "keeps its quality"
    )


def nearest_miss(
    study: Study, dense: Score, candidates: Sequence[Candidate], run: Path | None = None
) -> str:
    """Why no plan meets the study's budget: how near the best came, and which budget was reachable,
    in `run`."""
    budget, feasibility = study.budget, study.feasibility(dense)
    trained = any(candidate.stage == "trained" for candidate in candidates)
    # A finalist is measured longer than a plan that is screened: its figure stands
    longer = any(candidate.stage in _MEASURED for candidate in candidates)
    by_distance = [
        (feasibility.violation(candidate.score.judged(candidate.stage)), candidate)
        for candidate in candidates
        if candidate.stage != "failed" and not (longer and candidate.stage == "screened")
    ]
    if not by_distance:
        return f"no plan was tried to the end, so none meets the budget ({budget})"
    nearest = min(by_distance, key=lambda pair: (pair[0], pair[1].number))[1]
    reached = (
        "; ".join(feasibility.reasons(nearest.score.judged(nearest.stage)))
        or "its model was not kept"
    )
    failed = [candidate for candidate in candidates if candidate.stage == "failed"]
    broke = (
        f" {len(failed)} trials broke down in training (trial {failed[0].number}: "
        f"{failed[0].reason})."
        if failed
        else ""
    )
    judged = [answer for answer in answers(study, dense, candidates) if not answer.trained]
    further = f" {in_words(judged, run)}." if run is not None and judged else ""
    return (
        f"no plan meets the budget ({budget}). The nearest "
        f"{'that is trained ' if trained else ''}was trial "
        f"{nearest.number}: {reached}. Reachable was "
        f"{_reachable(study, feasibility, candidates)}.{further}{broke} "
        f"Give a budget like that, more trials, or a wider space.default.ratio"
    )


def _reachable(study: Study, feasibility: Feasibility, candidates: Sequence[Candidate]) -> str:
    """The limits, in the budget's own quantities and units, that the trained trial nearest to it
    keeps."""
    trained = [candidate for candidate in candidates if candidate.stage == "trained"]
    nearest = min(
        trained,
        key=lambda candidate: feasibility.violation(candidate.score),
        default=None,
    )
    if nearest is None:
        return "nothing: no trial was trained to the end"
    limits = []
    for limit in feasibility.budget.limits:
        used = feasibility.usage(limit, nearest.score)
        if used is not None:
            up = 10.0 ** (math.floor(math.log10(abs(used))) - 2) if used else 1.0
            least, most = (
                min(limit.value, math.floor(used / up) * up),
                max(limit.value, math.ceil(used / up) * up),
            )
            limits.append(replace(limit, value=least if limit.lower else most))
    reached = ", ".join(f"{limit.key}={limit}" for limit in limits)
    return (
        f"{reached} (trial {nearest.number}, {study.task.metric.name} {nearest.score.metric:.4g})"
    )
