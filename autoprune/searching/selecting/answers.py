"""Which budgets a run can answer now: by a model that is trained, or by a plan that was judged and
can be trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoprune.budget import Budget, Feasibility, Limit
from autoprune.quantities import needs_run
from autoprune.score import Candidate, Score
from autoprune.searching.selecting.promotion import EDGE
from autoprune.study import Study

__all__ = ["Answer", "answers", "in_words"]

# Plans of each kind, spread over what they cost: a hundred would be no answer
_SHOWN = 8
_DIGITS = 2  # of a limit that is offered, rounded to the side that keeps it


Quality = tuple[float, float]  # less is better


@dataclass(frozen=True)
class Answer:
    """A budget, as `latency=38%`, and the plan that keeps it; `trained`, or judged untrained so
    far."""

    budget: str
    candidate: Candidate
    trained: bool

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        score = self.candidate.score
        quality = {"metric": score.metric, "loss": score.loss}
        return {
            "budget": self.budget,
            "trial": self.candidate.number,
            "trained": self.trained,
            **quality,
        }


def answers(study: Study, dense: Score, candidates: Sequence[Candidate]) -> list[Answer]:
    """Of the trained plans, then of those judged untrained, the ones that none cheaper equals;
    cheapest first.

    In the quantities of the study's budget, or where that limits no cost in those of its
    objectives. `candidates`: of the trained ones those alone whose models are kept.
    """
    limits = [limit for limit in study.budget.limits if limit.quantity != "metric_drop"]
    costs = [name for name in study.search.objectives if name not in ("metric", "loss")]
    limits = limits or [Limit(name, 1.0, relative=True) for name in costs]
    feasibility = Feasibility(Budget(tuple(limits)), dense, study.task.metric.goal)
    sign = -1.0 if study.task.metric.goal == "maximize" else 1.0

    def metric(candidate: Candidate) -> Quality:
        # Where metrics tie the loss decides, as it does in the search.
        return sign * candidate.score.objective("metric"), candidate.score.loss or 0.0

    def loss(candidate: Candidate) -> Quality:
        return candidate.score.objective("loss"), 0.0

    done = {candidate.plan for candidate in candidates if candidate.stage == "trained"}
    answered = []
    for stage, quality in (("trained", metric), ("screened", loss)):
        chosen = [candidate for candidate in candidates if candidate.stage == stage]
        chosen = [
            candidate for candidate in chosen if stage == "trained" or candidate.plan not in done
        ]
        pairs = [
            (kept, candidate)
            for candidate in chosen
            if (kept := _kept_limits(feasibility, candidate)) is not None
        ]
        for kept, candidate in _spread(_front(pairs, quality)):
            budget = ",".join(f"{limit.key}={limit}" for limit in kept)
            answered.append(Answer(budget, candidate, stage == "trained"))
    return answered


def in_words(found: Sequence[Answer], run: Path) -> str:
    """One sentence or two: the trained levels, how far down judged plans go, and the commands;
    empty for none."""
    trained = [
        f"{answer.budget} (trial {answer.candidate.number})" for answer in found if answer.trained
    ]
    judged = [answer.budget for answer in found if not answer.trained]
    parts = [f"Trained plans keep {', '.join(trained[:3])}"] if trained else []
    if judged:
        command = (
            f"autoprune export {run} --budget {' --budget '.join(judged[0].split(','))} "
            "--train --out DIR"
        )
        parts.append(f"Evaluated plans go down to {judged[0]}, trained by `{command}`")
    return ". ".join(parts)


def _kept_limits(feasibility: Feasibility, candidate: Candidate) -> list[Limit] | None:
    """The limits as tight as a candidate keeps them; None where one is not measured, or dense keeps
    it too."""
    kept = []
    for limit in feasibility.budget.limits:
        used = feasibility.usage(limit, candidate.score.judged(candidate.stage))
        if used is None:
            return None
        margin = EDGE if candidate.stage == "screened" and needs_run(limit.quantity) else 0.0
        used = used * (1 - margin) if limit.lower else used / (1 - margin)
        unit = 10.0 ** (math.floor(math.log10(used)) - _DIGITS + 1) if used > 0 else 1.0
        rounded = math.floor(used / unit) if limit.lower else math.ceil(used / unit)
        kept.append(replace(limit, value=float(f"{rounded * unit:.6g}")))
    tight = replace(feasibility, budget=Budget(tuple(kept)))
    dense = feasibility.dense
    needless = tight.fits(dense) and not tight.unmeasured(dense)
    return None if needless else kept


def _front(
    pairs: Sequence[tuple[list[Limit], Candidate]], quality: Callable[[Candidate], Quality]
) -> list[tuple[list[Limit], Candidate]]:
    """Those whose quality no cheaper one has, cheapest first; by the first limit."""
    sign = -1.0 if pairs and pairs[0][0][0].lower else 1.0
    front: list[tuple[list[Limit], Candidate]] = []
    for pair in sorted(pairs, key=lambda pair: (sign * pair[0][0].value, quality(pair[1]))):
        if not front or quality(pair[1]) < quality(front[-1][1]):
            front.append(pair)
    return front


def _spread(front: Sequence[tuple[list[Limit], Candidate]]) -> list[tuple[list[Limit], Candidate]]:
    """At most `_SHOWN` of them, the first and the last among these."""
    if len(front) <= _SHOWN:
        return list(front)
    return [front[round(place * (len(front) - 1) / (_SHOWN - 1))] for place in range(_SHOWN)]
