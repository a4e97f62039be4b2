"""Which channels live or die together: groups of coupled units, found by propagating channel
ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.group import Group
from autoprune.pruning.coupling.grouping import TRAINING_ONLY, Units, collect_units, owner_of
from autoprune.pruning.coupling.stages import positions_of, with_stages
from autoprune.pruning.surgery.attention import Attention
from autoprune.pruning.surgery.forward import on_cpu
from autoprune.pruning.surgery.patch_forward import bind
from autoprune.pruning.surgery.shrink import Cut, replace_tensors, shrink
from autoprune.pruning.surgery.sized_calls import Bindings
from autoprune.pruning.tracing.propagation import Propagation
from autoprune.pruning.tracing.size_literals import Literal
from autoprune.pruning.tracing.trace import propagate
from autoprune.pruning.tracing.training_mode import TrainingPath, training_path
from autoprune.task import Inputs

__all__ = ["Coupling", "Slot", "layer_of", "tensor_of", "trace"]


@dataclass(frozen=True)
class Slot:
    """Dimension `dim` of a tensor, entry by entry: `units[i]` is the number of the unit it belongs
    to, -1 for none."""

    tensor: str
    dim: int
    groups: int
    role: str
    units: Tensor


@dataclass(frozen=True)
class Coupling:
    """The groups of a model, and where each of their units sits.

    `members[key]` are the numbers of a units group's units, (cells, units per cell); numbers run
    over `total` units.
    """

    groups: tuple[Group, ...]
    slots: tuple[Slot, ...]
    members: Mapping[str, Tensor]
    total: int
    # N-th call of a norm across channels -> unit number of each channel, -1 for none
    norms: Mapping[int, Tensor]
    # Units of layers, or parts of them, with no whole cell: at least one of each stays
    narrow: tuple[Tensor, ...] = ()
    literals: tuple[
        Literal, ...
    ] = ()  # numbers in the code of forwards that a cut may change; their ids are unit numbers
    # Training takes a path of its own, which slots, norms and literals cover as well
    training: bool = False
    unfollowed: str | None = None  # why they do not where it does
    # Calls of norms in evaluation, before those of training in `norms`
    evaluation_norms: int = 0

    def group(self, key: str) -> Group:
        """The group with this key. Raises ModelError for an unknown one."""
        for group in self.groups:
            if group.key == key:
                return group
        raise ModelError(
            f"no group {key!r}; groups: {', '.join(group.key for group in self.groups)}"
        )

    def prunable(self) -> list[Group]:
        """The groups that are not refused."""
        return [group for group in self.groups if group.refusal is None]

    def kept_mask(self, keep: Mapping[str, Tensor]) -> Tensor:
        """Boolean over all units, and a True at the end for "none"; `keep[key]` is (units,), in the
        group's order."""
        alive = torch.ones(self.total + 1, dtype=torch.bool, device="cpu")
        for key, kept in keep.items():
            if key not in self.members:
                continue  # blocks
            alive[self.members[key].flatten()] = kept.cpu()
        for units in self.narrow if keep else ():
            if not bool(alive[units].any()):
                self._revive(alive, units[0])
        return alive

    def _revive(self, alive: Tensor, unit: Tensor) -> None:
        """Keep `unit` as well, and one more in every other cell of its group: cells keep as many as
        each other."""
        members = next(cells for cells in self.members.values() if bool((cells == unit).any()))
        for cell in members:
            gone = cell[~alive[cell]]
            alive[unit if bool((cell == unit).any()) else gone[0]] = True

    def cuts(self, keep: Mapping[str, Tensor]) -> list[Cut]:
        """Every cut that keeps these units of these groups; tensors that lose nothing are left
        out."""
        alive = self.kept_mask(keep)
        by_place: dict[tuple[str, int, int], Tensor] = {}
        for slot in self.slots:
            place = (slot.tensor, slot.dim, slot.groups)
            kept = alive[slot.units]
            by_place[place] = by_place[place] & kept if place in by_place else kept
        return [
            Cut(tensor, dim, kept, groups)
            for (tensor, dim, groups), kept in by_place.items()
            if not bool(kept.all())
        ]

    def bindings(self, keep: Mapping[str, Tensor]) -> Bindings:
        """The numbers in the code of forwards, as the model that keeps these units needs them."""
        if not self.literals:
            return {}
        alive = self.kept_mask(keep)

        def count(units: Tensor, start: int, stop: int) -> int:
            return int(alive[units[start:stop]].sum())

        bindings: Bindings = {}
        for literal in self.literals:
            bindings.setdefault(literal.owner, {})[literal.call] = literal.change(count)
        for changes in bindings.values() if self.training else ():
            # Training has calls of its own, though none of them be changed
            changes.setdefault(-1, {})
        return bindings

    def removed_blocks(self, keep: Mapping[str, Tensor]) -> list[str]:
        """The blocks that go."""
        blocks = [group for group in self.groups if group.level == "blocks" and group.key in keep]
        return [
            name
            for group in blocks
            for name, kept in zip(group.layers, keep[group.key].tolist(), strict=True)
            if not kept
        ]

    def apply(
        self,
        model: nn.Module,
        keep: Mapping[str, Tensor],
        cuts: Sequence[Cut] | None = None,
        noted: set[tuple[str, int]] | None = None,
    ) -> nn.Module:
        """A copy of `model` that keeps these units and blocks of these groups; costs about one deep
        copy.

        `cuts` are those of `keep`, where they are known already; `noted` as in `bind`.
        """
        cuts = self.cuts(keep) if cuts is None else cuts
        return bind(shrink(model, cuts, self.removed_blocks(keep)), self.bindings(keep), noted)

    def joined_by(self, groups: Iterable[Group]) -> Coupling:
        """The same with further groups, after those of units."""
        units = [group for group in self.groups if group.level == "units"]
        return replace(self, groups=(*units, *groups, *self.groups[len(units) :]))

    def binding(self, needed: Collection[tuple[str, int]]) -> Coupling:
        """The same with only those literals that must be bound anew: all widths of a module of
        which one must."""
        owners = {owner for owner, _ in needed}
        kept = [
            literal
            for literal in self.literals
            if literal.always
            or (
                (literal.owner, literal.call) in needed
                if literal.kind == "scalar"
                else literal.owner in owners
            )
        ]
        return replace(self, literals=tuple(kept))

    def without(self, refusals: Mapping[str, str]) -> Coupling:
        """The same with some units groups refused, for the reasons given."""
        groups = tuple(
            replace(group, refusal=refusals.get(group.key, group.refusal)) for group in self.groups
        )
        return replace(self, groups=groups)


