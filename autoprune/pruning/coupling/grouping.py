"""From ids to groups: units, the layers that produce them, balance between blocks, and what is
refused."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autoprune.group import Group
from autoprune.pruning.tracing.channel_ids import Balance
from autoprune.pruning.tracing.propagation import Propagation

__all__ = ["TRAINING_ONLY", "Units", "collect_units", "owner_of"]

TRAINING_ONLY = "it runs in training only: a cut would change nothing of what ships"
# What a tensor's name has beyond its layer's, in plain layers, in weight norm's two forms, in
# attention with one projection or three, and under a parametrization
_WEIGHT = r"\.(weight|weight_v|(in|q|k|v)_proj_weight|parametrizations\.weight\.original1?)$"


@dataclass
class Units:
    """Numbered units: representatives of ids that may be cut, group by group."""

    groups: list[Group] = field(default_factory=list)
    # Key -> numbers, (cells, units per cell)
    members: dict[str, Tensor] = field(default_factory=dict)
    number_of: dict[int, int] = field(default_factory=dict)  # representative -> number
    # Numbers of those that the code's own bounds do not fit
    loose: set[int] = field(default_factory=set)

    @property
    def total(self) -> int:
        """How many units there are."""
        return len(self.number_of)

    def number(self, roots: Tensor) -> Tensor:
        """Unit numbers of representatives, -1 where one may not be cut."""
        return torch.tensor(
            [self.number_of.get(root, -1) for root in roots.tolist()], dtype=torch.int64
        )


@dataclass
class _Layer:
    name: str
    kind: str
    roots: list[int]
    channels: int
    training: bool  # runs in training only


def collect_units(found: Propagation, kinds: Mapping[str, str]) -> Units:
    """The units groups of a traced model, refused ones included."""
    ids = found.ids
    _agree_on_shared(found)
    layers = _producing_layers(found, kinds)
    frozen = ids.frozen()
    balances = [
        Balance(ids.roots(balance.ids), balance.blocks, balance.why, balance.soft)
        for balance in ids.balances
    ]
    units = Units()
    for names in _connect_layers(layers, balances):
        members = [layers[name] for name in names]
        roots = list(dict.fromkeys(root for layer in members for root in layer.roots))
        free = [root for root in roots if root not in frozen]
        cells, refusal, loose = _admissible(roots, free, frozen, balances)
        if all(layer.training for layer in members):
            refusal = TRAINING_ONLY
        if not refusal and len(cells[0]) < 2:
            refusal = (
                "each block of it that must lose the same count has a single channel"
                if len(cells) > 1
                else "it has a single channel"
                if sum(layer.channels for layer in members) == 1
                else "all of its channels go together"
            )
        group = Group(
            members[0].name,
            "units",
            tuple(layer.name for layer in members),
            tuple(layer.kind for layer in members),
            (len(free) or members[0].channels,),
            1 if refusal else len(cells),
            refusal,
        )
        units.groups.append(group)
        if refusal is None:
            start = units.total
            units.number_of |= {
                root: start + place
                for place, root in enumerate(root for cell in cells for root in cell)
            }
            units.loose |= {units.number_of[root] for root in free} if loose else set()
            units.members[group.key] = torch.arange(start, units.total).view(len(cells), -1)
    for name, (count, why) in found.layers.refused.items():
        if name not in layers:
            units.groups.append(
                Group(name, "units", (name,), (kinds.get(name, "other"),), (count,), 1, why)
            )
    return units


def _admissible(
    roots: list[int], free: list[int], frozen: Mapping[int, str], balances: list[Balance]
) -> tuple[list[list[int]], str | None, bool]:
    """Cells of the free units, why none of them may be cut, and whether the code's own bounds are
    to be bound anew."""
    if not free:
        return [free], next(frozen[root] for root in roots), False
    cells, refusal = _cells(free, balances)
    loose = refusal is not None
    if loose:
        cells, refusal = _cells(free, [balance for balance in balances if not balance.soft])
    if refusal and len(free) < len(roots):
        refusal += f"; of the others: {next(frozen[root] for root in roots if root in frozen)}"
    return cells, refusal, loose


def owner_of(tensor: str) -> str:
    """The name of the layer whose weight this is; of any other tensor its own."""
    return re.sub(_WEIGHT, "", tensor)


def _agree_on_shared(found: Propagation) -> None:
    """Tensors used several times are cut once: unite their ids place by place; opaque reads freeze
    theirs."""
    ids = found.ids
    first: dict[tuple[str, int, int], Tensor] = {}
    for use in ids.uses:
        place = (use.tensor, use.dim, use.groups)
        if use.tensor in found.opaque:
            ids.freeze(use.ids, found.opaque[use.tensor])
        earlier = first.setdefault(place, use.ids)
        if len(earlier) != len(use.ids):
            ids.freeze(torch.cat([earlier, use.ids]), f"{use.tensor} is used with other widths")
            continue
        both = (earlier >= 0) & (use.ids >= 0)
        ids.unite(earlier[both], use.ids[both])
        alone = both & ((earlier == 0) != (use.ids == 0))
        ids.freeze(
            torch.cat([earlier[alone], use.ids[alone]]),
            f"{use.tensor} also reads inputs that cannot be cut",
        )
        first[place] = torch.maximum(earlier, use.ids)


def _producing_layers(found: Propagation, kinds: Mapping[str, str]) -> dict[str, _Layer]:
    ids, layers = found.ids, dict[str, _Layer]()
    heads = set(ids.roots(torch.cat(ids.heads)).tolist()) if ids.heads else set()
    for use in ids.uses:
        if use.role == "produce":
            name = use.layer or owner_of(use.tensor)
            roots = [root for root in dict.fromkeys(ids.roots(use.ids).tolist()) if root >= 0]
            kind = use.kind if use.kind != "other" else kinds.get(name, "other")
            kind = "attention" if heads & set(roots) else kind
            layer = layers.setdefault(
                name, _Layer(name, kind, [], 0, use.tensor not in found.evaluated)
            )
            layer.roots = list(dict.fromkeys(layer.roots + roots))
            layer.channels += len(set(use.ids[use.ids >= 0].tolist()))
    return layers


def _connect_layers(layers: Mapping[str, _Layer], balances: list[Balance]) -> list[list[str]]:
    """Layers that must be decided together: they share a unit, or a balance ties their units. In
    order of execution."""
    parent = {name: name for name in layers}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    owner: dict[int, str] = {}
    order = {name: place for place, name in enumerate(layers)}

    def join(first: str, second: str) -> None:
        a, b = sorted((find(first), find(second)), key=order.__getitem__)
        parent[b] = a

    for name, layer in layers.items():
        for root in layer.roots:
            join(owner.setdefault(root, name), name)
    for balance in balances:
        owners = [owner[root] for root in dict.fromkeys(balance.ids.tolist()) if root in owner]
        for name in owners[1:]:
            join(owners[0], name)
    together: dict[str, list[str]] = defaultdict(list)
    for name in layers:
        together[find(name)].append(name)
    return list(together.values())


def _cells(free: list[int], balances: list[Balance]) -> tuple[list[list[int]], str | None]:
    """Cells of units that must lose the same count so that every balance holds; and why that cannot
    be, or None."""
    inside = set(free)
    concerned = [balance for balance in balances if inside & set(balance.ids.tolist())]
    signature: dict[int, list[tuple[int, ...]]] = {root: [] for root in free}
    for balance in concerned:
        places = defaultdict(list)
        for block, roots in enumerate(balance.ids.view(balance.blocks, -1).tolist()):
            for root in roots:
                places[root].append(block)
        for root in free:
            signature[root].append(tuple(places[root]))
    cells: dict[tuple[tuple[int, ...], ...], list[int]] = defaultdict(list)
    for root in free:
        cells[tuple(signature[root])].append(root)
    partitions = list(cells.values())
    if len({len(cell) for cell in partitions}) > 1:
        return (
            partitions,
            "its blocks cannot lose the same count "
            f"({', '.join(sorted({balance.why for balance in concerned}))})",
        )
    for balance in concerned:
        counts = [
            sum(count for root, count in Counter(roots).items() if root in inside)
            for roots in balance.ids.view(balance.blocks, -1).tolist()
        ]
        if len(set(counts)) > 1:
            return partitions, f"only some of its blocks may be cut ({balance.why})"
    return partitions, None
