"""The laws of `plugins.Criterion`, for every bundled criterion."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from autoprune import plugins
from autoprune.testing.criteria import LAWS, weights_and_needs

every_criterion = pytest.mark.parametrize("name", [*plugins.names("criterion"), "random(seed=3)"])


def criterion(name: str) -> plugins.Criterion:
    made: plugins.Criterion = plugins.create("criterion", name)
    return made


@every_criterion
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(name: str, law: Callable[[plugins.Criterion], None]) -> None:
    law(criterion(name))


@every_criterion
def test_zeros_do_not_matter(name: str) -> None:
    for weight, *needed in weights_and_needs(criterion(name)):
        zero = criterion(name).score(torch.zeros_like(weight), *needed)
        assert bool((zero == 0).all()) or name.startswith("random")


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
