"""A budget in milliseconds is the same budget in per cent of dense: one dense figure, whatever the machine does."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_search import quick, study

from autoprune.budget import Budget, Feasibility, Limit
from autoprune.latency_figures import LatencyFigures
from autoprune.measuring import measure
from autoprune.measuring.timing.latency import Latency
from autoprune.plan import Plan
from autoprune.run import Run
from autoprune.score import Score
from autoprune.searching.evaluating.preparation import prepare
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.search import Result
from autoprune.searching.search import search as run_search

__all__ = ["quick"]  # a fixture that every test here uses
pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.promise("milliseconds"),
]

DENSE_MS = 0.8  # of the first process; later ones find the machine up to half as fast


@pytest.fixture
def drifting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is faster or slower from one measurement to the next; ratios are those of the parameters."""
    calls = itertools.count()

    def timed(candidate: Any, dense: Any, *args: Any, **options: Any) -> Latency:
        speed = DENSE_MS * (1 + 0.5 * math.sin(next(calls)) ** 2)

        def size(model: Any) -> int:
            return sum(each.numel() for each in model.parameters())

        if dense is None:
            return Latency(
                speed,
                0.99 * speed,
                1.01 * speed,
                None,
                None,
                None,
                40,
                True,
                1.2 * speed,
                1.5 * speed,
            )
        ratio = 0.2 + 0.8 * size(candidate) / size(dense)
        ms = ratio * speed
        bounds = (0.99 * ratio, 1.01 * ratio)
        return Latency(
            ms, 0.9 * ms, 1.1 * ms, ratio, *bounds, 40, True, 1.2 * ms, 1.5 * ms, dense_ms=speed
        )

    monkeypatch.setattr(measure, "time_artefact", timed)


def searched(folder: Path, budget: str) -> Result:
    settings: dict[str, Any] = {"trials": 10, "finalists": 2, "objectives": ("metric", "latency")}
    return run_search(study({"latency": budget}, **settings), Run(folder))