def trace(model: nn.Module, inputs: Inputs) -> Coupling:
    """The groups as id propagation finds them on the paths of evaluation and of training, not yet
    proved."""
    rows = inputs.rows(min(2, inputs.batch_size))
    path = training_path(_copy_for_trace(model), rows)
    try:
        return _trace_groups(model, rows, path)
    except ModelError as error:
        if not path.differs:
            raise
        said = (
            f"in training mode its operators cannot be followed ({error}); what runs in "
            "training alone may break"
        )
        return _trace_groups(model, rows, TrainingPath(False, said))


def _trace_groups(model: nn.Module, inputs: Inputs, path: TrainingPath) -> Coupling:
    model = _copy_for_trace(model)
    propagation = propagate(model, inputs.map(lambda tensor: tensor.clone()), path.differs)
    with on_cpu():
        coupling = _collect_groups(model, propagation)
        groups = with_stages(
            coupling.groups, _positions(propagation, kinds_by_layer(model), inputs.batch_size)
        )
        return replace(coupling, groups=groups, unfollowed=path.unfollowed)


def _positions(found: Propagation, kinds: Mapping[str, str], batch: int) -> dict[str, int]:
    """How many positions the output of each layer has, by the names that groups go by."""
    layers = {use.tensor: use.layer for use in found.ids.uses if use.layer}
    places: dict[str, int] = {}
    for tensor, shape in found.given.items():
        for layer in (owner_of(tensor), layer_of(tensor), layers.get(tensor, "")):
            places.setdefault(layer, positions_of(kinds.get(layer, "other"), shape, batch))
    return places


def _copy_for_trace(model: nn.Module) -> nn.Module:
    """A copy as it is traced: a forward may write into buffers, and attention hides its
    projections."""
    model = replace_tensors(model, lambda name, tensor: tensor.clone())
    Attention.take_over_all(model)
    return model


