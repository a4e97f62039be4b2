"""The laws of `plugins.Criterion`, for every bundled criterion."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from autoprune import plugins
from autoprune.errors import InputError

SHAPES = ((5,), (4, 6), (3, 8, 3, 3), (2, 3, 2, 2, 2))
every_criterion = pytest.mark.parametrize("name", plugins.names("criterion"))


def criterion(name: str) -> plugins.Criterion:
    found: plugins.Criterion = plugins.load("criterion", name)()
    return found


def draws() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)) for shape in SHAPES]


@every_criterion
def test_is_a_frozen_dataclass_with_the_protocol(name: str) -> None:
    found = criterion(name)
    assert dataclasses.is_dataclass(found)
    assert type(found).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert isinstance(found.needs_gradients, bool)
    assert type(found).__doc__


@every_criterion
def test_scores_are_non_negative_finite_and_shaped_like_the_weight(name: str) -> None:
    for weight, gradient in draws():
        score = criterion(name).score(weight, gradient)
        assert score.shape == weight.shape and score.is_floating_point()
        assert bool((score >= 0).all()) and bool(score.isfinite().all())


@every_criterion
def test_scores_repeat_and_leave_their_arguments_alone(name: str) -> None:
    for weight, gradient in draws():
        before, state = (weight.clone(), gradient.clone()), torch.get_rng_state()
        first, second = criterion(name).score(weight, gradient), criterion(name).score(weight, gradient)
        assert torch.equal(first, second)
        assert torch.equal(weight, before[0]) and torch.equal(gradient, before[1])
        assert torch.equal(state, torch.get_rng_state())


@every_criterion
def test_gradients_are_asked_for_or_not_needed(name: str) -> None:
    for weight, gradient in draws():
        if criterion(name).needs_gradients:
            with pytest.raises(InputError, match="gradients"):
                criterion(name).score(weight, None)
        else:
            assert torch.equal(criterion(name).score(weight, None), criterion(name).score(weight, gradient))


@every_criterion
def test_other_weights_other_scores(name: str) -> None:
    (weight, gradient), _, *_ = draws()
    assert not torch.equal(criterion(name).score(weight, gradient), criterion(name).score(weight + 1, gradient))


@pytest.mark.parametrize(("name", "expected"), [("l1", [2.0, 3.0]), ("l2", [4.0, 9.0]), ("taylor", [10.0, 3.0])])
def test_by_hand(name: str, expected: list[float]) -> None:
    assert criterion(name).score(torch.tensor([-2.0, 3.0]), torch.tensor([5.0, -1.0])).tolist() == expected
