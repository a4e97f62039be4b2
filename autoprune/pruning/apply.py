"""Apply a plan: cut the units, set up the masks, in that order, so that masks act on what the cut
left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.errors import PlanError, nearest
from autoprune.group import Group
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.coupling import Coupling, tensor_of
from autoprune.pruning.importance import Importance
from autoprune.pruning.masks import Mask, Masks
from autoprune.pruning.surgery.shrink import Cut, copy_tensors, shrink, take
from autoprune.space import fits

__all__ = ["Pruned", "apply", "check_plan", "effective", "follows", "kept_units", "partly"]

_STEPS = 4  # of gradual masks, between repairs


@dataclass(frozen=True)
class Pruned:
    """A smaller model, the masks it still carries through training, and the cuts and removed blocks
    that made it.

    `kept` says by group which units and blocks stay, as `kept_units` does.
    """

    model: nn.Module
    masks: Masks
    cuts: list[Cut]
    removed: list[str]  # blocks
    kept: Mapping[str, Tensor] = field(default_factory=dict)

    def fill(
        self, repair: Callable[[nn.Module, Sequence[Cut]], nn.Module], progress: float = 1.0
    ) -> None:
        """Solve the layers anew by `repair`, in place, with the masks as they are to be at
        `progress` in training.

        What is gradual goes in some steps, each chosen from weights that have made up for the last:
        what comes out is better than a mask that is chosen at once.
        """
        if not self.masks.gradual:
            copy_tensors(self.model, repair(self.model, self.cuts))
        for step in range(1, _STEPS + 1) if self.masks.gradual else ():
            if self.masks.fill(step / _STEPS, progress) or step == _STEPS:
                copy_tensors(self.model, repair(self.model, self.cuts))

    @property
    def lost(self) -> bool:
        """Whether units or weights went, not whole blocks alone."""
        return bool(self.cuts) or bool(self.masks.masks)

    def finish(self) -> nn.Module:
        """The model with every mask at its final ratio, masks let go."""
        self.masks.finish()
        return self.model


def apply(
    model: nn.Module,
    coupling: Coupling,
    plan: Plan,
    importance: Importance,
    *,
    gradual: bool = False,
    after: Pruned | None = None,
) -> Pruned:
    """Cut and mask a copy of `model` as `plan` says; `model` is untouched.

    `gradual` leaves masks of gradual techniques empty at first, for `fill` and for training to set
    them; else all are full. With `after`, an earlier cut of the same model, the weights are those
    that it has by now; `follows` says whether it is one. Raises PlanError for a group, technique or
    criterion that is not there, is refused or does not fit.
    """
    choices = _effective(check_plan(coupling, plan, importance), importance)
    keep = _kept_by_group(choices, importance)
    cuts = coupling.cuts(keep)
    smaller = coupling.apply(model, keep, cuts)
    if after is not None:
        _take_on(smaller, cuts, after)
    masks = [
        _mask(model, smaller, group, choice, cuts, importance, gradual)
        for group, choice in choices
        if group.level == "weights"
    ]
    return Pruned(smaller, Masks(smaller, masks), cuts, coupling.removed_blocks(keep), keep)


def follows(pruned: Pruned, after: Pruned) -> bool:
    """Whether `after` lost no unit and no block that `pruned` keeps: one may be kept for want of
    another."""
    if not set(after.removed) <= set(pruned.removed):
        return False
    gone = tuple(f"{name}." for name in pruned.removed)
    kept = {(cut.tensor, cut.dim, cut.groups): cut.keep for cut in pruned.cuts}
    left = [cut for cut in after.cuts if not (gone and cut.tensor.startswith(gone))]
    pairs = [(kept.get((cut.tensor, cut.dim, cut.groups)), cut.keep) for cut in left]
    return all(last is not None and not bool((last & ~first).any()) for last, first in pairs)


def _take_on(smaller: nn.Module, cuts: Sequence[Cut], after: Pruned) -> None:
    """Give a cut model the weights of an earlier cut of the same dense model, which keeps at least
    as much."""
    places = {(cut.tensor, cut.dim, cut.groups): cut.keep for cut in after.cuts}
    before = [places.get((cut.tensor, cut.dim, cut.groups)) for cut in cuts]
    left = [
        cut if gone is None else replace(cut, keep=cut.keep[gone])
        for cut, gone in zip(cuts, before, strict=True)
    ]
    copy_tensors(smaller, shrink(after.model, left))


def partly(plan: Plan, share: float) -> Plan:
    """The plan on its way: blocks as they go, of units and weights a share of what goes.

    Weights that go by a schedule in training of their own are all there still.
    """
    found = {}
    for key, choice in plan:
        technique = plugins.create("technique", choice.technique)
        if technique.level == "blocks":
            found[key] = choice
        elif not technique.gradual or technique.share(0.0) == 1:
            found[key] = replace(choice, ratio=share * choice.ratio)
    return Plan(found)


def effective(coupling: Coupling, plan: Plan, importance: Importance) -> Plan:
    """The plan without what it says of groups that lie whole in blocks that go: plans that do the
    same are equal."""
    return Plan(
        {
            group.key: choice
            for group, choice in _effective(check_plan(coupling, plan, importance), importance)
        }
    )


def kept_units(coupling: Coupling, plan: Plan, importance: Importance) -> dict[str, Tensor]:
    """Which units and blocks the choices of a plan keep, (units,) of each group of its `effective`
    choices."""
    return _kept_by_group(
        _effective(check_plan(coupling, plan, importance), importance), importance
    )


def _effective(
    choices: Sequence[tuple[Group, Choice]], importance: Importance
) -> list[tuple[Group, Choice]]:
    deep = [(group, choice) for group, choice in choices if group.level == "blocks"]
    kept = _kept_by_group(deep, importance)
    gone = tuple(
        f"{name}."
        for group, _ in deep
        for name, stays in zip(group.layers, kept[group.key], strict=True)
        if not stays
    )
    return [
        choice
        for choice in choices
        if not (gone and all(layer.startswith(gone) for layer in choice[0].layers))
    ]


def _kept_by_group(
    choices: Sequence[tuple[Group, Choice]], importance: Importance
) -> dict[str, Tensor]:
    keep: dict[str, Tensor] = {}
    for group, choice in choices:
        technique = plugins.create("technique", choice.technique)
        if group.level == "blocks":
            keep[group.key] = technique.keep(
                importance.blocks(group, choice.criterion), choice.ratio
            )
        elif group.level == "units":
            cells = importance.units(group, choice.criterion)
            keep[group.key] = torch.stack(
                [technique.keep(cell, choice.ratio) for cell in cells]
            ).flatten()
    return keep


def check_plan(
    coupling: Coupling, plan: Plan, importance: Importance
) -> list[tuple[Group, Choice]]:
    """The groups that a plan names, with its choices. Raises PlanError for what is not there or
    does not fit."""
    groups: Mapping[str, Group] = {group.key: group for group in coupling.groups}
    found = []
    for key, choice in plan:
        if key not in groups:
            raise PlanError(
                f"the plan names the group {key!r}, which this model does not "
                f"have{nearest(key, groups)}; "
                f"groups: {', '.join(groups)}"
            )
        group = groups[key]
        reason = group.refusal or fits(choice.technique, group)
        if reason:
            raise PlanError(f"{choice.technique} cannot act on {key!r}: {reason}")
        reason = importance.refuses(choice.criterion, group)
        if reason:
            raise PlanError(f"{choice.criterion} cannot rank {key!r}: {reason}")
        found.append((group, choice))
    return found


def _mask(
    dense: nn.Module,
    smaller: nn.Module,
    group: Group,
    choice: Choice,
    cuts: list[Cut],
    importance: Importance,
    gradual: bool,
) -> Mask:
    """A mask on what the cut left of a layer's weight; what the criterion sees is the dense
    model's, cut alike."""
    name = tensor_of(dense, group.name)
    technique = plugins.create("technique", choice.technique)
    criterion = plugins.create("criterion", choice.criterion)
    mine = [cut for cut in cuts if cut.tensor == name]
    needed = [take(tensor, mine) for tensor in importance.statistics_for(criterion, name) or ()]

    def keep(weight: Tensor, share: float) -> Tensor:
        seen = [tensor.to(weight.device) for tensor in needed]
        pattern: Tensor = technique.keep(criterion.score(weight, *seen), choice.ratio * share)
        return pattern

    return Mask(name, keep, technique if gradual and technique.gradual else None)
