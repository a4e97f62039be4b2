"""The laws of `plugins.Technique`, for every bundled technique."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.testing.techniques import LAWS, group_of

SETTINGS = ["n_of_m(m=2)", "n_of_m(m=8)", "block(rows=4, columns=4)", "block(rows=1, columns=6)"]
every_technique = pytest.mark.parametrize("name", [*plugins.names("technique"), *SETTINGS])


def technique(name: str) -> plugins.Technique:
    made: plugins.Technique = plugins.create("technique", name)
    return made


@every_technique
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(name: str, law: Callable[[plugins.Technique], None]) -> None:
    law(technique(name))


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
    assert says in str(technique(name).fits(group_of("weights", "conv", shape)))


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
