"""Limits with their units, budgets, targets."""

from __future__ import annotations

import math

import pytest

from autoprune import quantities
from autoprune.budget import Budget, Feasibility, Limit
from autoprune.errors import InputError
from autoprune.latency_figures import LatencyFigures
from autoprune.score import Score
from autoprune.target import Target

DENSE = Score(
    metric=0.9,
    flops=1000,
    params=100,
    nonzero_params=100,
    size_bytes=400,
    latency=LatencyFigures(
        ms=2.0, ms_high=2.1, ratio=1.0, ratio_high=1.0, throughput=500.0, throughput_low=480.0
    ),
    size_compressed_bytes=300,
    resources={"memory": 1000, "energy": 10.0},
)


def held(*limits: Limit, goal: str = "maximize") -> Feasibility:
    return Feasibility(Budget(limits), DENSE, goal)


@pytest.mark.parametrize(
    ("quantity", "given", "value", "relative"),
    [
        ("latency", "50%", 0.5, True),
        ("latency", " 50 % ", 0.5, True),
        ("latency", "2.5ms", 2.5, False),
        ("latency", "250us", 0.25, False),
        ("latency", "1s", 1000.0, False),
        ("latency", "1e-3s", 1.0, False),
        ("latency", "120%", 1.2, True),
        ("flops", "40%", 0.4, True),
        ("flops", "300M", 3e8, False),
        ("flops", "1.5G", 1.5e9, False),
        ("flops", "2K", 2e3, False),
        ("flops", "1T", 1e12, False),
        ("params", "1.2M", 1.2e6, False),
        ("params", "3K", 3e3, False),
        ("params", "1G", 1e9, False),
        ("nonzero_params", "50K", 5e4, False),
        ("nonzero_params", "10%", 0.1, True),
        ("nonzero_params", ".5M", 5e5, False),
        ("size", "1.2MB", 1.2e6, False),
        ("size", "1MiB", 2**20, False),
        ("size", "8KiB", 8192, False),
        ("size", "1GiB", 2**30, False),
        ("size", "700B", 700, False),
        ("size", "5KB", 5e3, False),
        ("size", "1GB", 1e9, False),
        ("size", "30%", 0.3, True),
        ("size_compressed", "200KB", 2e5, False),
        ("size_compressed", "20%", 0.2, True),
        ("memory", "60%", 0.6, True),
        ("memory", "20MiB", 20 * 2**20, False),
        ("throughput", "200/s", 200.0, False),
        ("throughput", "1.5K/s", 1500.0, False),
        ("throughput", "2M/s", 2e6, False),
        ("throughput", "150%", 1.5, True),
        ("energy", "50%", 0.5, True),
        ("energy", "3mJ", 3.0, False),
        ("energy", "1.5J", 1500.0, False),
        ("energy", "250uJ", 0.25, False),
        ("metric_drop", "0.01", 0.01, False),
        ("metric_drop", 0.01, 0.01, False),
        ("metric_drop", 0, 0.0, False),
    ],
)
def test_every_unit(quantity: str, given: object, value: float, relative: bool) -> None:
    limit = Limit.parse(quantity, given)
    assert limit.value == pytest.approx(value) and limit.relative is relative
    assert math.isclose(Limit.parse(quantity, str(limit)).value, value, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("quantity", "given"),
    [
        ("latency", 50),
        ("latency", "50"),
        ("latency", 0.5),
        ("latency", "50MB"),
        ("latency", "-5ms"),
        ("latency", "0%"),
        ("latency", "0ms"),
        ("latency", "fast"),
        ("latency", ""),
        ("latency", None),
        ("latency", True),
        ("latency", "5 0%"),
        ("latency", "nan%"),
        ("latency", "infms"),
        ("latency", ["50%"]),
        ("flops", "300"),
        ("flops", 300),
        ("flops", "300MB"),
        ("params", "1000000"),
        ("nonzero_params", "5m"),
        ("size", "12"),
        ("size", "12bits"),
        ("size_compressed", "200"),
        ("memory", "20mJ"),
        ("throughput", "200"),
        ("throughput", "200ms"),
        ("throughput", "0/s"),
        ("throughput", "200/m"),
        ("energy", "5"),
        ("energy", "5MB"),
        ("metric_drop", "1%"),
        ("metric_drop", "x"),
        ("metric_drop", True),
        ("metric_drop", "-0.1"),
    ],
)
def test_refusals_show_the_spelling(quantity: str, given: object) -> None:
    with pytest.raises(InputError) as caught:
        Limit.parse(quantity, given)
    message = str(caught.value)
    assert quantity in message and repr(given) in message
    if "zero" not in message:
        assert quantities.units(quantity)[1] in message


def test_an_unknown_quantity_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'latency'"):
        Limit.parse("latencey", "50%")


@pytest.mark.parametrize(
    ("quantity", "used", "limit"),
    [
        ("latency", Score(latency=LatencyFigures(ratio=0.4, ratio_high=0.6)), "50%"),
        ("latency", Score(latency=LatencyFigures(ms=1, ms_high=3.0)), "2.5ms"),
        ("flops", Score(flops=600), "50%"),
        ("params", Score(params=600), "0.5K"),
        ("size", Score(size_bytes=240), "50%"),
        ("nonzero_params", Score(nonzero_params=60), "50%"),
        ("size_compressed", Score(size_compressed_bytes=180), "50%"),
        ("memory", Score(resources={"memory": 600}), "50%"),
        ("memory", Score(resources={"memory": 600}), "500B"),
        ("energy", Score(resources={"energy": 6.0}), "50%"),
        ("energy", Score(resources={"energy": 6.0}), "5mJ"),
        (
            "throughput",
            Score(latency=LatencyFigures(throughput=1100.0, throughput_low=1000.0)),
            "1.2K/s",
        ),
        ("throughput", Score(latency=LatencyFigures(ratio=0.7, ratio_high=0.8)), "150%"),
    ],
)
def test_violation_is_used_over_limit_minus_one(quantity: str, used: Score, limit: str) -> None:
    feasibility = held(Limit.parse(quantity, limit))
    assert feasibility.violation(used) == pytest.approx(0.2) and not feasibility.fits(used)
    assert feasibility.reasons(used)[0].startswith(f"{quantity} ")


