"""Promotion: which of the plans judged untrained are trained."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from small_screening import screening, searched
from small_search import quick

from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Choice, Plan
from autoprune.run import Run
from autoprune.score import Candidate, Score
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.selecting.promotion import alike, best, next_promotion

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

__all__ = ["quick"]  # a fixture that every test here uses


def _screened(number: int, metric: float, latency: float) -> Candidate:
    score = Score(
        metric=metric,
        loss=1 - metric,
        latency=LatencyFigures(ratio=latency, ratio_high=2.0),
        flops=1,
    )
    return Candidate(
        number, Plan({"a:units": Choice("structured", number / 100)}), score, False, "screened"
    )


@pytest.mark.promise("slack")
def test_promotion_goes_by_quality_inside_the_budget() -> None:
    given = screening({"latency": "50%"}, objectives=("metric", "latency"))
    candidates = [
        _screened(1, 0.9, 0.6),  # outside
        _screened(2, 0.7, 0.45),
        _screened(3, 0.8, 0.4915),
        _screened(7, 0.85, 0.4935),  # at the very edge
        _screened(4, 0.69, 0.48),  # dominated by 2
        _screened(5, 0.3, 0.2),  # needlessly fast
    ]
    dense = Score(metric=0.95, latency=LatencyFigures(ratio=1.0))
    assert [each.number for each in best(given, dense, candidates)] == [3, 2, 4, 5]
    twin = _screened(6, 0.8, 0.492)  # another plan that comes to the same net as 3
    assert [each.number for each in best(given, dense, [*candidates, twin])] == [3, 2, 4, 5]
    first = next_promotion(given, dense, candidates, {}, 2)
    assert first is not None and first.number == 3
    trained = replace(candidates[2], number=8, stage="trained", feasible=True)
    second = next_promotion(given, dense, [*candidates, trained], {3: 8}, 2)
    assert second is not None and second.number == 2
    slow = replace(candidates[1], number=9, stage="latency")
    # another takes the place of 2
    third = next_promotion(given, dense, [*candidates, trained, slow], {3: 8, 2: 9}, 2)
    assert third is not None and third.number == 4
    assert next_promotion(given, dense, [*candidates, trained], {3: 8}, 1) is None
    by_another = replace(candidates[2], number=8, stage="trained")  # under an earlier budget, say
    fourth = next_promotion(given, dense, [*candidates, by_another], {}, 2)
    assert fourth is not None and fourth.number == 2


@pytest.mark.promise("slack")
def test_plans_that_are_trained_differ_in_more_than_a_criterion_or_a_few_units() -> None:
    given, dense = (
        screening({"latency": "50%"}, objectives=("metric", "latency")),
        Score(metric=0.95),
    )

    def judged(number: int, **choices: Choice) -> Candidate:
        plan = Plan(
            {f"{key}:{'blocks' if key == 'b' else 'units'}": each for key, each in choices.items()}
        )
        return replace(_screened(number, 0.9 - number / 100, 0.45), plan=plan)

    first = judged(1, a=Choice("structured", 0.5, "l1"), c=Choice("structured", 0.25))
    criterion = judged(2, a=Choice("structured", 0.5, "l2"), c=Choice("structured", 0.25))
    units = judged(3, a=Choice("structured", 0.625, "l1"), c=Choice("structured", 0.1875))
    other = judged(4, a=Choice("structured", 0.25, "l1"), c=Choice("structured", 0.5))
    block = judged(
        5, a=Choice("structured", 0.5, "l1"), c=Choice("structured", 0.25), b=Choice("depth", 1.0)
    )
    candidates, order = [first, criterion, units, other, block], list[int]()
    while chosen := next_promotion(
        given, dense, candidates, {number: 100 + number for number in order}, 4
    ):
        order.append(chosen.number)
        candidates.append(
            replace(chosen, number=100 + chosen.number, stage="trained", feasible=True)
        )
    assert order == [1, 4, 5, 2]  # where nothing else is left, one that is alike
    assert alike(first.plan, units.plan) and not alike(first.plan, other.plan)


@pytest.mark.promise("slack")
def test_a_plan_that_spends_what_a_finalist_left_takes_its_place() -> None:
    given, dense = (
        screening({"latency": "50%"}, objectives=("metric", "latency")),
        Score(metric=0.95),
    )
    far = Plan({"b:blocks": Choice("depth", 1.0)})
    finalist, other = _screened(1, 0.8, 0.45), replace(_screened(2, 0.7, 0.45), plan=far)
    # of the first the edge is known better
    fuller, worse = (_screened(3, 0.85, 0.4985), _screened(3, 0.79, 0.49))
    assert next_promotion(given, dense, [finalist, other, fuller], {}, 1) == finalist
    assert next_promotion(given, dense, [finalist, other, fuller], {}, 1, {1: [3]}) == fuller
    slow = replace(fuller, number=4, stage="latency")
    assert (
        next_promotion(given, dense, [finalist, other, fuller, slow], {3: 4}, 1, {1: [3]})
        == finalist
    )
    trained = replace(fuller, number=4, stage="trained", feasible=True)
    assert (
        next_promotion(given, dense, [finalist, other, fuller, trained], {3: 4}, 2, {1: [3]})
        == other
    )
    assert next_promotion(given, dense, [finalist, other, worse], {}, 1, {1: [3]}) == finalist


@pytest.mark.promise("speed")
@pytest.mark.parametrize("budget", [{"latency": "50%"}, {"metric_drop": "0.1"}, {}])
def test_a_thousand_plans_are_ranked_in_a_moment(budget: dict[str, str]) -> None:
    given, draw = screening(budget, objectives=("metric", "latency")), random.Random(0)
    dense = Score(metric=0.95, latency=LatencyFigures(ratio=1.0))
    candidates = [
        _screened(number % 100, draw.random(), draw.uniform(0.1, 0.49)) for number in range(1000)
    ]
    candidates = [replace(each, number=number) for number, each in enumerate(candidates)]
    taken = []
    for _ in range(3):
        began = time.process_time()
        found = best(given, dense, candidates)
        taken.append(time.process_time() - began)
    assert min(taken) < 0.1 and (len(found) == 1000 or "metric_drop" in budget)


@pytest.mark.promise("speed")
def test_a_journal_is_read_without_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    result = searched(tmp_path, trials=4, finalists=1)
    monkeypatch.setattr(
        optuna.trial.FrozenTrial, "__deepcopy__", lambda *_: pytest.fail("copied"), raising=False
    )
    found = Journal.read(screening(), Run(tmp_path), result.dense)
    assert [each.stage for each in found].count("screened") >= 3


def test_where_only_quality_is_limited_the_front_is_halved() -> None:
    given = screening({"metric_drop": "0.1"}, objectives=("metric", "latency"))
    dense = Score(metric=0.95, latency=LatencyFigures(ratio=1.0))
    front = [_screened(number, 0.9 - number / 100, 0.9 - number / 10) for number in range(1, 8)]
    candidates = [*front, _screened(9, 0.5, 0.5)]  # the last is dominated
    keeps = 6  # the first six keep their quality when they are trained
    order: list[int] = []
    while chosen := next_promotion(
        given, dense, candidates, {number: 100 + number for number in order}, 4
    ):
        order.append(chosen.number)
        trained = replace(
            chosen, number=100 + chosen.number, stage="trained", feasible=chosen.number <= keeps
        )
        candidates.append(trained)
    assert order == [4, 6, 7] and len(order) <= 4
    spread = best(screening({}, objectives=("metric", "latency")), dense, front)
    # nothing is limited: the middle, then those of the halves
    assert [each.number for each in spread][:3] == [4, 2, 6]
