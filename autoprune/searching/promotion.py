"""Promotion: which of the plans judged untrained are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoprune.score import NEED_A_RUN, Candidate, Score, costs_of, dominates
from autoprune.searching.steering import MARGIN
from autoprune.study import Study

__all__ = ["best", "promoted"]


def promoted(
    study: Study, dense: Score, candidates: Sequence[Candidate], given_up: set[int], count: int
) -> Candidate | None:
    """The next candidate to train, so that the best `count` end trained; None where they are.

    `given_up`: numbers of those that were tried and turned out not to keep the budget.
    """
    known = {each.plan.digest: each for each in candidates if each.stage in ("trained", "failed")}
    ordered = best(study, dense, candidates)
    if [limit.quantity for limit in study.budget.limits] == ["metric_drop"]:
        left = [each for each in ordered if each.number not in given_up or each.plan.digest in known]
        return _halved(left, known, count)
    for candidate in ordered:
        if count <= 0:
            return None
        if candidate.plan.digest in known:
            count -= 1
        elif candidate.number not in given_up:
            return candidate
    return None


def _halved(front: Sequence[Candidate], known: Mapping[str, Candidate], count: int) -> Candidate | None:
    """By bisection of the front, best quality first: how far down it does a plan keep its quality when trained?"""
    trained = [known.get(each.plan.digest) for each in front]
    if sum(each is not None for each in trained) >= count:
        return None
    kept = max((place for place, each in enumerate(trained) if each is not None and each.feasible), default=-1)
    lost = (place for place, each in enumerate(trained) if each is not None and not each.feasible and place > kept)
    middle = (kept + min(lost, default=len(front))) // 2
    return front[middle] if 0 <= middle < len(front) and trained[middle] is None else None


def best(study: Study, dense: Score, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The screened candidates whose costs keep the budget, in the order in which they should be trained.

    Where a cost is limited, by non-dominated rank (Deb et al. 2002) and, within a rank, by quality. Where only quality
    is, those of the first rank, best quality first; where nothing is, spread over the ranks. Quality is the loss,
    whatever the objectives say: it is finer than a metric, and plans of equal latency are much alike.
    """
    goal = study.task.metric.goal
    objectives = ["loss" if name == "metric" else name for name in study.search.objectives]
    fitting = [each for each in candidates if each.stage == "screened" and _inside(study, dense, each.score)]
    unique = list({each.plan.digest: each for each in reversed(fitting)}.values())
    ranks: list[list[Candidate]] = []
    left = {each.number: costs_of(each.score, objectives, goal) for each in unique}
    by_number = {each.number: each for each in unique}
    while left:
        front = [number for number, one in left.items() if not any(dominates(other, one) for other in left.values())]
        ranks.append([by_number[number] for number in sorted(front, key=lambda number: left[number])])
        left = {number: one for number, one in left.items() if number not in front}
    limited = {limit.quantity for limit in study.budget.limits}
    if limited == {"metric_drop"}:
        return sorted(ranks[0], key=lambda each: each.score.objective("loss")) if ranks else []
    if limited:
        return [each for rank in ranks for each in sorted(rank, key=lambda each: each.score.objective("loss"))]
    return [each for rank in ranks for each in _spread(rank)]


def _inside(study: Study, dense: Score, score: Score) -> bool:
    """Whether the costs keep the budget; what was looked at but briefly, with a margin against the winner's curse."""
    for limit in study.budget.limits:
        found = None if limit.quantity == "metric_drop" else limit.violation(score.expected(), dense, "maximize")
        if found is not None and found > (-MARGIN if limit.quantity in NEED_A_RUN else 0):
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
