"""Importance: scores of any criterion, summed over all members of a unit, on a scale that compares
across groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.group import Group
from autoprune.plugins import Criterion, Need
from autoprune.pruning.calibration import Statistics
from autoprune.pruning.coupling.coupling import Coupling, tensor_of
from autoprune.space import unscored_reason

__all__ = ["Importance"]


@dataclass(frozen=True)
class _Place:
    """A dimension of a parameter; entry i of it belongs to unit `units[i]`, -1 for none."""

    tensor: str
    dim: int
    groups: int
    produces: bool
    units: Tensor


class Importance:
    """Importance of one model's units and weights by any criterion, named as in a plan.

    `evidence(need)` gives what criteria need to see of the model on data, by parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        coupling: Coupling,
        evidence: Callable[[Need], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self._parameters = {
            name: parameter.detach() for name, parameter in model.named_parameters()
        }
        self._model, self._coupling, self._evidence = (
            model,
            coupling,
            evidence or Statistics(model),
        )
        self._places = [place for place in _places(coupling) if place.tensor in self._parameters]
        self._scales = _batch_norm_scales(model)
        self._units: dict[str, Tensor] = {}  # criterion -> importance of every unit
        # Group, criterion -> importance of its block
        self._blocks: dict[tuple[str, str], Tensor] = {}
        self._scored: dict[str, Tensor] = {}  # criterion -> which units it scores
        # Criterion -> modules that hold a parameter which it scores
        self._inside: dict[str, set[str]] = {}
        self._refusals: dict[tuple[str, str], str | None] = {}

    def refuses(self, criterion: str, group: Group) -> str | None:
        """Why `criterion` cannot score all of `group`, or None. Raises InputError where its data
        was not given."""
        key = (criterion, group.key)
        if key not in self._refusals:
            plugin: Criterion = plugins.create("criterion", criterion)
            reason = unscored_reason(criterion, group)
            self._refusals[key] = (
                reason if reason or group.refusal else self._lacking(criterion, plugin, group)
            )
        return self._refusals[key]

    def _lacking(self, name: str, criterion: Criterion, group: Group) -> str | None:
        what = " and ".join(criterion.needs)
        if group.level == "weights":
            lacks = self.statistics_for(criterion, tensor_of(self._model, group.name)) is None
            return f"{name} finds no {what} for the weight of {group.name}" if lacks else None
        if group.level == "blocks":
            if name not in self._inside:
                seen = (
                    part
                    for part in self._parameters
                    if self.statistics_for(criterion, part) is not None
                )
                self._inside[name] = {
                    module
                    for part in seen
                    for module in accumulate(part.split("."), "{}.{}".format)
                }
            inside = group.name in self._inside[name]
            return None if inside else f"{name} finds no {what} in {group.name}"
        if name not in self._scored:
            self._scored[name] = torch.zeros(self._coupling.total, dtype=torch.bool)
            for place in self._places_for(criterion):
                self._scored[name][place.units[place.units >= 0]] = True
        bare = int((~self._scored[name][self._coupling.members[group.key]]).sum())
        part = {"scales": "a batch norm", "filters": "a filter"}.get(criterion.scores, "a weight")
        part += f" with {what}" if what else ""
        return (
            f"{name} needs {part} in every unit; {bare} of {group.size} units have none"
            if bare
            else None
        )

    def statistics_for(self, criterion: Criterion, tensor: str) -> tuple[Tensor, ...] | None:
        """What a criterion needs to see for a parameter, each shaped like it; None where it does
        not have all."""
        statistics = tuple(self._evidence(need).get(tensor) for need in criterion.needs)
        return None if any(tensor is None for tensor in statistics) else statistics  # type: ignore[return-value]

    def units(self, group: Group, criterion: str) -> Tensor:
        """Importance of each unit of a group, (cells, units per cell), summed over all that it is
        made of.

        Groups compare: a criterion that estimates the loss is left as it is; by any other, an
        importance of 1 is the average unit of the group. Raises InputError where the criterion does
        not fit the group.
        """
        plugin = self._fitting(criterion, group)
        if criterion not in self._units:
            self._units[criterion] = self._sum(plugin)
        importance = self._units[criterion][self._coupling.members[group.key]]
        return (
            importance
            if plugin.comparable or not bool(importance.any())
            else importance / importance.mean()
        )

    def weights(self, group: Group, criterion: str) -> Tensor:
        """Importance of each weight of a weights group, shaped like the weight. Raises InputError
        as `units` does."""
        return self._elements(self._fitting(criterion, group), tensor_of(self._model, group.name))

    def _fitting(self, criterion: str, group: Group) -> Criterion:
        reason = self.refuses(criterion, group)
        if reason:
            raise InputError(f"{group.key}: {reason}")
        plugin: Criterion = plugins.create("criterion", criterion)
        return plugin

    def blocks(self, group: Group, criterion: str) -> Tensor:
        """Importance of the residual block of a group, (1,), summed over its parameters."""
        key = (group.key, criterion)
        if key not in self._blocks:
            plugin, (block,) = self._fitting(criterion, group), group.layers
            inside = (name for name in self._parameters if name.startswith(f"{block}."))
            seen = (name for name in inside if self.statistics_for(plugin, name) is not None)
            self._blocks[key] = torch.stack(
                [self._elements(plugin, name).double().sum().cpu() for name in seen]
            ).sum(0)
        return self._blocks[key].view(1)

    def _places_for(self, criterion: Criterion) -> Iterator[_Place]:
        """The places whose entries a criterion adds to their units."""
        for place in self._places:
            if criterion.scores == "scales":
                fits = place.tensor in self._scales
            elif criterion.scores == "filters":
                fits = place.produces and self._parameters[place.tensor].dim() > 1
            else:
                fits = self.statistics_for(criterion, place.tensor) is not None
            if fits:
                yield place

    def _sum(self, criterion: Criterion) -> Tensor:
        total = torch.zeros(self._coupling.total, dtype=torch.float64)
        count = torch.zeros_like(total)
        elements: dict[str, Tensor] = {}
        for place in self._places_for(criterion):
            inside = place.units >= 0
            if criterion.scores == "filters":
                units, scores = _filters(criterion, self._parameters[place.tensor], place)
            else:
                if place.tensor not in elements:
                    elements[place.tensor] = self._elements(criterion, place.tensor).double().cpu()
                units = place.units[inside]
                scores = _per_entry(elements[place.tensor], place.dim, place.groups)[inside]
            total.index_add_(0, units, scores)
            count.index_add_(0, units, torch.ones_like(scores))
        return total / count.clamp_min(1) if criterion.scores == "scales" else total

    def _elements(self, criterion: Criterion, tensor: str) -> Tensor:
        return torch.as_tensor(
            criterion.score(
                self._parameters[tensor], *(self.statistics_for(criterion, tensor) or ())
            )
        )


def _places(coupling: Coupling) -> list[_Place]:
    """Every place once; several uses of one, which read other parts of it or unite its units, are
    joined."""
    places: dict[tuple[str, int, int], _Place] = {}
    for slot in coupling.slots:
        key = (slot.tensor, slot.dim, slot.groups)
        produces = slot.role == "produce"
        if key not in places:
            places[key] = _Place(*key, produces, slot.units)
            continue
        joined = torch.maximum(places[key].units, slot.units)
        places[key] = replace(places[key], produces=places[key].produces or produces, units=joined)
    return list(places.values())


def _batch_norm_scales(model: nn.Module) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    norms = (
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    )
    return {names[id(norm.weight)] for norm in norms if id(norm.weight) in names}


def _filters(criterion: Criterion, weight: Tensor, place: _Place) -> tuple[Tensor, Tensor]:
    """Units and scores of the filters of a layer; a filter is all of the layer's weight that makes
    one unit.

    Rows that belong to no unit are filters too, without a score of theirs. Layers compare as groups
    do: by a criterion that is not comparable, the layer's average filter has a score of 1.
    """
    owners = torch.where(place.units >= 0, place.units, -1 - torch.arange(len(place.units)))
    units, index = torch.unique(owners, return_inverse=True)
    order = index.argsort(stable=True)
    counts = index.bincount()
    # A unit's first row, second row, ...
    turn = torch.arange(len(index)) - (counts.cumsum(0) - counts)[index[order]]
    rows = weight.movedim(place.dim, 0).flatten(1).cpu()
    filters = rows.new_zeros(len(units), int(counts.max()), rows.shape[1])
    filters[index[order], turn] = rows[order]
    scores = torch.as_tensor(criterion.score(filters.flatten(1))).double()
    if not criterion.comparable and bool(scores.any()):
        scores = scores / scores.mean()
    return units[units >= 0], scores[units >= 0]


def _per_entry(elements: Tensor, dim: int, groups: int) -> Tensor:
    """Sum over everything but `dim`; with `groups`, one entry for each input channel of a grouped
    convolution."""
    if groups > 1:
        return torch.cat([_per_entry(part, dim, 1) for part in elements.chunk(groups)])
    return elements.movedim(dim, 0).flatten(1).sum(1) if elements.dim() > 1 else elements
