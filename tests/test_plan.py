"""Plan: equality, digest, JSON, refusals."""

from __future__ import annotations

import json

import pytest

from autoprune.errors import PlanError
from autoprune.plan import Choice, Plan

PLAN = Plan({"b:units": Choice("structured", 0.5, "l2"), "a:weights": Choice("sparse", 0.25)})


def test_equal_plans_have_one_hash_and_digest() -> None:
    other = Plan(
        {
            "a:weights": Choice("sparse", 0.25, "l1"),
            "c:units": Choice("neuron", 0.0),
            "b:units": Choice("structured", 0.5, "l2"),
        }
    )
    assert other == PLAN and hash(other) == hash(PLAN) and other.digest == PLAN.digest
    assert (
        len({other, PLAN}) == 1 and len(PLAN) == 2 and list(dict(PLAN)) == ["a:weights", "b:units"]
    )
    assert len(PLAN.digest) == 16 and int(PLAN.digest, 16) >= 0


@pytest.mark.parametrize(
    "change",
    [
        Choice("weight", 0.5, "l2"),
        Choice("structured", 0.51, "l2"),
        Choice("structured", 0.5, "l1"),
    ],
)
def test_other_plans_have_another_digest(change: Choice) -> None:
    assert Plan({**dict(PLAN), "b:units": change}).digest != PLAN.digest


def test_the_digest_does_not_change_between_releases() -> None:
    assert Plan().digest == "5c087bd265111171"


def test_json_round_trip() -> None:
    text = json.dumps(PLAN.to_json())
    assert Plan.from_json(json.loads(text)) == PLAN
    assert json.loads(text)["version"] == 1
    assert Plan.from_json(Plan().to_json()) == Plan()


@pytest.mark.parametrize("ratio", [-0.1, 1.01, 1.5, float("nan")])
def test_ratios_outside_are_refused(ratio: float) -> None:
    with pytest.raises(PlanError, match="ratio"):
        Choice("weight", ratio)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        {"version": 2, "choices": {}},
        {"choices": {}},
        {"version": 1, "choices": []},
        {"version": 1, "choices": {"a:units": {"ratio": 0.5}}},
        {"version": 1, "choices": {"a:units": {"technique": "weight"}}},
        {"version": 1, "choices": {"a:units": {"technique": "weight", "ratio": "half"}}},
        {"version": 1, "choices": {"a:units": 0.5}},
        {"version": 1, "choices": {"a:units": {"technique": "weight", "ratio": 1.0}}},
        {"version": 1, "choices": {"a:units": {"technique": 3, "ratio": 0.5}}},
        {
            "version": 1,
            "choices": {"a:units": {"technique": "weight", "ratio": 0.5, "criterion": ["l1"]}},
        },
    ],
)
def test_what_is_no_plan_is_refused(data: object) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(data)


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        PLAN.choices = {}  # type: ignore[misc]
