"""Promotion: which of the plans judged untrained are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoprune.score import NEED_A_RUN, Candidate, Score, costs_of, dominates
from autoprune.study import Study

__all__ = ["best", "least_cost_wanted", "promoted"]

_EDGE = 0.015  # of the budget: what a first look puts closer to it hardly keeps it once its interval counts


def promoted(
    study: Study, dense: Score, candidates: Sequence[Candidate], promotions: Mapping[int, int], count: int
) -> Candidate | None:
    """The next candidate to train, so that the best `count` end trained; None where they are.

    `promotions`: for the number of each that was promoted, that of the trial which trained its plan. One that turned
    out not to keep the budget, or whose training broke down, does not count.
    """
    by_number = {each.number: each for each in candidates}
    known = {each.plan.digest: each for each in candidates if each.stage == "trained"}
    found: dict[int, Candidate] = {}  # what trained them
    left = []
    for candidate in best(study, dense, candidates):
        if candidate.number in promotions:
            tried = by_number[promotions[candidate.number]]
            if tried.stage == "trained":
                found[candidate.number] = tried
        elif candidate.plan.digest in known:
            found[candidate.number] = known[candidate.plan.digest]
        if candidate.number in found or candidate.number not in promotions:
            left.append(candidate)
    if least_cost_wanted(study):
        return _halved(left, found, count)
    for candidate in left:
        if count <= 0:
            return None
        if candidate.number not in found:
            return candidate
        count -= 1
    return None


def least_cost_wanted(study: Study) -> bool:
    """Whether the least cost is wanted at which a limited quality is kept: that only training tells."""
    limited = {limit.quantity for limit in study.budget.limits}
    return "metric_drop" in limited and ("metric" not in study.search.objectives or limited == {"metric_drop"})


def _halved(front: Sequence[Candidate], found: Mapping[int, Candidate], count: int) -> Candidate | None:
    """By bisection of the front, best quality first: how far down it does a plan keep its quality when trained?"""
    trained = [found.get(each.number) for each in front]
    if sum(each is not None for each in trained) >= count:
        return None
    kept = max((place for place, each in enumerate(trained) if each is not None and each.feasible), default=-1)
    lost = (place for place, each in enumerate(trained) if each is not None and not each.feasible and place > kept)
    middle = (kept + min(lost, default=len(front))) // 2
    return front[middle] if 0 <= middle < len(front) and trained[middle] is None else None


def best(study: Study, dense: Score, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The screened candidates whose costs keep the budget, in the order in which they should be trained.

    Where a cost is limited, by non-dominated rank (Deb et al. 2002) and, within a rank, by quality. Where the least
    cost is wanted at which quality is kept, those of the first rank, best quality first; where nothing is limited,
    spread over the ranks. Quality is the loss, whatever the objectives say: it is finer than a metric, and plans of
    equal latency are much alike.
    """
    goal = study.task.metric.goal
    objectives = ["loss", *(name for name in study.search.objectives if name not in ("metric", "loss"))]
    screened = [each for each in candidates if each.stage == "screened"]
    fitting = [each for each in screened if _inside(study, dense, each.score, _EDGE)]
    fitting = fitting or [each for each in screened if _inside(study, dense, each.score, 0.0)]
    unique = list({_net(each): each for each in reversed(fitting)}.values())
    points = {each.number: costs_of(each.score, objectives, goal) for each in unique}
    ranks: list[list[Candidate]] = []
    left = sorted(unique, key=lambda each: points[each.number])  # best quality first
    while left:
        ranks.append(_front(left, points))
        if least_cost_wanted(study):
            return ranks[0]
        numbers = {each.number for each in ranks[-1]}
        left = [each for each in left if each.number not in numbers]
    if study.budget.limits:
        return [each for rank in ranks for each in rank]
    return [each for rank in ranks for each in _spread(rank)]


def _net(candidate: Candidate) -> tuple[float | None, ...]:
    """What tells nets apart: plans that come to the same net have the same loss to the last digit."""
    score = candidate.score
    return score.loss, score.flops, score.params, score.nonzero_params


def _front(ordered: list[Candidate], points: Mapping[int, tuple[float, ...]]) -> list[Candidate]:
    """Those that no other dominates, of candidates in the order of their points."""
    found: list[Candidate] = []
    for each in ordered:  # only one that comes before can dominate
        if not any(dominates(points[other.number], points[each.number]) for other in reversed(found)):
            found.append(each)
    return found


def _inside(study: Study, dense: Score, score: Score, margin: float) -> bool:
    """Whether the costs keep the budget; what was looked at but briefly, with a margin against the winner's curse."""
    for limit in study.budget.limits:
        found = None if limit.quantity == "metric_drop" else limit.violation(score.expected(), dense, "maximize")
        if found is not None and found > (-margin if limit.quantity in NEED_A_RUN else 0):
            return False
    return True


def _spread(ordered: list[Candidate]) -> list[Candidate]:
    """The middle first, then the middles of what is left on both sides, and so on."""
    found, parts = [], [ordered]
    while parts:
        part = parts.pop(0)
        middle = len(part) // 2
        found += part[middle : middle + 1]
        parts += [half for half in (part[:middle], part[middle + 1 :]) if half]
    return found
