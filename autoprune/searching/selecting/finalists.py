"""Finalists: the best-looking of many noisy figures is a winner's curse; so they are measured again
first."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from autoprune.score import Candidate, Score, by_quality, costs_of
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating.evaluator import PROCESSES, decide
from autoprune.searching.failures import ends_the_search, reason_of
from autoprune.searching.records import kept_model
from autoprune.searching.selecting.promotion import least_cost_wanted
from autoprune.searching.session import Session
from autoprune.study import Study
from autoprune.training.judging import judge

__all__ = ["rank_finalists", "settle"]


def rank_finalists(study: Study, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Feasible trained candidates, best quality first (`score.by_quality`).

    Where quality alone is limited, the least cost first: all of them keep it.
    """
    goal = study.task.metric.goal
    finalists = [candidate for candidate in candidates if candidate.feasible and candidate.trained]
    if not least_cost_wanted(study):
        return by_quality(finalists, goal)
    sign = -1.0 if goal == "maximize" else 1.0
    costs = [name for name in study.search.objectives if name not in ("metric", "loss")]
    return sorted(
        finalists,
        key=lambda candidate: (
            *costs_of(candidate.score, costs, goal),
            sign * candidate.score.objective("metric"),
        ),
    )


def _tell_coarse(study: Study, order: Sequence[Candidate], listener: Listener) -> None:
    """Say where the loss has put a candidate before one of a better metric."""
    metric = study.task.metric
    before = [
        candidate
        for candidate in order[1:]
        if metric.better(candidate.score.objective("metric"), order[0].score.metric or 0.0)
    ]
    if before and not least_cost_wanted(study):
        first, score = before[0].number, order[0].score
        listener.note(
            f"{metric.name} does not tell trial {order[0].number} ({_show_quality(score)}) from "
            f"trial {first} "
            f"({_show_quality(before[0].score)}), so the loss decides: "
            f"{score.loss:.4g} against {before[0].score.loss:.4g}"
        )


def _show_quality(score: Score) -> str:
    return f"{score.metric:.4g} ± {score.metric_error or 0:.2g}"


def settle(
    session: Session, candidates: Sequence[Candidate]
) -> tuple[Candidate | None, list[Candidate]]:
    """The best candidate that keeps the budget when measured again in fresh processes, with its
    test metric; or None.

    Beside it all candidates, with the figures of those that were measured again and did not keep
    it.
    """
    study, listener = session.study, session.listener
    judged = {candidate.number: candidate for candidate in candidates}
    order = rank_finalists(study, candidates)
    _tell_coarse(study, order, listener)
    for candidate in order:
        listener.on_step(
            0, f"measuring trial {candidate.number} again in {PROCESSES} fresh processes"
        )
        try:
            score, broken = _again(session, candidate)
        except Exception as error:  # the next one takes its place
            if ends_the_search(error):
                raise
            broken = [reason_of(error)]
            judged[candidate.number] = replace(candidate, feasible=False, reason=broken[0])
            listener.note(f"trial {candidate.number} cannot be measured again: {broken[0]}")
            continue
        if broken:
            judged[candidate.number] = replace(
                candidate, score=score, feasible=False, reason="; ".join(broken)
            )
            listener.note(
                f"trial {candidate.number} is out of the budget when measured again: "
                f"{'; '.join(broken)}"
            )
            continue
        return replace(candidate, score=score), list(judged.values())
    return None, list(judged.values())


def _again(session: Session, candidate: Candidate) -> tuple[Score, list[str]]:
    """The score measured again, with the test metric where the budget is kept, and what is broken
    of the budget."""
    study, prepared, feasibility = session.study, session.prepared, session.evaluator.feasibility
    model = kept_model(session.run, candidate.number, prepared.model)
    finished = functools.partial(
        prepared.costs.of_finished,
        model,
        prepared.cut_by_magnitude(candidate.plan),
        candidate.score,
    )
    score = decide(finished, feasibility)
    broken = feasibility.reasons(score) + feasibility.unmeasured(score)
    if not broken and study.task.data.test is not None:
        tested = judge(model, study.task, study.target, "test", study.recovery.device)
        score = score.evolve(test_metric=tested.metric)
    return score, broken