def _collect_groups(model: nn.Module, found: Propagation) -> Coupling:
    units = collect_units(found, kinds_by_layer(model))
    slots = tuple(_slots(found, units))
    literals = list(_literals(found, units))
    norms = {
        call: units.number(found.ids.roots(ids)) for call, ids in found.layers.norm_calls.items()
    }
    trained = {use.tensor for use in found.ids.uses} - found.evaluated if found.training else set()
    return Coupling(
        (*units.groups, *weights_groups(model, trained)),
        slots,
        units.members,
        units.total,
        {call: numbers for call, numbers in norms.items() if bool((numbers >= 0).any())},
        tuple(
            _narrow(
                units,
                [slot.units for slot in slots]
                + [part for literal in literals for part in literal.parts()],
            )
        ),
        tuple(literals),
        found.training,
        evaluation_norms=found.evaluation_norms,
    )


def _slots(found: Propagation, units: Units) -> Iterable[Slot]:
    """Where units sit; what both paths use alike, once."""
    seen: set[tuple[str, int, int, str, tuple[int, ...]]] = set()
    for use in found.ids.uses:
        slot = Slot(
            use.tensor, use.dim, use.groups, use.role, units.number(found.ids.roots(use.ids))
        )
        place = (slot.tensor, slot.dim, slot.groups, slot.role, tuple(slot.units.tolist()))
        if bool((slot.units >= 0).any()) and not (found.training and place in seen):
            seen.add(place)
            yield slot


def _narrow(units: Units, vectors: Iterable[Tensor]) -> Iterable[Tensor]:
    """The sets of units among `vectors` that hold no whole cell of a group, each once."""
    cell = torch.full((units.total,), -1)
    sizes: list[int] = []
    for members in units.members.values():
        for row in members:
            cell[row] = len(sizes)
            sizes.append(len(row))
    seen: set[tuple[int, ...]] = set()
    for vector in vectors:
        own = torch.unique(vector)
        if len(own) == 0 or own[0] < 0 or tuple(own.tolist()) in seen:
            continue
        seen.add(tuple(own.tolist()))
        counts = torch.bincount(cell[own], minlength=len(sizes))
        if not any(count == size for count, size in zip(counts.tolist(), sizes, strict=True)):
            yield own


def _literals(found: Propagation, units: Units) -> Iterable[Literal]:
    """The literals that meet units: their ids as unit numbers, and one unit along a whole place as
    none."""
    for literal in found.state.literals:
        numbers = {place: units.number(found.ids.roots(ids)) for place, ids in literal.ids.items()}
        if literal.kind == "sizes":
            numbers = {
                place: units if _several(units) else torch.full_like(units, -1)
                for place, units in numbers.items()
            }
        if literal.kind == "scalar" or any(
            bool((number >= 0).any()) for number in numbers.values()
        ):
            loose = any(units.loose & set(number.tolist()) for number in numbers.values())
            yield replace(literal, ids=numbers, always=literal.kind == "attribute" or loose)


def _several(numbers: Tensor) -> bool:
    return bool((numbers != numbers[:1]).any())


def weights_groups(model: nn.Module, trained: Collection[str] = ()) -> Iterable[Group]:
    """One group for the weight tensor of every convolution, linear, recurrent and attention layer.

    Refused are those among `trained`, which run in training only.
    """
    # a shared tensor goes by its first name
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: set[int] = set()
    for module in model.modules():
        kind = kind_of(module)
        if kind in ("embedding", "other"):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.dim() >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                name = first[id(parameter)]
                layer, refusal = layer_of(name), TRAINING_ONLY if name in trained else None
                yield Group(
                    layer, "weights", (layer,), (kind,), tuple(parameter.shape), refusal=refusal
                )


def layer_of(tensor: str) -> str:
    """The layer's name for its `weight`, the tensor's own name for anything else."""
    return tensor.removesuffix(".weight")


def tensor_of(model: nn.Module, layer: str) -> str:
    """The name of the tensor that a weights group named `layer` masks."""
    try:
        model.get_parameter(layer)
    except AttributeError:
        return f"{layer}.weight"
    return layer


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
