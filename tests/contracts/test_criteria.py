"""The laws of `plugins.Criterion`, for every bundled criterion."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch
from torch import Tensor

from autoprune import plugins

SHAPES = {"filters": ((5, 3), (4, 18), (1, 2)), "scales": ((5,), (16,))}
ELEMENTS = ((5,), (4, 6), (3, 8, 3, 3), (2, 3, 2, 2, 2))
every_criterion = pytest.mark.parametrize("name", [*plugins.names("criterion"), "random(seed=3)"])


def criterion(name: str) -> plugins.Criterion:
    found: plugins.Criterion = plugins.create("criterion", name)
    return found


def draws(name: str) -> list[tuple[Tensor, ...]]:
    """Weights with what the criterion needs for them."""
    generator, found = torch.Generator().manual_seed(0), criterion(name)
    drawn = []
    for shape in SHAPES.get(found.scores, ELEMENTS):
        weight, *needed = (
            torch.randn(shape, generator=generator) for _ in range(1 + len(found.needs))
        )
        signs = zip(found.needs, needed, strict=True)
        drawn.append(
            (weight, *(each if need == "gradients" else each.abs() for need, each in signs))
        )
    return drawn


@every_criterion
def test_is_a_frozen_dataclass_with_the_protocol(name: str) -> None:
    found = criterion(name)
    assert dataclasses.is_dataclass(found)
    assert type(found).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert found.scores in ("elements", "weights", "filters", "scales")
    assert isinstance(found.needs, tuple) and set(found.needs) <= set(get_args(plugins.Need))
    assert isinstance(found.comparable, bool)
    assert type(found).__doc__


@every_criterion
def test_scores_are_non_negative_finite_and_one_for_each(name: str) -> None:
    for weight, *needed in draws(name):
        score = criterion(name).score(weight, *needed)
        assert score.shape == (
            weight.shape[:1] if criterion(name).scores == "filters" else weight.shape
        )
        assert (
            score.is_floating_point() and bool((score >= 0).all()) and bool(score.isfinite().all())
        )
        zero = criterion(name).score(torch.zeros_like(weight), *needed)
        assert bool(zero.isfinite().all()) and (
            bool((zero == 0).all()) or name.startswith("random")
        )


@every_criterion
def test_scores_repeat_and_leave_their_arguments_alone(name: str) -> None:
    for drawn in draws(name):
        before, state = [tensor.clone() for tensor in drawn], torch.get_rng_state()
        first, second = criterion(name).score(*drawn), criterion(name).score(*drawn)
        assert torch.equal(first, second)
        assert all(torch.equal(tensor, was) for tensor, was in zip(drawn, before, strict=True))
        assert torch.equal(state, torch.get_rng_state())


@every_criterion
def test_other_weights_other_scores(name: str) -> None:
    (weight, *needed), *_ = draws(name)
    assert not torch.equal(
        criterion(name).score(weight, *needed), criterion(name).score(weight**3, *needed)
    )


@every_criterion
def test_what_it_needs_changes_its_scores(name: str) -> None:
    (weight, *needed), *_ = draws(name)
    for place in range(len(needed)):
        other = [each * 2 if place == number else each for number, each in enumerate(needed)]
        assert not torch.equal(
            criterion(name).score(weight, *needed), criterion(name).score(weight, *other)
        )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", [2.0, 3.0]),
        ("l2", [4.0, 9.0]),
        ("taylor", [10.0, 3.0]),
        ("fisher", [10.0, 4.5]),
        ("activation", [10.0, 3.0]),
        ("lamp", [4 / 13, 1.0]),
        ("batchnorm", [2.0, 3.0]),
    ],
)
def test_by_hand(name: str, expected: list[float]) -> None:
    needed = [
        torch.tensor([5.0, 1.0]) * (-1 if need == "gradients" else 1)
        for need in criterion(name).needs
    ]
    assert criterion(name).score(torch.tensor([-2.0, 3.0]), *needed).tolist() == expected


def test_geometric_median_by_hand() -> None:
    filters = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert criterion("geometric_median").score(filters).tolist() == pytest.approx([5.0, 10.0, 5.0])
    # distances do not know where the origin is
    moved = criterion("geometric_median").score(filters + 1000.0)
    assert moved.tolist() == pytest.approx([5.0, 10.0, 5.0], rel=1e-4)


def test_lamp_ranks_a_layer_by_magnitude_and_compares_layers() -> None:
    first, second = (
        torch.randn(40, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1.0, 2.0, 4.0]),
    )
    scores = criterion("lamp").score(first)
    assert torch.equal(scores.argsort(), first.abs().argsort())
    assert torch.allclose(criterion("lamp").score(first * 1000), scores)
    assert criterion("lamp").score(second).tolist() == pytest.approx([1 / 21, 4 / 20, 1.0])