def test_throughput_is_a_lower_limit_and_the_same_as_one_on_latency() -> None:
    for ratio in (0.5, 2 / 3, 0.7, 1.0):
        score = Score(latency=LatencyFigures(ratio=ratio, ratio_high=ratio))
        least, most = Limit.parse("throughput", "150%"), Limit("latency", 1 / 1.5, relative=True)
        assert held(least).violation(score) == pytest.approx(held(most).violation(score))
    limit = Limit.parse("throughput", "200/s")
    assert not limit.broken(200) and limit.broken(199) and not limit.broken(5000)
    budget = Budget((limit,))
    assert str(budget) == "throughput at least 200/s"
    assert held(*budget.limits).reasons(Score(latency=LatencyFigures(throughput_low=120.0))) == [
        "throughput 120/s, under the limit of 200/s"
    ]
    assert held(*budget.limits).reasons(
        Score(latency=LatencyFigures(throughput_low=199.99999))
    ) == ["throughput 199.99999/s, under the limit of 200/s"]
    assert held(*budget.limits).reasons(Score(latency=LatencyFigures(throughput_low=201.0))) == []


@pytest.mark.parametrize(
    ("goal", "metric", "drop"),
    [("maximize", 0.85, 0.05), ("minimize", 0.95, 0.05), ("maximize", 0.95, -0.05)],
)
def test_metric_drop_is_towards_worse(goal: str, metric: float, drop: float) -> None:
    limit = Limit.parse("metric_drop", 0.01)
    assert held(limit, goal=goal).usage(limit, Score(metric=metric)) == pytest.approx(drop)
    assert (held(limit, goal=goal).violation(Score(metric=metric)) > 0) == (drop > 0.01)


def test_no_drop_at_all_may_be_asked() -> None:
    limit = Limit.parse("metric_drop", 0)
    assert held(limit).violation(Score(metric=0.9)) == 0.0
    assert held(limit).violation(Score(metric=0.8)) == pytest.approx(0.1)


@pytest.mark.parametrize("quantity", quantities.names())
def test_what_is_not_measured_is_not_judged(quantity: str) -> None:
    budget = Budget.parse({quantity: "0.01" if quantity == "metric_drop" else "50%"})
    assert held(*budget.limits).violations(Score()) == {}
    assert held(*budget.limits).reasons(Score()) == []


def test_a_budget_round_trips_and_prints() -> None:
    given = {
        "latency": "50%",
        "flops": "300M",
        "params": "1.2M",
        "nonzero_params": "50K",
        "size": "1.2MB",
        "size_compressed": "200KB",
        "memory": "20MB",
        "throughput": "1.5K/s",
        "energy": "3mJ",
        "metric_drop": "0.01",
    }
    budget = Budget.parse(given)
    assert budget.to_json() == given and Budget.parse(budget.to_json()) == budget
    assert (
        str(Budget.parse({"latency": "50%", "size": "2MB"}))
        == "latency at most 50%, size at most 2MB"
    )
    assert str(Budget()) == "no limit"


def test_all_limits_count() -> None:
    budget = Budget.parse({"latency": "50%", "flops": "50%"})
    violations = held(*budget.limits).violations(
        Score(latency=LatencyFigures(ratio_high=0.4), flops=750)
    )
    assert violations == {"latency": pytest.approx(-0.2), "flops": pytest.approx(0.5)}
    assert held(*budget.limits).reasons(
        Score(latency=LatencyFigures(ratio_high=0.4), flops=750)
    ) == ["flops 75%, over the limit of 50%"]


@pytest.mark.parametrize("value", [0.333333333, 0.07, 0.5, 1 / 3, 0.005])
def test_relative_limits_keep_their_digits(value: float) -> None:
    limit = Limit("latency", value, relative=True)
    assert math.isclose(Limit.parse("latency", str(limit)).value, value, rel_tol=1e-12)


def test_target_as_json() -> None:
    target = Target(threads=2, multiple_of=8)
    assert Target(**target.to_json()) == target


def test_a_limit_on_a_further_target_is_judged_there() -> None:
    budget = Budget.parse({"latency": "50%", "latency on cpu_eager": "60%"})
    assert Budget.parse(budget.to_json()) == budget and [limit.key for limit in budget.limits] == [
        *budget.to_json()
    ]
    here = Score(metric=0.9, latency=LatencyFigures(ratio=0.4, ratio_high=0.4))
    both = here.evolve(
        elsewhere={"cpu_eager": Score(latency=LatencyFigures(ratio=0.7, ratio_high=0.7))}
    )
    assert Score.from_json(both.to_json()) == both
    # not measured there: not yet judged
    assert set(held(*budget.limits).violations(here)) == {"latency"}
    assert held(*budget.limits).violations(both)["latency on cpu_eager"] == pytest.approx(
        0.7 / 0.6 - 1
    )
    (said,) = held(*budget.limits).reasons(both)
    assert said == "latency on cpu_eager up to 70%, over the limit of 60%"
