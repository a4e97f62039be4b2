"""What recurrent layers and cells do to channel ids.

Hidden unit i of a layer and direction is row i of every gate of weight_ih, weight_hh and both
biases, and column i of weight_hh. With a projection the hidden units end in the columns of
weight_hr, and its rows are the units handed on. All layers and directions of a module have one
hidden size: each of them loses the same count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from autoprune.pruning.tracing.channel_ids import Balance, Role, Use, spread, varying
from autoprune.pruning.tracing.state import State

__all__ = ["recurrent_rules"]

# torch keeps the gates of a cell in one matrix, below each other: a unit is a row of each
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@dataclass(frozen=True)
class _Part:
    """The parameters of one layer and direction, and the ids of its units."""

    weight_ih: Tensor
    weight_hh: Tensor
    biases: tuple[Tensor, ...]
    weight_hr: Tensor | None
    hidden: Tensor  # (H,)
    # (P,), the units handed on; (H,), the hidden ones, where nothing projects
    sent: Tensor


def recurrent_rules(state: State) -> dict[Any, Callable[..., None]]:
    """The rules for what recurrent modules call, packing and padding included."""
    rules = _Rules(state)
    table: dict[Any, Callable[..., None]] = {
        torch._VF._pack_padded_sequence: rules.pack,
        torch._VF._pad_packed_sequence: rules.pad_packed,
        torch._C._nn.pad_sequence: rules.pad,
    }
    for name, gates in _GATES.items():
        table[getattr(torch._VF, name)] = partial(rules.network, name, gates)
        table[getattr(torch._VF, f"{name}_cell")] = partial(rules.cell, name, gates)
    return table


class _Rules:
    def __init__(self, state: State) -> None:
        self.state, self.ids, self.labels = state, state.ids, state.labels

    def network(
        self, kind: str, gates: int, out: Sequence[Tensor], *args: Any, **kwargs: Any
    ) -> None:
        """`out` is the sequence and the last states, (layers * directions, batch, units), as of
        torch.lstm or gru.

        The arguments are (input, hx, parameters, has biases, layers, dropout, train, bidirectional,
        batch first) or, of a packed sequence, (data, batch sizes, hx, parameters, has biases,
        layers, dropout, train, bidirectional).
        """
        if len(args) < 8:
            return self._refuse(kind, out, (args, kwargs), "called with keyword arguments")
        packed = not isinstance(args[3], bool)
        input, (hx, parameters, biases, depth, _, _, both, *_) = (
            args[0],
            args[2:] if packed else args[1:],
        )
        if not self._whole(parameters):
            return self._refuse(kind, out, args, "with computed weights")
        directions = 2 if both else 1
        rows, count = depth * directions, len(parameters) // (depth * directions)
        parts = [
            self._part(gates, parameters[row * count : (row + 1) * count], biases)
            for row in range(rows)
        ]
        entering = self._entering(input, kind)
        for row in range(0, rows, directions):
            for part in parts[row : row + directions]:
                self._read_and_write(part, gates, entering)
            entering = torch.cat([part.sent for part in parts[row : row + directions]])
        self.labels.set(out[0], spread(entering, out[0].shape, -1))
        tables = (
            torch.stack([part.sent for part in parts]),
            torch.stack([part.hidden for part in parts]),
        )
        self._one_size(parts[0], *tables)
        # H, and c where there is one
        for state, last, table in zip(_tensors(hx), out[1:], tables, strict=False):
            self._starts_with(state, table)
            self.labels.set(last, table[:, None].expand(last.shape))

    def cell(
        self, kind: str, gates: int, out: Tensor | Sequence[Tensor], *args: Any, **kwargs: Any
    ) -> None:
        """One step: (input, hx, weight_ih, weight_hh, bias_ih, bias_hh)."""
        parameters = [tensor for tensor in args[2:] if tensor is not None]
        if kwargs or not self._whole(parameters):
            return self._refuse(
                f"{kind}_cell", _tensors(out), (args, kwargs), "with computed weights"
            )
        part = self._part(gates, parameters, len(parameters) > 2)
        self._read_and_write(part, gates, self._entering(args[0], f"{kind}_cell"))
        for state in _tensors(args[1]):
            self._starts_with(state, part.hidden[None])
        for state in _tensors(out):
            self.labels.set(state, spread(part.hidden, state.shape, -1))

    def pack(self, out: Sequence[Tensor], input: Tensor, *_: Any, **__: Any) -> None:
        """(time, batch, ...) or (batch, time, ...) -> (steps, ...): ids pass where they are the
        same at every step."""
        labels = self.labels.get(input)
        if {0, 1} & set(varying(labels)):
            return self.state.give_up(
                out[0], (input,), "packing of a sequence whose steps or rows are channels"
            )
        self.labels.set(out[0], labels[0, 0].expand(out[0].shape))

    def pad_packed(self, out: Sequence[Tensor], data: Tensor, *_: Any, **__: Any) -> None:
        """(steps, ...) -> (time, batch, ...) or (batch, time, ...)."""
        labels = self.labels.get(data)
        if 0 in varying(labels):
            return self.state.give_up(
                out[0], (data,), "padding of a sequence whose steps are channels"
            )
        self.labels.set(out[0], labels[0].expand(out[0].shape))

    def pad(self, out: Tensor, sequences: Sequence[Tensor], *_: Any, **__: Any) -> None:
        """Sequences of (time, ...) -> one tensor: their ids are united."""
        carried = [self.labels.get(sequence) for sequence in sequences]
        if any(0 in varying(labels) for labels in carried):
            return self.state.give_up(
                out, sequences, "padding of sequences whose steps are channels"
            )
        for labels in carried[1:]:
            self.ids.unite(carried[0][0], labels[0])
        self.labels.set(
            out, torch.stack([labels[0] for labels in carried]).amax(0).expand(out.shape)
        )

    def _whole(self, parameters: Iterable[Tensor]) -> bool:
        """Whether each is a parameter or buffer of the model itself, not a part of one."""
        return all(id(tensor) in self.state.names for tensor in parameters)

    def _entering(self, input: Tensor, kind: str) -> Tensor:
        """Ids along the last dimension; zeros where channels lie along others, and those may not be
        cut."""
        ids = self.state.read(input, -1, kind)
        if ids is None:
            self.ids.freeze(
                self.labels.get(input),
                f"{kind} over steps that are channels at {self.state.where()}",
            )
            return torch.zeros(input.shape[-1], dtype=torch.int64)
        return ids

    def _part(self, gates: int, parameters: Sequence[Tensor], biases: bool) -> _Part:
        weight_ih, weight_hh, *rest = parameters
        # Its rows are the units once for each gate
        place = (self.state.names[id(weight_hh)], -1)
        if place not in self.state.born:
            self.state.born[place] = self.ids.new(weight_hh.shape[0] // gates)
        hidden = self.state.born[place]
        weight_hr = rest[-1] if len(rest) % 2 else None
        sent = hidden if weight_hr is None else self.state.fresh(weight_hr, 0)
        return _Part(
            weight_ih, weight_hh, tuple(rest[:2] if biases else ()), weight_hr, hidden, sent
        )

    def _read_and_write(self, part: _Part, gates: int, entering: Tensor) -> None:
        """Tie the parameters of one layer and direction to what they read and to the units they
        give."""
        rows, name = part.hidden.repeat(gates), self._module(part)
        self._tie(part.weight_ih, 1, entering, "consume")
        self._tie(part.weight_ih, 0, rows, "produce", name)
        self._tie(part.weight_hh, 1, part.sent, "consume")
        for tensor in (part.weight_hh, *part.biases):
            self._tie(tensor, 0, rows, "carry")
        if part.weight_hr is not None:
            self._tie(part.weight_hr, 1, part.hidden, "consume")
            self._tie(part.weight_hr, 0, part.sent, "produce")
            # torch takes a state as wide as the hidden units for one without a projection
            least = len(part.sent) + 1
            self.ids.freeze(
                part.hidden[:least], f"hidden size of {name} must stay above its projection's"
            )

    def _tie(
        self, tensor: Tensor | str, dim: int, ids: Tensor, role: Role, layer: str = ""
    ) -> None:
        name = tensor if isinstance(tensor, str) else self.state.names[id(tensor)]
        self.ids.uses.append(Use(name, dim, ids.clone(), role, "recurrent", layer=layer))

    def _module(self, part: _Part) -> str:
        """The name of the module that owns the parameters; a bare module's goes by its first
        weight."""
        name = self.state.names[id(part.weight_ih)]
        return name.rpartition(".")[0] or name

    def _one_size(self, part: _Part, sent: Tensor, hidden: Tensor) -> None:
        """Every layer and direction, a row of each table, loses the same count."""
        for table in (hidden,) if part.weight_hr is None else (hidden, sent):
            if len(table) > 1:
                why = (
                    f"{self._module(part)} has one size for its {len(table)} layers and directions"
                )
                self.labels.stacks.append(table)
                self.ids.balances.append(Balance(table.flatten(), len(table), why))

    def _starts_with(self, state: Tensor, table: Tensor) -> None:
        """An initial state, (rows, batch, units), is cut with the units of `table`, (rows,
        units)."""
        labels = self.labels.get(state).reshape(len(table), -1, table.shape[1])
        if 1 in varying(labels):
            why = f"initial state whose rows are channels at {self.state.where()}"
            self.ids.freeze(torch.cat([labels.flatten(), table.flatten()]), why)
        self.ids.unite(labels, table[:, None])
        name, places = self._origin(state)
        if places is None:
            return
        shape, units = self.state.shapes[name], table.shape[1]
        columns = places.reshape(-1, units) % shape[-1]
        if shape[-1] == units and bool((columns == torch.arange(units)).all()):
            # It has one last dimension for all its rows
            self.ids.unite(table[:1], table)
            self._tie(name, len(shape) - 1, table[0], "carry")
        else:
            self.state.give_up(
                state, (state,), "initial state read out of a parameter in an order no rule covers"
            )
            self.ids.freeze(table, self.state.opaque[name])

    def _origin(self, state: Tensor) -> tuple[str, Tensor | None]:
        """The parameter or buffer that a state is, or was moved out of, and the flat places it
        shows of it."""
        name = self.state.names.get(id(state))
        if name is not None:
            return name, torch.arange(state.numel())
        position: tuple[str, Tensor | None] = self.state.positions.get(state, ("", None))  # type: ignore[no-untyped-call]
        return position

    def _refuse(self, kind: str, out: Iterable[Tensor], args: Any, why: str) -> None:
        inputs = _tensors(args)
        for tensor in out:
            self.state.give_up(tensor, inputs, f"{kind} {why}")
        self.state.refuse(self.state.where(), next(iter(out)).shape[-1], f"{kind} {why}")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
