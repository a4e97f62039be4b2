"""The laws of `plugins.Technique`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from autoprune import plugins
from autoprune.group import Group
from autoprune.testing._plugin import require_frozen

__all__ = ["LAWS", "check_technique"]

SHAPES = {
    "units": ((1,), (2,), (7,), (64,)),
    "blocks": ((2,), (5,)),
    "weights": ((1, 1), (4, 6), (3, 8, 3, 3), (5, 12), (32, 4, 2), (16, 40)),
}
KINDS = ("conv", "linear", "recurrent", "attention", "embedding", "other")
RATIOS = (0.0, 0.1, 0.25, 0.5, 0.77, 0.9, 0.999)
SCALES = (2.0**-20, 0.5, 1024.0)  # powers of two: scores are scaled without rounding


def is_a_frozen_dataclass_with_the_protocol(technique: plugins.Technique) -> None:
    """Its fields are its settings; it has a docstring, a level, and says whether it is gradual."""
    require_frozen(technique)
    assert technique.level in SHAPES, f"level is {technique.level!r}; give one of {[*SHAPES]}"
    assert isinstance(technique.gradual, bool), "gradual is True or False"


def ratio_zero_keeps_all(technique: plugins.Technique) -> None:
    """`keep(importance, 0)` is True everywhere."""
    for importance in importances(technique):
        assert bool(technique.keep(importance, 0.0).all()), "ratio 0 removes something"


def removes_the_ratio_and_leaves_one(technique: plugins.Technique) -> None:
    """Within one element, or within one of its steps; at least one element stays."""
    for importance in importances(technique):
        for ratio in RATIOS:
            keep = technique.keep(importance, ratio)
            assert keep.dtype == torch.bool and keep.shape == importance.shape
            size, gone = importance.numel(), int((~keep).sum())
            assert gone < size, f"ratio {ratio} leaves nothing of {size}"
            count = _steps(technique, importance) or size
            share = min((k / count for k in range(count)), key=lambda share: abs(share - ratio))
            wanted = size * (share if count < size else ratio)
            assert abs(gone - wanted) <= 1, f"ratio {ratio} of {size} removes {gone}"


def the_least_important_go(technique: plugins.Technique) -> None:
    """Nothing that stays matters less than what goes; of larger parts their sums count."""
    for importance in importances(technique):
        keep = technique.keep(importance, 0.5)
        if not _steps(technique, importance) and not bool(keep.all()):
            assert importance[keep].min() >= importance[~keep].max(), "something better goes"


def higher_ratios_keep_subsets(technique: plugins.Technique) -> None:
    """What is gone at a ratio is gone at every higher one."""
    for importance in importances(technique):
        for more, fewer in pairwise(technique.keep(importance, ratio) for ratio in RATIOS):
            assert bool((more | ~fewer).all()), "a higher ratio keeps what a lower one removes"


def scale_changes_nothing(technique: plugins.Technique) -> None:
    """Importances have no unit."""
    for importance in importances(technique):
        for scale in SCALES:
            same = torch.equal(
                technique.keep(importance, 0.4), technique.keep(importance * scale, 0.4)
            )
            assert same, f"importance times {scale:g} keeps something else"


def importance_is_left_alone(technique: plugins.Technique) -> None:
    """`keep` writes into nothing that it was given."""
    for importance in importances(technique):
        before = importance.clone()
        technique.keep(importance, 0.5)
        assert torch.equal(importance, before), "keep has changed the importance"


def fits_answers_for_every_kind(technique: plugins.Technique) -> None:
    """None, or a reason in words; it fits something."""
    answers = [
        technique.fits(group_of(technique.level, kind, shape))
        for kind in KINDS
        for shape in SHAPES[technique.level]
    ]
    assert all(answer is None or len(answer) > 5 for answer in answers), answers
    assert None in answers, "it fits no kind of layer at all"


LAWS: tuple[Callable[[plugins.Technique], None], ...] = (
    is_a_frozen_dataclass_with_the_protocol,
    ratio_zero_keeps_all,
    removes_the_ratio_and_leaves_one,
    the_least_important_go,
    higher_ratios_keep_subsets,
    scale_changes_nothing,
    importance_is_left_alone,
    fits_answers_for_every_kind,
)


def check_technique(technique: plugins.Technique) -> None:
    """Hold a technique to every law. Raises AssertionError."""
    for law in LAWS:
        law(technique)


def importances(technique: plugins.Technique) -> list[Tensor]:
    """Random ones of every shape that fits, all alike, and with ties."""
    generator = torch.Generator().manual_seed(0)
    level = technique.level
    shapes = [
        shape
        for shape in SHAPES[level]
        if any(technique.fits(group_of(level, kind, shape)) is None for kind in KINDS)
    ]
    assert shapes, f"it fits none of the shapes {SHAPES[level]}"
    plain = [torch.rand(shape, generator=generator) for shape in shapes]
    ties = [(tensor * 3).round() for tensor in plain]
    return [*plain, *(torch.zeros_like(tensor) for tensor in plain), *ties]


def group_of(level: Any, kind: str, shape: tuple[int, ...]) -> Group:
    """A group of one layer."""
    return Group("layer", level, ("layer",), (kind,), shape)


def _steps(technique: plugins.Technique, importance: Tensor) -> int | None:
    """How many parts a weight of this shape has, of a technique that removes larger parts."""
    return technique.steps(importance.shape) if hasattr(technique, "steps") else None
