"""The laws of `plugins.Criterion`."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from autoprune import plugins
from autoprune.testing._plugin import require_frozen

__all__ = ["LAWS", "check_criterion"]

SHAPES = {"filters": ((5, 3), (4, 18), (1, 2)), "scales": ((5,), (16,))}
ELEMENTS = ((5,), (4, 6), (3, 8, 3, 3), (2, 3, 2, 2, 2))


def is_a_frozen_dataclass_with_the_protocol(criterion: plugins.Criterion) -> None:
    """Its fields are its settings; it has a docstring, and says what it scores and needs."""
    require_frozen(criterion)
    assert criterion.scores in ("elements", "weights", "filters", "scales"), criterion.scores
    known = get_args(plugins.Need)
    assert isinstance(criterion.needs, tuple) and set(criterion.needs) <= set(known), known
    assert isinstance(criterion.comparable, bool), "comparable is True or False"


def scores_are_finite_and_one_for_each(criterion: plugins.Criterion) -> None:
    """Non-negative, of weights that are zero too, shaped as what it scores."""
    for weight, *needed in weights_and_needs(criterion):
        for given in (weight, torch.zeros_like(weight)):
            score = criterion.score(given, *needed)
            wanted = given.shape[:1] if criterion.scores == "filters" else given.shape
            assert score.shape == wanted, f"scores of {tuple(given.shape)}: {tuple(score.shape)}"
            assert score.is_floating_point() and bool(score.isfinite().all())
            assert bool((score >= 0).all()), "a score is negative"


def scores_repeat_and_leave_their_arguments_alone(criterion: plugins.Criterion) -> None:
    """The same twice; neither the tensors nor torch's random state change."""
    for drawn in weights_and_needs(criterion):
        before, state = [tensor.clone() for tensor in drawn], torch.get_rng_state()
        assert torch.equal(criterion.score(*drawn), criterion.score(*drawn)), "it does not repeat"
        assert all(torch.equal(tensor, was) for tensor, was in zip(drawn, before, strict=True))
        assert torch.equal(state, torch.get_rng_state()), "it moves torch's random state"


def other_weights_have_other_scores(criterion: plugins.Criterion) -> None:
    """It looks at the weight."""
    (weight, *needed), *_ = weights_and_needs(criterion)
    assert not torch.equal(criterion.score(weight, *needed), criterion.score(weight**3, *needed))


def what_it_needs_changes_its_scores(criterion: plugins.Criterion) -> None:
    """It needs nothing that it does not look at."""
    (weight, *needed), *_ = weights_and_needs(criterion)
    for place, name in enumerate(criterion.needs):
        other = [tensor * (2 if number == place else 1) for number, tensor in enumerate(needed)]
        same = torch.equal(criterion.score(weight, *needed), criterion.score(weight, *other))
        assert not same, f"it says that it needs {name}, and does not look at it"


LAWS: tuple[Callable[[plugins.Criterion], None], ...] = (
    is_a_frozen_dataclass_with_the_protocol,
    scores_are_finite_and_one_for_each,
    scores_repeat_and_leave_their_arguments_alone,
    other_weights_have_other_scores,
    what_it_needs_changes_its_scores,
)


def check_criterion(criterion: plugins.Criterion) -> None:
    """Hold a criterion to every law. Raises AssertionError."""
    for law in LAWS:
        law(criterion)


def weights_and_needs(criterion: plugins.Criterion) -> list[tuple[Tensor, ...]]:
    """Random weights with what the criterion needs for them; gradients alone have signs."""
    generator, drawn = torch.Generator().manual_seed(0), []
    for shape in SHAPES.get(criterion.scores, ELEMENTS):
        tensors = [torch.randn(shape, generator=generator) for _ in range(1 + len(criterion.needs))]
        needed = [
            tensor if need == "gradients" else tensor.abs()
            for need, tensor in zip(criterion.needs, tensors[1:], strict=True)
        ]
        drawn.append((tensors[0], *needed))
    return drawn
