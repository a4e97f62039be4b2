"""How many units a choice leaves of a group: what a plan is shown as."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from autoprune import plugins
from autoprune.group import Group
from autoprune.plan import Choice, Plan

__all__ = ["units_left", "widths_of"]


def units_left(group: Group, choice: Choice | None) -> int:
    """Units of a group that stay under a choice, every cell losing the same count; a block counts
    1, or 0 when gone.

    Of weights all: a mask makes no layer narrower. A part of the group of which the choice would
    leave nothing keeps a unit more than this, where another layer's channels lie beside it.
    """
    if choice is None or group.level == "weights":
        return group.size
    keep = plugins.create("technique", choice.technique).keep
    return group.cells * int(keep(torch.arange(group.size // group.cells), choice.ratio).sum())


def widths_of(groups: Iterable[Group], plan: Plan) -> dict[str, tuple[int, int]]:
    """Units before and after, by group key, of the groups of units and blocks that a plan names."""
    return {
        group.key: (group.size, units_left(group, plan.choices[group.key]))
        for group in groups
        if group.level != "weights" and group.key in plan.choices
    }
