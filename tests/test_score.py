"""Score as JSON, and the laws of the Pareto front."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Plan
from autoprune.score import Candidate, Score, better, by_quality, direction, dominates, pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


def candidate(number: int, metric: float, ratio: float, stage: str = "trained") -> Candidate:
    return Candidate(
        number, Plan(), Score(metric=metric, latency=LatencyFigures(ratio=ratio)), True, stage
    )


def test_json_round_trip() -> None:
    score = Score(
        metric=0.5,
        flops=3,
        latency=LatencyFigures(ms=1.0),
        uncounted=("grid_sampler",),
        unavailable=("energy: none",),
    )
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score
    assert Score.from_json(score.to_json() | {"from_a_later_release": 1}) == score
    assert score.evolve(flops=4) == Score(
        metric=0.5,
        flops=4,
        latency=LatencyFigures(ms=1.0),
        uncounted=("grid_sampler",),
        unavailable=("energy: none",),
    )


def test_objectives_by_their_short_names() -> None:
    score = Score(metric=0.5, latency=LatencyFigures(ratio=0.3), size_bytes=7, flops=9)
    assert [score.objective(name) for name in ("metric", "latency", "size", "flops")] == [
        0.5,
        0.3,
        7.0,
        9.0,
    ]
    with pytest.raises(ValueError, match="no params"):
        score.objective("params")
    more = Score(
        latency=LatencyFigures(ratio=0.25, ms=2.0, throughput=9.0),
        size_compressed_bytes=5,
        resources={"memory": 6, "energy": 1.5},
    )
    assert [
        more.objective(name) for name in ("throughput", "size_compressed", "memory", "energy")
    ] == [4.0, 5.0, 6.0, 1.5]
    assert (more.figure("throughput"), more.figure("latency"), more.figure("size")) == (
        9.0,
        2.0,
        None,
    )
    for name in ("throughput", "memory", "energy", "size_compressed"):
        with pytest.raises(ValueError, match=f"no {name}"):
            Score().objective(name)


def test_directions_and_a_front_over_throughput() -> None:
    assert [direction(name, "minimize") for name in ("metric", "throughput", "memory")] == [
        "minimize",
        "maximize",
        "minimize",
    ]
    assert direction("metric", "maximize") == "maximize"
    candidates = [candidate(0, 0.9, 1.0), candidate(1, 0.8, 0.5), candidate(2, 0.7, 0.6)]
    assert [
        one.number for one in pareto_front(candidates, ("metric", "throughput"), "maximize")
    ] == [0, 1]


def test_a_score_is_completed_where_it_lacks_figures() -> None:
    whole = Score(flops=1).fill_from(Score(flops=2, resources={"memory": 3}))
    assert (whole.flops, whole.resources) == (1, {"memory": 3})


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(points=POINTS)
def test_front_laws(goal: str, points: list[tuple[int, int]]) -> None:
    candidates = [
        candidate(number, float(metric), float(ratio))
        for number, (metric, ratio) in enumerate(points)
    ]
    front = pareto_front(candidates, ("metric", "latency"), goal)
    sign = -1 if goal == "maximize" else 1

    def costs(one: Candidate) -> tuple[float, float]:
        return sign * one.score.objective("metric"), one.score.objective("latency")

    assert front
    for one in front:
        assert not any(dominates(costs(other), costs(one)) for other in candidates)
    for one in candidates:
        assert any(
            costs(other) == costs(one) or dominates(costs(other), costs(one)) for other in front
        )
    assert [costs(one) for one in front] == sorted({costs(one) for one in front})
    assert pareto_front(front, ("metric", "latency"), goal) == front
    assert {costs(one) for one in pareto_front(candidates[::-1], ("metric", "latency"), goal)} == {
        costs(one) for one in front
    }


def test_the_first_of_equals_stays_and_the_untrained_stay_out() -> None:
    candidates = [
        candidate(0, 0.9, 1.0, "dense"),
        candidate(1, 0.8, 0.5),
        candidate(2, 0.8, 0.5),
        candidate(3, 0.99, 0.1, "screened"),
        Candidate(4, Plan(), Score(), False, "failed", "the loss is not finite"),
    ]
    assert [one.number for one in pareto_front(candidates, ("metric", "latency"), "maximize")] == [
        0,
        1,
    ]
    assert pareto_front([], ("metric", "latency"), "maximize") == []


def test_dominates_is_strict() -> None:
    assert (
        dominates((1, 2), (1, 3))
        and not dominates((1, 2), (1, 2))
        and not dominates((0, 3), (1, 2))
    )


def judged(
    number: int, metric: float, error: float | None, loss: float | None, ratio: float = 0.5
) -> Candidate:
    score = Score(
        metric=metric,
        metric_error=error,
        loss=loss,
        latency=LatencyFigures(ratio=ratio),
        nonzero_params=10,
    )
    return Candidate(number, Plan(), score, True, "trained")


@pytest.mark.promise("options")
@pytest.mark.parametrize(
    ("candidates", "order"),
    [
        ([judged(1, 0.99, 0.005, 0.3), judged(2, 0.987, 0.005, 0.1)], [2, 1]),  # one image of 355
        ([judged(1, 0.99, 0.005, 0.3), judged(2, 0.98, 0.005, 0.1)], [1, 2]),  # two standard errors
        (
            [judged(1, 1.0, 0.0, 0.3), judged(2, 0.997, 0.004, 0.1)],
            [2, 1],
        ),  # a perfect one has no error of its own
        (
            [judged(1, 0.99, None, 0.3), judged(2, 0.987, None, 0.1)],
            [1, 2],
        ),  # nothing known of the error
        (
            [judged(1, 0.99, None, None, 0.5), judged(2, 0.99, None, None, 0.4)],
            [2, 1],
        ),  # equal: the faster
        ([judged(1, 0.99, None, 0.3, 0.4), judged(2, 0.99, None, 0.1, 0.5)], [2, 1]),
        (
            [judged(1, 0.99, 0.01, 0.3), judged(2, 0.985, 0.01, 0.2), judged(3, 0.97, 0.01, 0.1)],
            [2, 1, 3],
        ),
    ],
)
def test_where_the_metric_is_coarse_the_loss_decides(
    candidates: list[Candidate], order: list[int]
) -> None:
    assert [each.number for each in by_quality(candidates, "maximize")] == order
    turned = [
        replace(each, score=each.score.evolve(metric=-(each.score.metric or 0.0)))
        for each in candidates
    ]
    assert [each.number for each in by_quality(turned[::-1], "minimize")] == order
    if len(candidates) == 2 and candidates[0].score.loss is not None:
        first, second = candidates[order[0] - 1].score, candidates[order[1] - 1].score
        assert better(first, second, "maximize") and not better(second, first, "maximize")


def test_a_score_of_before_the_error_was_taken_still_loads() -> None:
    old = {"metric": 0.9, "loss": 0.3, "params": 10}
    assert Score.from_json(old) == Score(metric=0.9, loss=0.3, params=10)
    new = Score(metric=0.9, metric_error=0.01, weights="repaired")
    assert Score.from_json(new.to_json()) == new
