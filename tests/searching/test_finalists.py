"""Which trained plan is the best, which model is kept, and what is said where none keeps the budget."""

from __future__ import annotations

import math

import pytest
from small_search import quick, study

from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Choice, Plan
from autoprune.score import Candidate, Score
from autoprune.searching import records
from autoprune.searching.selecting import finalists
from autoprune.searching.selecting.infeasible import nearest_miss

__all__ = ["quick"]  # a fixture that every test here uses
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def candidate(
    number: int, metric: float, flops: int, params: int = 10, stage: str = "trained"
) -> Candidate:
    score = Score(
        metric,
        flops=flops,
        params=params,
        nonzero_params=params,
        size_bytes=params,
        latency=LatencyFigures(ratio=0.5, ratio_high=0.5),
    )
    return Candidate(
        number, Plan({f"{number}:units": Choice("structured", 0.5)}), score, True, stage
    )


def test_a_model_is_kept_where_some_budget_could_want_it() -> None:
    before = [candidate(1, 0.9, 100, 50)]
    assert records.worth_keeping(candidate(2, 0.95, 200, 90), before, "maximize")
    assert records.worth_keeping(candidate(2, 0.8, 100, 20), before, "maximize")  # fewer parameters
    assert not records.worth_keeping(candidate(2, 0.8, 100, 50), before, "maximize")
    assert records.worth_keeping(candidate(2, 0.8, 100, 50), before, "minimize")


def test_the_best_is_the_best_metric_then_the_faster() -> None:
    found = [
        candidate(1, 0.9, 100, 50),
        candidate(2, 0.9, 100, 40),
        candidate(3, 0.7, 10),
        candidate(4, 0.99, 1, stage="cost"),
    ]
    assert [each.number for each in finalists.rank_finalists(study(), found)] == [2, 1, 3]


def test_what_was_reachable_is_said_in_the_budgets_own_units() -> None:
    dense = Score(0.9, flops=1000, params=100)
    said = nearest_miss(study({"flops": "20%", "params": "30%"}), dense, [
        Candidate(0, Plan(), dense, False, "dense"), candidate(1, 0.8, 333, 20), candidate(2, 0.7, 250, 80),
    ])  # fmt: skip
    assert "flops=33.3%, params=30% (trial 1, accuracy 0.8)" in said
    assert "The nearest that is trained was trial" in said
    assert math.isclose(float(said.split("flops=")[1].split("%")[0]), 33.3)
