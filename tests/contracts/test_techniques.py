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
from autoprune.errors import InputError
from autoprune.group import Group

SHAPES = {
    "units": ((1,), (2,), (7,), (64,)),
    "blocks": ((2,), (5,)),
    "weights": ((1, 1), (4, 6), (3, 8, 3, 3), (5, 12), (32, 4, 2), (16, 40)),
}
RATIOS = (0.0, 0.1, 0.25, 0.5, 0.77, 0.9, 0.999)
KINDS = ("conv", "linear", "recurrent", "attention", "embedding", "other")
SETTINGS = ["n_of_m(m=2)", "n_of_m(m=8)", "block(rows=4, columns=4)", "block(rows=1, columns=6)"]
every_technique = pytest.mark.parametrize("name", [*plugins.names("technique"), *SETTINGS])


def technique(name: str) -> plugins.Technique:
    found: plugins.Technique = plugins.create("technique", name)
    return found


def fitting(found: plugins.Technique, kind: str, shape: tuple[int, ...]) -> bool:
    return found.fits(group(found.level, kind, shape)) is None


def draws(name: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = technique(name)
    shapes = [
        shape for shape in SHAPES[found.level] if any(fitting(found, kind, shape) for kind in KINDS)
    ]
    assert len(shapes) >= 2
    plain = [torch.rand(shape, generator=generator) for shape in shapes]
    ties = [torch.zeros_like(tensor) for tensor in plain] + [
        (tensor * 3).round() for tensor in plain
    ]
    return plain + ties


def group(level: str, kind: str, shape: tuple[int, ...]) -> Group:
    return Group("layer", level, ("layer",), (kind,), shape)  # type: ignore[arg-type]


@every_technique
def test_is_a_frozen_dataclass_with_the_protocol(name: str) -> None:
    found = technique(name)
    assert dataclasses.is_dataclass(found)
    assert type(found).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert found.level in SHAPES
    assert isinstance(found.gradual, bool)
    assert type(found).__doc__


@every_technique
def test_ratio_zero_keeps_all(name: str) -> None:
    for importance in draws(name):
        assert bool(technique(name).keep(importance, 0.0).all())


@every_technique
@pytest.mark.parametrize("ratio", RATIOS)
def test_removed_share_is_the_ratio_within_one_element_and_one_stays(
    name: str, ratio: float
) -> None:
    found = technique(name)
    for importance in draws(name):
        keep = found.keep(importance, ratio)
        assert keep.dtype == torch.bool and keep.shape == importance.shape
        size, gone = importance.numel(), int((~keep).sum())
        assert gone < size
        steps = found.steps(importance.shape) if hasattr(found, "steps") else size
        share = min((k / steps for k in range(steps)), key=lambda share: abs(share - ratio))
        assert abs(gone - size * (share if steps < size else ratio)) <= 1


@every_technique
def test_the_least_important_go(name: str) -> None:
    for importance in draws(name):
        keep = technique(name).keep(importance, 0.5)
        if not hasattr(technique(name), "steps") and not bool(keep.all()):
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
        assert torch.equal(
            technique(name).keep(importance, 0.4), technique(name).keep(importance * scale, 0.4)
        )


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
    for kind in KINDS:
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
    shape = (size, 8) if found.level == "weights" else (size,)
    keep = found.keep(torch.rand(shape, generator=torch.Generator().manual_seed(seed)), ratio)
    assert bool(keep.any())
    if not hasattr(found, "steps"):
        assert abs(int((~keep).sum()) - keep.numel() * ratio) <= 1


@pytest.mark.parametrize(
    ("name", "shape"), [("n_of_m", (3, 8, 3, 3)), ("n_of_m(m=2)", (5, 6)), ("n_of_m(m=8)", (4, 24))]
)
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_n_of_m_keeps_the_n_largest_of_every_m_inputs(
    name: str, shape: tuple[int, ...], kept: int
) -> None:
    found = technique(name)
    m = found.m  # type: ignore[attr-defined]
    importance = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    keep = found.keep(importance, 1 - min(kept, m) / m)
    for place in range(0, shape[1], m):
        part, scores = keep[:, place : place + m], importance[:, place : place + m]
        assert bool((part.sum(1) == min(kept, m)).all())
        assert torch.equal(
            part, scores >= scores.topk(min(kept, m), dim=1).values.amin(1, keepdim=True)
        )


def test_of_a_rest_shorter_than_m_no_more_than_n_stay() -> None:
    importance = torch.arange(1.0, 12).flip(0)[None]  # 11, 10, ... 1
    two, one = technique("n_of_m").keep(importance, 0.5), technique("n_of_m").keep(importance, 0.75)
    assert two[0].int().tolist() == [1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    assert one[0].int().tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    # two of a rest of two: 2:4 holds as it is
    short = technique("n_of_m").keep(importance[:, :2], 0.5)
    assert bool(short.all())


@pytest.mark.parametrize("seed", range(8))
def test_blocks_are_whole_tiles_of_the_smallest_sums(seed: int) -> None:
    found = technique("block(rows=2, columns=3)")
    importance = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(seed))
    keep = found.keep(importance, 0.5)
    sums = importance.view(2, 2, 2, 3).sum((1, 3))
    tiles = keep.view(2, 2, 2, 3).float().mean((1, 3))
    assert set(tiles.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(tiles.bool(), sums >= sums.flatten().sort().values[2])


def test_tiles_that_stick_out_are_ranked_by_what_is_there() -> None:
    importance = torch.tensor([[3.0, 3.0, 9.0], [3.0, 3.0, 1.0], [2.0, 2.0, 8.0]])
    keep = technique("block(rows=2, columns=2)").keep(importance, 0.5)  # means 3, 5, 2, 8
    assert keep.int().tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("n_of_m", (8, 3, 3, 3), "input size that 4 divides, got 3"),
        ("n_of_m", (8, 1, 3, 3), "got 1"),
        ("block", (10, 4), "whole tiles of 16x1; this weight is 10x4"),
        ("block(rows=4, columns=4)", (8, 3, 3, 3), "this weight is 8x27"),
        ("block(rows=4, columns=4)", (4, 4), "one tile"),
    ],
)
def test_what_does_not_divide_is_refused(name: str, shape: tuple[int, ...], says: str) -> None:
    assert says in str(technique(name).fits(group("weights", "conv", shape)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("n_of_m(n=2)", "unknown setting 'n'"),
        ("n_of_m(m=1)", "at least 2, got 1"),
        ("n_of_m(m='4')", "needs a value of type int, got '4'"),
        ("n_of_m(m=True)", "needs a value of type int, got True"),
        ("block(rows=0)", "at least 1, got 0 and 1"),
        ("block(row=4)", r"did you mean 'rows'\?"),
        ("weight(m=4)", "settings: it has none"),
        ("n_of_m(4)", "name\\(key=value"),
        ("n_of_m(m=4", "name\\(key=value"),
        ("n_of_m(m=4)(m=2)", "name\\(key=value"),
        ("n_of_m(m=open('x'))", "name\\(key=value"),
        ("n_of_m(**{})", "name\\(key=value"),
        ("nofm(m=4)", "did you mean 'n_of_m'"),
    ],
)
def test_a_wrong_setting_is_an_input_error(given: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        technique(given)


def test_settings_reach_the_plug_in_bundled_or_of_the_users_own() -> None:
    assert technique("n_of_m(m=8)").m == 8  # type: ignore[attr-defined]
    assert technique("autoprune.pruning.techniques.block:Block(rows=4, columns=2)") == technique(
        "block(columns=2, rows=4)"
    )
    assert technique("block()") == technique("block")
