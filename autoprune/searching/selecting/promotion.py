"""Promotion: which of the plans judged untrained are trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from autoprune.budget import Feasibility
from autoprune.plan import Plan
from autoprune.quantities import needs_run
from autoprune.score import Candidate, Score, costs_of
from autoprune.study import Study

__all__ = ["EDGE", "alike", "best", "least_cost_wanted", "next_promotion"]

# Of the budget: what a first look puts closer to it hardly keeps it once its interval counts
EDGE = 0.015
# Of the units of one group, by which plans that are trained differ in all
_LEAST_DISTANCE = 0.25


def next_promotion(
    study: Study,
    dense: Score,
    candidates: Sequence[Candidate],
    promotions: Mapping[int, int],
    count: int,
    refills: Mapping[int, Sequence[int]] | None = None,
) -> Candidate | None:
    """The next candidate to train, so that the best `count` end trained; None where they are.

    `promotions`: for the number of each that was promoted, that of the trial which trained its
    plan. One that turned out not to keep the budget, or whose training broke down, does not count.
    `refills`: for the number of one that was given units back, those of the plans that came of it;
    a better one takes its place. What is alike comes after what is not.
    """
    by_number = {candidate.number: candidate for candidate in candidates}
    known = {candidate.plan: candidate for candidate in candidates if candidate.stage == "trained"}
    trained: dict[int, Candidate] = {}  # what trained them
    left: dict[int, Candidate] = {}
    fuller = [number for numbers in (refills or {}).values() for number in numbers]
    for candidate in best(study, dense, candidates, fuller):
        if candidate.number in promotions:
            tried = by_number[promotions[candidate.number]]
            if tried.stage == "trained":
                trained[candidate.number] = tried
        elif candidate.plan in known:
            trained[candidate.number] = known[candidate.plan]
        if candidate.number in trained or candidate.number not in promotions:
            left[candidate.number] = candidate
    if least_cost_wanted(study):
        return _bisect(list(left.values()), trained, count)
    for candidate in _apart(_drop_replaced(left, refills or {}), count):
        if candidate.number not in trained:
            return candidate
    return None


def _drop_replaced(
    left: Mapping[int, Candidate], refills: Mapping[int, Sequence[int]]
) -> list[Candidate]:
    """Without those in whose place a better one stands."""
    order = {number: place for place, number in enumerate(left)}

    def first(number: int) -> bool:
        return all(
            order.get(fuller, len(order)) >= order[number] for fuller in refills.get(number, ())
        )

    return [candidate for number, candidate in left.items() if first(number)]


def _apart(ordered: Sequence[Candidate], count: int) -> list[Candidate]:
    """The first `count` of which none is `alike` to one before; where these are too few, of the
    others too."""
    chosen: list[Candidate] = []
    for candidate in ordered:
        if len(chosen) < count and not any(alike(candidate.plan, other.plan) for other in chosen):
            chosen.append(candidate)
    taken = {candidate.number for candidate in chosen}
    return [*chosen, *(candidate for candidate in ordered if candidate.number not in taken)][
        : max(0, count)
    ]


def least_cost_wanted(study: Study) -> bool:
    """Whether the least cost is wanted at which a limited quality is kept: that only training
    tells."""
    limited = {limit.quantity for limit in study.budget.limits}
    return "metric_drop" in limited and (
        "metric" not in study.search.objectives or limited == {"metric_drop"}
    )


def _bisect(
    front: Sequence[Candidate], found: Mapping[int, Candidate], count: int
) -> Candidate | None:
    """By bisection of the front, best quality first: how far down it does a plan keep its quality
    when trained?"""
    trained = [found.get(candidate.number) for candidate in front]
    if sum(candidate is not None for candidate in trained) >= count:
        return None
    kept = max(
        (place for place, trial in enumerate(trained) if trial is not None and trial.feasible),
        default=-1,
    )
    lost = (
        place
        for place, trial in enumerate(trained)
        if trial is not None and not trial.feasible and place > kept
    )
    middle = (kept + min(lost, default=len(front))) // 2
    return front[middle] if 0 <= middle < len(front) and trained[middle] is None else None


def best(
    study: Study, dense: Score, candidates: Sequence[Candidate], refilled: Collection[int] = ()
) -> list[Candidate]:
    """The screened candidates whose costs keep the budget, in the order in which they should be
    trained.

    Where a cost is limited, best quality first: nothing is gained by being faster than was asked
    for. Where the least cost is wanted at which quality is kept, those that no other dominates,
    best quality first; where nothing is limited, spread over the non-dominated ranks (Deb et al.
    2002). Quality is the loss, whatever the objectives say: it is finer than a metric, and plans of
    equal latency are much alike. Those `refilled`, by their numbers, lie closer to the edge: what
    they rest on was measured in fresh processes.
    """
    feasibility, goal = study.feasibility(dense), study.task.metric.goal
    screened = [candidate for candidate in candidates if candidate.stage == "screened"]
    fitting = [
        candidate
        for candidate in screened
        if _inside(feasibility, candidate.score, 0.0 if candidate.number in refilled else EDGE)
    ]
    fitting = fitting or [
        candidate for candidate in screened if _inside(feasibility, candidate.score, 0.0)
    ]
    unique = list({_net(candidate): candidate for candidate in reversed(fitting)}.values())
    if study.budget.limits and not least_cost_wanted(study):
        return sorted(
            unique, key=lambda candidate: (candidate.score.objective("loss"), candidate.number)
        )
    objectives = [
        "loss",
        *(name for name in study.search.objectives if name not in ("metric", "loss")),
    ]
    points = {candidate.number: costs_of(candidate.score, objectives, goal) for candidate in unique}
    ordered = sorted(unique, key=lambda candidate: points[candidate.number])
    ranks = _ranks([points[candidate.number] for candidate in ordered])
    if least_cost_wanted(study):
        return [point for point, rank in zip(ordered, ranks, strict=True) if rank == 0]
    by_rank = [
        [point for point, own in zip(ordered, ranks, strict=True) if own == rank]
        for rank in sorted(set(ranks))
    ]
    return [candidate for rank in by_rank for candidate in _spread(rank)]


def _net(candidate: Candidate) -> tuple[float | None, ...]:
    """What tells nets apart: plans that come to the same net have the same loss to the last
    digit."""
    score = candidate.score
    return score.loss, score.flops, score.params, score.nonzero_params


def _ranks(points: Sequence[tuple[float, ...]]) -> list[int]:
    """The non-dominated rank of each point, 0 the best; less is better in every place."""
    table = np.array(points, dtype=float)
    # Whether the row's point is nowhere worse
    covers = np.ones((len(table), len(table)), dtype=bool)
    for column in table.T:
        covers &= column[:, None] <= column[None, :]
    dominates = covers & ~covers.T
    ranks, left, rank = np.zeros(len(table), dtype=int), np.ones(len(table), dtype=bool), 0
    while left.any():
        first = left & ~dominates[left].any(0)
        ranks[first], left, rank = rank, left & ~first, rank + 1
    return [int(rank) for rank in ranks]


def alike(first: Plan, second: Plan) -> bool:
    """Whether two plans differ in so little that training both tells nothing more: a quarter of one
    group in all.

    A criterion alone is no difference; a block that goes in one and stays in the other is a whole
    one.
    """

    def apart(key: str) -> float:
        one, other = first.choices.get(key), second.choices.get(key)
        if one is not None and other is not None and one.technique == other.technique:
            return abs(one.ratio - other.ratio)
        return max(candidate.ratio for candidate in (one, other) if candidate is not None)

    return sum(map(apart, {*first.choices, *second.choices})) < _LEAST_DISTANCE


def _inside(feasibility: Feasibility, score: Score, margin: float) -> bool:
    """Whether the costs keep the budget; what was looked at but briefly, with a margin against the
    winner's curse."""
    violations = feasibility.violations(score.evolve(metric=None).at_middle())
    allowed = {
        limit.key: -margin if needs_run(limit.quantity) else 0
        for limit in feasibility.budget.limits
    }
    return all(violation <= allowed[key] for key, violation in violations.items())


def _spread(ordered: list[Candidate]) -> list[Candidate]:
    """The middle first, then the middles of what is left on both sides, and so on."""
    spread, parts = [], [ordered]
    while parts:
        part = parts.pop(0)
        middle = len(part) // 2
        spread += part[middle : middle + 1]
        parts += [half for half in (part[:middle], part[middle + 1 :]) if half]
    return spread
