"""The laws of `plugins.Quantity`."""

from __future__ import annotations

import math

import torch
from torch import nn

from autoprune import plugins
from autoprune.measuring.resources import measure_resources
from autoprune.target import Target
from autoprune.task import Inputs
from autoprune.testing._plugin import require_frozen

__all__ = ["check_quantity"]


def check_quantity(name: str, target: Target | None = None) -> None:
    """Hold a quantity, by its name in a study, to its laws on `target`, a CPU unless given. Raises
    AssertionError.

    It is measured in a fresh process, as in a search, unless it says that it is unavailable there.
    """
    quantity = plugins.create("quantity", name)
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
    if reason is None:
        inputs = Inputs.of(torch.randn(1, 64))
        figures = measure_resources(nn.Linear(64, 64).eval(), inputs, target, [name])
        assert math.isfinite(figures[name]) and figures[name] > 0, f"a figure is {figures[name]}"
