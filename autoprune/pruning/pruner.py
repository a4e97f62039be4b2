"""The one way from a plan to a model: resolve what the plan comes to, then cut the units and set up
the masks, in that order, so that masks act on what the cut left over."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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

__all__ = ["Pruned", "Pruner", "ResolvedPlan", "partly"]

# Of gradual masks, a reconstruction after each
_STEPS = 4
# Plans: a search asks for one by its cost first, and by what it comes to afterwards
_REMEMBERED = 256


@dataclass(frozen=True, eq=False)
class ResolvedPlan:
    """What a plan comes to on one model.

    `choices` are the plan's by group, without those of groups that lie whole in blocks that go.
    `kept` says by the key of a group which of its units or blocks stay, (units,).
    """

    coupling: Coupling
    choices: tuple[tuple[Group, Choice], ...]
    kept: Mapping[str, Tensor]

    @cached_property
    def plan(self) -> Plan:
        """The choices as a plan: plans that do the same come to the same one."""
        return Plan({group.key: choice for group, choice in self.choices})

    @cached_property
    def cuts(self) -> list[Cut]:
        """Every cut of a tensor that keeps these units."""
        return self.coupling.cuts(self.kept)

    @cached_property
    def removed(self) -> list[str]:
        """The blocks that go."""
        return self.coupling.removed_blocks(self.kept)

    @property
    def masks(self) -> list[tuple[Group, Choice]]:
        """The choices on single weights."""
        return [(group, choice) for group, choice in self.choices if group.level == "weights"]

    @cached_property
    def net_id(self) -> Hashable:
        """The same for plans that keep the same units and mask alike, whatever ranked them."""
        return (*self._units, *((group.key, choice) for group, choice in self.masks))

    @cached_property
    def shape_id(self) -> Hashable:
        """The same for plans of one `net_id`, and for those that differ in how equal shares are
        masked."""
        return (*self._units, *((group.key, choice.ratio) for group, choice in self.masks))

    @cached_property
    def cost_id(self) -> Hashable:
        """The same for plans that come to the same widths, blocks and masks: all that counts depend
        on."""
        blocks = {group.key for group, _ in self.choices if group.level == "blocks"}
        widths = (
            (key, tuple(kept.tolist()) if key in blocks else int(kept.sum()))
            for key, kept in self.kept.items()
        )
        return (*widths, *((group.key, choice) for group, choice in self.masks))

    @cached_property
    def _units(self) -> tuple[Hashable, ...]:
        return tuple(
            (key, bytes(kept.to(torch.uint8).tolist()))
            for key, kept in self.kept.items()
            if not bool(kept.all())
        )

    def follows(self, before: ResolvedPlan) -> bool:
        """Whether `before` lost no unit and no block that this plan keeps: one may be kept for want
        of another."""
        if not set(before.removed) <= set(self.removed):
            return False
        gone = tuple(f"{name}." for name in self.removed)
        kept = {_place(cut): cut.keep for cut in self.cuts}
        left = [cut for cut in before.cuts if not (gone and cut.tensor.startswith(gone))]
        pairs = [(kept.get(_place(cut)), cut.keep) for cut in left]
        return all(last is not None and not bool((last & ~first).any()) for last, first in pairs)


@dataclass(frozen=True)
class Pruned:
    """A smaller model, the masks that it still carries through training, and the resolved plan that
    made it."""

    model: nn.Module
    masks: Masks
    resolved: ResolvedPlan

    @property
    def cuts(self) -> list[Cut]:
        """The cuts that made the model."""
        return self.resolved.cuts

    @property
    def removed(self) -> list[str]:
        """The blocks that went."""
        return self.resolved.removed

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


class Pruner:
    """Makes models of plans out of one dense `model`, which is never changed."""

    def __init__(self, model: nn.Module, coupling: Coupling, importance: Importance) -> None:
        self.model, self.coupling, self.importance = model, coupling, importance
        self._resolved: dict[Plan, ResolvedPlan] = {}

    def check(self, plan: Plan) -> list[tuple[Group, Choice]]:
        """The groups that a plan names, with its choices. Raises PlanError for a group, technique
        or criterion that is not there, is refused or does not fit."""
        groups: Mapping[str, Group] = {group.key: group for group in self.coupling.groups}
        choices = []
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
            reason = self.importance.refuses(choice.criterion, group)
            if reason:
                raise PlanError(f"{choice.criterion} cannot rank {key!r}: {reason}")
            choices.append((group, choice))
        return choices

    def resolve(self, plan: Plan) -> ResolvedPlan:
        """What a plan comes to. Raises PlanError as `check`."""
        if plan not in self._resolved:
            if len(self._resolved) >= _REMEMBERED:
                self._resolved.clear()
            choices = self._without_removed(self.check(plan))
            kept = self._kept_by_group(choices)
            self._resolved[plan] = ResolvedPlan(self.coupling, tuple(choices), kept)
        return self._resolved[plan]

    def apply(
        self, plan: Plan | ResolvedPlan, *, gradual: bool = False, after: Pruned | None = None
    ) -> Pruned:
        """Cut and mask a copy of the model as the plan says.

        `gradual` leaves masks of gradual techniques empty at first, for `fill` and for training to
        set them; else all are full. With `after`, an earlier cut of the same model, the weights are
        those that it has by now; `ResolvedPlan.follows` says whether it is one. Raises PlanError as
        `check`.
        """
        resolved = self.resolve(plan) if isinstance(plan, Plan) else plan
        smaller = self.coupling.apply(self.model, resolved.kept, resolved.cuts)
        if after is not None:
            _inherit(smaller, resolved.cuts, after)
        masks = [
            _mask(self.model, smaller, group, choice, resolved.cuts, self.importance, gradual)
            for group, choice in resolved.masks
        ]
        return Pruned(smaller, Masks(smaller, masks), resolved)

    def cut(self, kept: Mapping[str, Tensor]) -> Pruned:
        """The model that keeps these units and blocks, by the key of their group."""
        return self.apply(ResolvedPlan(self.coupling, (), kept))

    def _without_removed(
        self, choices: Sequence[tuple[Group, Choice]]
    ) -> list[tuple[Group, Choice]]:
        """The choices without those of groups that lie whole in blocks that go."""
        deep = [(group, choice) for group, choice in choices if group.level == "blocks"]
        kept = self._kept_by_group(deep)
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

    def _kept_by_group(self, choices: Sequence[tuple[Group, Choice]]) -> dict[str, Tensor]:
        keep: dict[str, Tensor] = {}
        for group, choice in choices:
            technique = plugins.create("technique", choice.technique)
            if group.level == "blocks":
                blocks = self.importance.blocks(group, choice.criterion)
                keep[group.key] = technique.keep(blocks, choice.ratio)
            elif group.level == "units":
                cells = self.importance.units(group, choice.criterion)
                kept = [technique.keep(cell, choice.ratio) for cell in cells]
                keep[group.key] = torch.stack(kept).flatten()
        return keep


def partly(plan: Plan, share: float) -> Plan:
    """The plan on its way: blocks as they go, of units and weights a share of what goes.

    Weights that go by a schedule in training of their own are all there still.
    """
    choices = {}
    for key, choice in plan:
        technique = plugins.create("technique", choice.technique)
        if technique.level == "blocks":
            choices[key] = choice
        elif not technique.gradual or technique.share(0.0) == 1:
            choices[key] = replace(choice, ratio=share * choice.ratio)
    return Plan(choices)


def _place(cut: Cut) -> tuple[str, int, int]:
    return cut.tensor, cut.dim, cut.groups


def _inherit(smaller: nn.Module, cuts: Sequence[Cut], after: Pruned) -> None:
    """Give a cut model the weights of an earlier cut of the same dense model, which keeps at least
    as much."""
    places = {_place(cut): cut.keep for cut in after.cuts}
    before = [places.get(_place(cut)) for cut in cuts]
    left = [
        cut if gone is None else replace(cut, keep=cut.keep[gone])
        for cut, gone in zip(cuts, before, strict=True)
    ]
    copy_tensors(smaller, shrink(after.model, left))


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