def judged(folder: Path, result: Result, budget: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Every trial as it was judged: its plan, what came of it, and whether it is inside."""
    candidates = Journal.read(
        study(budget, objectives=("metric", "latency")), Run(folder), result.dense
    )
    return [
        (each.plan, each.stage, each.feasible, each.score.metric, each.score.latency.ratio)
        for each in candidates
    ]


def test_a_budget_in_milliseconds_is_the_same_one_in_per_cent(
    tmp_path: Path, drifting: None
) -> None:
    first = searched(tmp_path / "share", "60%")
    (kept,) = (tmp_path / "share" / "cache" / "dense").glob("*.json")
    dense = tmp_path / "other" / "cache" / "dense" / kept.name
    dense.parent.mkdir(parents=True)
    dense.write_text(kept.read_text())  # the same dense figure: it is a constant of the study
    same = f"{0.6 * (first.dense.latency.ms or 0)!r}ms"
    second = searched(tmp_path / "other", same)
    assert first.best is not None and second.best is not None
    assert (first.best.number, first.best.plan) == (second.best.number, second.best.plan)
    one = judged(tmp_path / "share", first, {"latency": "60%"})
    assert one == judged(tmp_path / "other", second, {"latency": same})
    assert len(one) >= 10 and any(feasible for _, stage, feasible, *_ in one if stage == "trained")


@pytest.mark.parametrize("high", [0.49, 0.5, 0.51, 0.7])
@pytest.mark.parametrize("target", ["", "cpu_eager"])
def test_limits_in_units_and_in_shares_of_dense_are_the_same(high: float, target: str) -> None:
    dense = Score(
        latency=LatencyFigures(ms=0.8, throughput=1250.0, ms_high=0.9, throughput_low=1100.0)
    )
    score = Score(
        latency=LatencyFigures(ratio=high, ratio_high=high, ms_high=0.45, throughput_low=2200.0)
    )
    dense, score = (
        Score(elsewhere={"cpu_eager": each}) if target else each for each in (dense, score)
    )
    for quantity, share, units in (("latency", "50%", "0.4ms"), ("throughput", "200%", "2500/s")):
        one, other = (
            Limit.parse(f"{quantity} on {target}" if target else quantity, each)
            for each in (share, units)
        )
        used = [Feasibility(Budget((limit,)), dense, "maximize") for limit in (one, other)]
        assert used[0].violation(score) == pytest.approx(used[1].violation(score))


def test_every_millisecond_is_the_ratio_of_one_dense_figure(tmp_path: Path, drifting: None) -> None:
    result = searched(tmp_path, "60%")
    dense = result.dense
    assert dense.latency.ms == DENSE_MS and dense.latency.ratio == 1.0
    assert (dense.latency.ms_low, dense.latency.ms_high) == (0.99 * DENSE_MS, 1.01 * DENSE_MS)
    candidates = Journal.read(
        study({"latency": "60%"}, objectives=("metric", "latency")), Run(tmp_path), dense
    )
    assert len(candidates) >= 10
    best = json.loads((tmp_path / "best" / "score.json").read_text())
    front = json.loads((tmp_path / "front.json").read_text())
    assert front["baseline"]["latency_ms"] == best["dense"]["latency_ms"] == DENSE_MS
    every = [each.score for each in candidates] + [
        Score.from_json(each["score"]) for each in front["front"]
    ]
    for score in [*every, Score.from_json(best)]:
        for end in ("", "_low", "_high"):
            share, of = getattr(score.latency, f"ratio{end}"), DENSE_MS
            # the dense model itself: there the interval of the one figure is told
            if score.latency.ratio == 1:
                of = getattr(dense.latency, f"ms{end}")
            assert getattr(score.latency, f"ms{end}") == pytest.approx(share * of, rel=1e-9)
        assert score.latency.ratio and score.latency.ms
        assert score.latency.throughput == pytest.approx(
            (dense.latency.throughput or 0) / score.latency.ratio
        )
        assert score.latency.ms_p90 == pytest.approx(1.2 * score.latency.ms)
        assert score.latency.ms_p99 == pytest.approx(1.5 * score.latency.ms)


def test_the_dense_figure_is_measured_once_and_gone_on_with(tmp_path: Path, drifting: None) -> None:
    prepared = [prepare(study(), Run(tmp_path)).dense for _ in range(2)]
    assert prepared[0] == prepared[1] and prepared[0].latency.ms == DENSE_MS


@pytest.mark.slow
def test_dense_is_all_of_dense(tmp_path: Path) -> None:
    own = study({"memory": "90%", "latency": "90%"}, objectives=("metric", "latency", "memory"))
    prepared = prepare(own, Run(tmp_path))
    again = prepared.costs.of_finished(
        prepared.model, prepared.cut_by_magnitude(Plan()), prepared.dense, 5
    )
    for name, limit in (("latency", "90%"), ("memory", "90%")):
        for score in (prepared.dense, again, prepared.cost(Plan())):
            feasibility = own.feasibility(prepared.dense)
            assert feasibility.usage(Limit.parse(name, limit), score) == 1.0


def test_milliseconds_of_an_earlier_run_follow_the_dense_figure_of_now() -> None:
    kept = Score(
        latency=LatencyFigures(ms=0.5, ms_high=0.6, ratio=0.5, ratio_low=0.4, ratio_high=0.55),
    )
    dense = Score(latency=LatencyFigures(ms=2.0, throughput=500.0, ratio=1.0))
    now = kept.beside(dense)
    assert (now.latency.ms, now.latency.ms_low, now.latency.ms_high) == (1.0, 0.8, 1.1)
    assert now.latency.throughput == 1000.0 and now.latency.throughput_low == pytest.approx(
        500 / 0.55
    )
    assert kept.beside(Score()) == kept
