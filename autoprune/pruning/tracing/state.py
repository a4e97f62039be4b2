"""The state of a trace, on which all rules act: channel ids, where parameters meet them, the module
that is running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from autoprune.pruning.surgery.forward import on_cpu
from autoprune.pruning.surgery.parametrizations import Reparametrised
from autoprune.pruning.surgery.shrink import named_tensors
from autoprune.pruning.tracing.channel_ids import Ids, Labels, Use, small, varying
from autoprune.pruning.tracing.constraints import Constraints
from autoprune.pruning.tracing.size_literals import Literal

__all__ = ["Running", "State", "ties"]


@dataclass
class Running:
    """A module that is running, and how many of its own calls with literals it has made."""

    name: str
    calls: int = 0


class State:
    """The ids of one forward pass, and where the parameters of the model meet them."""

    def __init__(self, model: nn.Module) -> None:
        self.ids, self.labels = Ids(), Labels()
        self.constraints = Constraints(self.ids)
        self.path: list[Running] = []
        # Whether the bounds of the call that is running can be bound anew
        self.rebindable = False
        self.quiet = 0  # more than 0: operators do not count as the model's
        self.literals: list[Literal] = []
        self.shapes = {name: tensor.shape for name, tensor in named_tensors(model)}
        self.names = {id(tensor): name for name, tensor in named_tensors(model)}
        # N-th call of a norm or statistic -> ids of its channels
        self.norm_calls: dict[int, Tensor] = {}
        self.norm_count = 0
        # Tensor moved out of a parameter -> (name, flat positions in it)
        self.positions = WeakIdKeyDictionary()
        # Parameter -> why what reads it is covered by no rule
        self.opaque: dict[str, str] = {}
        # Layer that no rule covers -> (units, why)
        self.refused: dict[str, tuple[int, str]] = {}
        # Parameter, dimension -> ids of its channels, at every use
        self.born: dict[tuple[str, int], Tensor] = {}

    def where(self) -> str:
        """The module that is running."""
        return self.path[-1].name or "the model" if self.path else "the model"

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Operators inside do not count as the model's; their new tensors are on the CPU, as all
        ids are."""
        self.quiet += 1
        try:
            with on_cpu():
                yield
        finally:
            self.quiet -= 1

    def position(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        """The parameter or buffer that a tensor is, or was moved out of, and the flat places it
        shows of it."""
        name = self.names.get(id(tensor))
        if name is not None:
            return name, torch.arange(tensor.numel()).view(tensor.shape)
        position: tuple[str, Tensor] | None = self.positions.get(tensor)  # type: ignore[no-untyped-call]
        return position

    def parameter_name(self, tensor: Tensor) -> str | None:
        """The parameter or buffer that a tensor is, or was moved out of."""
        moved: tuple[str, Tensor] | None = self.positions.get(tensor)  # type: ignore[no-untyped-call]
        return self.names.get(id(tensor)) or (moved[0] if moved is not None else None)

    def show(self, out: Tensor, shown: Tensor) -> None:
        """`out` is computed from a parameter entry by entry: it is tied where that is."""
        place = self.position(shown)
        if place is not None:
            self.positions[out] = place

    def use(
        self,
        tensor: Tensor | None,
        dim: int,
        ids: Tensor,
        role: str,
        kind: str = "other",
        groups: int = 1,
    ) -> None:
        """Tie a dimension of a parameter or buffer, or of what was moved out of one, to ids."""
        if tensor is not None:
            name, dim, places = self.place(tensor, dim)
            if places is not None:
                ids = torch.full((self.shapes[name][dim],), -1).index_copy(0, places, ids)
            self.ids.uses.append(Use(name, dim, ids.clone(), role, kind, groups))  # type: ignore[arg-type]

    def place(self, tensor: Tensor, dim: int) -> tuple[str, int, Tensor | None]:
        """The parameter that a tensor shows, which of its dimensions `dim` is, and the entries
        shown; None for all."""
        name = self.names.get(id(tensor))
        if name is not None:
            return name, dim, None
        name, places = self.positions[tensor]
        line = places[
            tuple(slice(None) if d == dim % places.dim() else 0 for d in range(places.dim()))
        ]
        for own in reversed(range(len(self.shapes[name]))):
            index, line = line % self.shapes[name][own], line // self.shapes[name][own]
            if len(index.unique()) == tensor.shape[dim] > 1:
                return name, own, index
        return name, 0, torch.zeros(tensor.shape[dim], dtype=torch.int64)

    def give_up(self, out: Tensor, inputs: Sequence[Tensor | None], why: str) -> None:
        """Freeze the ids and the parameters that reach this call, and whatever its output is joined
        with."""
        why = f"{why} at {self.where()}"
        for tensor in inputs:
            if tensor is None:
                continue
            if tensor in self.labels:
                self.ids.freeze(self.labels.get(tensor), why)
            name = self.names.get(id(tensor)) or self.positions.get(tensor, ("", None))[0]  # type: ignore[no-untyped-call]
            if name:
                self.opaque.setdefault(name, why)
        if out.is_floating_point():
            self.labels.set(out, torch.tensor(self.ids.new_frozen(why)).expand(out.shape))

    def refuse(self, layer: str, units: int, why: str) -> None:
        """Name a layer whose units cannot be cut, so that it stands in the table of groups."""
        self.refused.setdefault(layer, (units, f"{why} at {self.where()}"))

    def give_up_layer(self, out: Tensor, input: Tensor, weight: Tensor, dim: int, why: str) -> None:
        """As `give_up`, for a layer that would have started fresh ids on dimension `dim` of its
        weight."""
        self.give_up(out, (input, weight), why)
        name = self.names.get(id(weight), "")
        self.refuse(name.removesuffix(".weight") or self.where(), weight.shape[dim], why)

    def fresh(self, weight: Tensor, dim: int) -> Tensor:
        """Ids of the channels that a parameter gives; the same at every use of it."""
        name, own, places = self.place(weight, dim)
        if (name, own) not in self.born:
            self.born[name, own] = self.ids.new(self.shapes[name][own])
        return self.born[name, own] if places is None else self.born[name, own][places]

    def read(self, input: Tensor, dim: int, what: str) -> Tensor | None:
        """Ids along the dimension that a layer contracts; what shares a place on it is one unit.

        None where channels lie along other dimensions only.
        """
        labels = self.labels.get(input)
        dim %= labels.dim()
        channels = varying(labels)
        if channels and dim not in channels:
            return None
        others = [other for other in channels if other != dim]
        if others:
            self.ids.unite_along(
                labels, others, f"{what} over a dimension mixed with others at {self.where()}"
            )
        (table,) = small(labels)
        vector = (
            table.amax([other for other in range(table.dim()) if other != dim])
            if table.dim() > 1
            else table
        )
        return vector.expand(labels.shape[dim]).clone()

    def are_parameters(self, *tensors: Tensor | None) -> bool:
        """Whether every tensor is a parameter or buffer of the model itself."""
        return all(
            tensor is None or id(tensor) in self.names or tensor in self.positions
            for tensor in tensors
        )


def ties(each: Reparametrised, uses: Sequence[Use], shape: torch.Size) -> Iterator[Use]:
    """What the uses of a direction mean for its scale and right vector."""
    for use in uses:
        if use.tensor != each.direction or use.groups > 1:
            continue
        if use.dim == each.dim:
            yield Use(each.scale, 0 if each.right else use.dim, use.ids, "carry")
        elif each.right is not None:
            rest = [size for dim, size in enumerate(shape) if dim != each.dim]
            place = use.dim - (use.dim > each.dim)
            view = [-1 if dim == place else 1 for dim in range(len(rest))]
            yield Use(each.right, 0, use.ids.view(view).expand(rest).flatten(), "carry")
