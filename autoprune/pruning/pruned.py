"""Apply a plan: cut the units, set up the masks, in that order, so that masks act on what the cut left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.errors import PlanError, nearest
from autoprune.group import Group
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling import Coupling, tensor_of
from autoprune.pruning.importance import Importance
from autoprune.pruning.masks import Mask, Masks
from autoprune.pruning.shrink import Cut, shrink, take

__all__ = ["Pruned", "apply", "cuts_of"]


@dataclass(frozen=True)
class Pruned:
    """A smaller model, the masks it still carries through training, and the cuts that made it."""

    model: nn.Module
    masks: Masks
    cuts: list[Cut]

    def finish(self) -> nn.Module:
        """The model with every mask at its final ratio, masks let go."""
        self.masks.finish()
        return self.model


def apply(
    model: nn.Module,
    coupling: Coupling,
    plan: Plan,
    importance: Importance,
    schedule: Callable[[float], float] = lambda progress: 1.0,
) -> Pruned:
    """Cut and mask a copy of `model` as `plan` says; `model` is untouched.

    `schedule` maps training progress in [0, 1] to the share of the final ratio of gradual techniques.
    Raises PlanError for a group, technique or criterion that is not there, is refused or does not fit.
    """
    cuts = cuts_of(coupling, plan, importance)
    smaller = shrink(model, cuts)
    masks = [
        _mask(model, smaller, group, choice, cuts, importance)
        for group, choice in _checked(coupling, plan)
        if group.level == "weights"
    ]
    return Pruned(smaller, Masks(smaller, masks, schedule), cuts)


def cuts_of(coupling: Coupling, plan: Plan, importance: Importance) -> list[Cut]:
    """The cuts that the units choices of a plan come to."""
    keep: dict[str, Tensor] = {}
    for group, choice in _checked(coupling, plan):
        if group.level == "units":
            technique = plugins.load("technique", choice.technique)()
            cells = importance.units(group, choice.criterion)
            keep[group.key] = torch.stack([technique.keep(cell, choice.ratio) for cell in cells]).flatten()
    return coupling.cuts(keep)


def _checked(coupling: Coupling, plan: Plan) -> list[tuple[Group, Choice]]:
    groups: Mapping[str, Group] = {group.key: group for group in coupling.groups}
    found = []
    for key, choice in plan:
        if key not in groups:
            raise PlanError(
                f"the plan names the group {key!r}, which this model does not have{nearest(key, groups)}; "
                f"groups: {', '.join(groups)}"
            )
        group = groups[key]
        technique = plugins.load("technique", choice.technique)()
        reason = group.refusal or (
            f"{choice.technique} acts on {technique.level}" if technique.level != group.level else technique.fits(group)
        )
        if reason:
            raise PlanError(f"{choice.technique} cannot act on {key!r}: {reason}")
        found.append((group, choice))
    return found


def _mask(
    dense: nn.Module, smaller: nn.Module, group: Group, choice: Choice, cuts: list[Cut], importance: Importance
) -> Mask:
    """A mask on what the cut left of a layer's weight; gradients are the dense model's, cut alike."""
    name = tensor_of(dense, group.name)
    technique = plugins.load("technique", choice.technique)()
    criterion = plugins.load("criterion", choice.criterion)()
    gradient = importance.gradient(name) if criterion.needs_gradients else None
    mine = [cut for cut in cuts if cut.tensor == name]
    if gradient is not None:
        gradient = take(gradient, mine)

    def keep(weight: Tensor, share: float) -> Tensor:
        held = gradient.to(weight.device) if gradient is not None else None
        pattern: Tensor = technique.keep(criterion.score(weight, held), choice.ratio * share)
        return pattern

    return Mask(name, keep, technique.gradual)
