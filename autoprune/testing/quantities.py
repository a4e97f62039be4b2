"""The laws of `plugins.Quantity`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from autoprune import plugins
from autoprune.target import Target
from autoprune.testing._plugin import require_frozen

__all__ = ["check_quantity"]


def check_quantity(quantity: plugins.Quantity, target: Target | None = None) -> None:
    """Hold a quantity to its laws on `target`, a CPU unless given. Raises AssertionError.

    Where it says that it is unavailable there, what it measures is not looked at.
    """
    target = target or Target("cpu_eager", runtime="eager")
    require_frozen(quantity)
    units = dict(quantity.units)
    assert 1.0 in units.values(), f"no unit is the base unit, whose factor is 1: {units}"
    assert all(factor > 0 for factor in units.values()), units
    assert quantity.title and quantity.example, "title and example are words for people"
    assert any(unit in quantity.example for unit in units), "the example names no unit of its own"
    assert 0 < quantity.tolerance < math.inf, quantity.tolerance
    reason = quantity.unavailable(target)
    assert reason is None or len(reason) > 5, "a reason why it is unavailable is words"
    if reason is not None:
        return
    measure = quantity.begin(target)
    small, large = (_run(width) for width in (8, 512))
    for call in (small, large):
        figure = measure(call)
        assert math.isfinite(figure) and figure > 0, f"a figure is {figure}"


def _run(width: int) -> Callable[[], object]:
    model, x = nn.Linear(width, width).eval(), torch.randn(1, width)
    return lambda: model(x)
