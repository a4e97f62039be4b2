"""Which channels live or die together: groups of coupled units, found by propagating channel ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.group import Group
from autoprune.pruning.grouping import collect_units
from autoprune.pruning.propagation import propagate
from autoprune.pruning.shrink import Cut, replace_tensors
from autoprune.task import Inputs

__all__ = ["Coupling", "Slot", "layer_of", "tensor_of", "trace"]


@dataclass(frozen=True)
class Slot:
    """Dimension `dim` of a tensor, entry by entry: `units[i]` is the number of the unit it belongs to, -1 for none."""

    tensor: str
    dim: int
    groups: int
    role: str
    units: Tensor


@dataclass(frozen=True)
class Coupling:
    """The groups of a model, and where each of their units sits.

    `members[key]` are the numbers of a units group's units, (cells, units per cell); numbers run over `total` units.
    """

    groups: tuple[Group, ...]
    slots: tuple[Slot, ...]
    members: Mapping[str, Tensor]
    total: int
    norms: Mapping[int, Tensor]  # n-th call of a norm across channels -> unit number of each channel, -1 for none

    def group(self, key: str) -> Group:
        """The group with this key. Raises ModelError for an unknown one."""
        for group in self.groups:
            if group.key == key:
                return group
        raise ModelError(f"no group {key!r}; groups: {', '.join(group.key for group in self.groups)}")

    def prunable(self) -> list[Group]:
        """The groups that are not refused."""
        return [group for group in self.groups if group.refusal is None]

    def kept(self, keep: Mapping[str, Tensor]) -> Tensor:
        """Boolean over all units, and a True at the end for "none"; `keep[key]` is (units,), in the group's order."""
        alive = torch.ones(self.total + 1, dtype=torch.bool)
        for key, kept in keep.items():
            alive[self.members[key].flatten()] = kept.cpu()
        return alive

    def cuts(self, keep: Mapping[str, Tensor]) -> list[Cut]:
        """Every cut that keeps these units of these groups; tensors that lose nothing are left out."""
        alive = self.kept(keep)
        by_place: dict[tuple[str, int, int], Tensor] = {}
        for slot in self.slots:
            place = (slot.tensor, slot.dim, slot.groups)
            kept = alive[slot.units]
            by_place[place] = by_place[place] & kept if place in by_place else kept
        return [
            Cut(tensor, dim, kept, groups) for (tensor, dim, groups), kept in by_place.items() if not bool(kept.all())
        ]

    def without(self, refusals: Mapping[str, str]) -> Coupling:
        """The same with some units groups refused, for the reasons given."""
        groups = tuple(replace(group, refusal=refusals.get(group.key, group.refusal)) for group in self.groups)
        return replace(self, groups=groups)


def trace(model: nn.Module, inputs: Inputs) -> Coupling:
    """The groups as id propagation finds them, not yet proved."""
    model = replace_tensors(model, lambda name, tensor: tensor.clone())  # a forward may write into buffers
    found = propagate(model, inputs.rows(min(2, inputs.batch_size)).map(lambda tensor: tensor.clone()))
    units = collect_units(found, kinds_by_layer(model))
    slots = tuple(
        Slot(use.tensor, use.dim, use.groups, use.role, units.number(found.ids.roots(use.ids)))
        for use in found.ids.uses
    )
    slots = tuple(slot for slot in slots if bool((slot.units >= 0).any()))
    norms = {call: units.number(found.ids.roots(ids)) for call, ids in found.layers.norm_calls.items()}
    return Coupling(
        (*units.groups, *weights_groups(model)),
        slots,
        units.members,
        units.total,
        {call: numbers for call, numbers in norms.items() if bool((numbers >= 0).any())},
    )


def weights_groups(model: nn.Module) -> Iterable[Group]:
    """One group for the weight tensor of every convolution, linear, recurrent and attention layer."""
    first = {
        id(parameter): name for name, parameter in model.named_parameters()
    }  # a shared tensor goes by its first name
    seen: set[int] = set()
    for module in model.modules():
        kind = kind_of(module)
        if kind in ("embedding", "other"):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.dim() >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                layer = layer_of(first[id(parameter)])
                yield Group(layer, "weights", (layer,), (kind,), tuple(parameter.shape))


def layer_of(tensor: str) -> str:
    """The layer's name for its `weight`, the tensor's own name for anything else."""
    return tensor.removesuffix(".weight")


def tensor_of(model: nn.Module, layer: str) -> str:
    """The name of the tensor that a weights group named `layer` masks."""
    names = dict(model.named_parameters())
    return layer if layer in names else f"{layer}.weight"


def kind_of(module: nn.Module) -> str:
    """conv, linear, recurrent, embedding or other."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    if isinstance(module, (nn.Linear, nn.Bilinear, nn.MultiheadAttention)):
        return "linear"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "recurrent"
    return "embedding" if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) else "other"


def kinds_by_layer(model: nn.Module) -> dict[str, str]:
    """Kind of each module, by name."""
    return {path: kind_of(module) for path, module in model.named_modules()}
