"""The laws of `plugins.Technique`, for every bundled technique."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from autoprune import plugins
from autoprune.group import Group

SHAPES = {"units": ((1,), (2,), (7,), (64,)), "weights": ((1, 1), (4, 6), (3, 8, 3, 3), (5, 12))}
RATIOS = (0.0, 0.1, 0.25, 0.5, 0.77, 0.9, 0.999)
every_technique = pytest.mark.parametrize("name", plugins.names("technique"))


def technique(name: str) -> plugins.Technique:
    found: plugins.Technique = plugins.load("technique", name)()
    return found


def draws(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    plain = [torch.rand(shape, generator=generator) for shape in SHAPES[technique(name).level]]
    ties = [torch.zeros_like(tensor) for tensor in plain] + [(tensor * 3).round() for tensor in plain]
    return plain + ties


def group(level: str, kind: str, shape: tuple[int, ...]) -> Group:
    return Group("layer", level, ("layer",), (kind,), shape)  # type: ignore[arg-type]


@every_technique
def test_is_a_frozen_dataclass_with_the_protocol(name: str) -> None:
    found = technique(name)
    assert dataclasses.is_dataclass(found)
    assert type(found).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert found.level in ("units", "weights")
    assert isinstance(found.gradual, bool)
    assert type(found).__doc__


@every_technique
def test_ratio_zero_keeps_all(name: str) -> None:
    for importance in draws(name):
        assert bool(technique(name).keep(importance, 0.0).all())


@every_technique
@pytest.mark.parametrize("ratio", RATIOS)
def test_removed_share_is_the_ratio_within_one_element_and_one_stays(name: str, ratio: float) -> None:
    found = technique(name)
    for importance in draws(name):
        keep = found.keep(importance, ratio)
        assert keep.dtype == torch.bool and keep.shape == importance.shape
        size, gone = importance.numel(), int((~keep).sum())
        assert gone < size
        declared = getattr(found, "ratios", None)
        if declared is not None:
            assert min(abs(gone / size - share) for share in declared) * size <= 1
        else:
            assert abs(gone - size * ratio) <= 1


@every_technique
def test_the_least_important_go(name: str) -> None:
    for importance in draws(name):
        keep = technique(name).keep(importance, 0.5)
        if not hasattr(technique(name), "ratios") and not bool(keep.all()):
            assert importance[keep].min() >= importance[~keep].max()


@every_technique
def test_higher_ratios_keep_subsets(name: str) -> None:
    for importance in draws(name):
        kept = [technique(name).keep(importance, ratio) for ratio in RATIOS]
        for more, fewer in pairwise(kept):
            assert bool((more | ~fewer).all())


@every_technique
@pytest.mark.parametrize("scale", [2.0**-20, 0.5, 1024.0])
def test_scale_changes_nothing(name: str, scale: float) -> None:
    for importance in draws(name):
        assert torch.equal(technique(name).keep(importance, 0.4), technique(name).keep(importance * scale, 0.4))


@every_technique
def test_importance_is_left_alone(name: str) -> None:
    for importance in draws(name):
        before = importance.clone()
        technique(name).keep(importance, 0.5)
        assert torch.equal(importance, before)


@every_technique
def test_fits_answers_for_every_kind(name: str) -> None:
    found = technique(name)
    answers = []
    for kind in ("conv", "linear", "recurrent", "embedding", "other"):
        for shape in SHAPES[found.level]:
            answer = found.fits(group(found.level, kind, shape))
            assert answer is None or (isinstance(answer, str) and len(answer) > 5)
            answers.append(answer)
    assert None in answers


@every_technique
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(ratio=st.floats(0, 1, exclude_max=True), size=st.integers(1, 50), seed=st.integers(0, 99))
def test_any_ratio_of_any_size(name: str, ratio: float, size: int, seed: int) -> None:
    found = technique(name)
    shape = (size,) if found.level == "units" else (size, 8)
    keep = found.keep(torch.rand(shape, generator=torch.Generator().manual_seed(seed)), ratio)
    assert bool(keep.any())
    if not hasattr(found, "ratios"):
        assert abs(int((~keep).sum()) - keep.numel() * ratio) <= 1
