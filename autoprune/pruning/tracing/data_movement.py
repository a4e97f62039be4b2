"""What data movement does to channel ids: the operator is run on the ids themselves.

Exact for finding which channel is where; but whether the same code picks the same channels after a
cut depends on bounds written into it. Even parts become a balance constraint, other parts are
rebound (`size_literals.py`) where they can be; the proof of the group then confirms or refuses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from autoprune.pruning.tracing.channel_ids import match_dims, varying, vector_along
from autoprune.pruning.tracing.state import State

__all__ = ["COPIES", "MOVES", "PARAMETER_MOVES", "RESHAPES", "argument", "move"]

# The same elements at the same places
COPIES = {"clone", "contiguous", "detach", "alias", "lift_fresh", "_to_copy", "_conj", "positive"}
# The same elements in the same order, under another shape
RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
# Whole dimensions change places or are repeated: every channel is still there
_WHOLE = {
    "permute",
    "transpose",
    "t",
    "expand",
    "unsqueeze",
    "squeeze",
    "cat",
    "stack",
    "repeat",
    "movedim",
    "flip",
}
# A part of one dimension goes on: its bounds may be written into the code
_PARTS = {
    "slice",
    "narrow",
    "split",
    "split_with_sizes",
    "unsafe_split",
    "unsafe_chunk",
    "chunk",
    "select",
    "unbind",
}
# They deal channels to groups: each group must lose as many
_SHUFFLES = {"channel_shuffle", "native_channel_shuffle"}
# They pick elements one by one, in an order that a cut may break
_PICKS = {
    "index_select",
    "gather",
    "index",
    "roll",
    "unfold",
    "im2col",
    "pixel_shuffle",
    "pixel_unshuffle",
    "take_along_dim",
}
# After these it is still known which entry of the parameter lies where; cat and stack join several
# tensors
PARAMETER_MOVES = COPIES | RESHAPES | _WHOLE - {"cat", "stack"} | _PARTS | {"index", "index_select"}
MOVES = COPIES | RESHAPES | _WHOLE | _PARTS | _SHUFFLES | _PICKS | {"constant_pad_nd"}


def argument(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    """What an operator was given for the argument `name`, its default, or None where it has no such
    argument."""
    for place, expected in enumerate(func._schema.arguments):
        if expected.name == name:
            return (
                kwargs[name]
                if name in kwargs
                else args[place]
                if place < len(args)
                else expected.default_value
            )
    return None


def move(state: State, base: str, func: Any, outs: list[Tensor], args: Any, kwargs: Any) -> None:
    """Label the outputs of a movement operator and note what it demands of a cut."""
    source = (
        state.labels.get(args[0])
        if isinstance(args[0], Tensor)
        else torch.zeros((), dtype=torch.int64)
    )
    if base in COPIES:
        results = [source]
    elif base in RESHAPES:
        results = [source.reshape(outs[0].shape)]
        _check_split(state, results[0], source.shape)
    elif base == "constant_pad_nd":
        results = [_pad_labels(state, source, args[1])]
    else:
        if base in _PARTS:
            _check_part(state, base, source, outs[0], args)
        elif base in _SHUFFLES:
            _check_shuffle(state, source, args)
        elif base in _PICKS and varying(source):
            _check_pick(state, base, source, outs[0], args)
        out = _run_on_labels(state, base, func, args, kwargs)
        results = list(out) if isinstance(out, (list, tuple)) else [out]
    for tensor, labels in zip(outs, results, strict=True):
        state.labels.set(tensor, labels.expand(tensor.shape))


def _run_on_labels(state: State, base: str, func: Any, args: Any, kwargs: Any) -> Any:
    """The operator on the ids of its data; index tensors stay what they are."""

    def labels(tensor: Tensor) -> Tensor:
        # A tensor of its own: an in-place move would change its shape
        return state.labels.get(tensor).detach()

    if base in _PICKS:
        for index in tree_leaves((args[1:], kwargs)):
            if isinstance(index, Tensor) and varying(state.labels.get(index)):
                for tensor in (args[0], index):
                    state.ids.freeze(
                        state.labels.get(tensor), f"{base} by channels at {state.where()}"
                    )
        args, kwargs = tree_map_only(
            Tensor, lambda t: t if t is args[0] else t.cpu(), (args, kwargs)
        )
        # im2col has no kernel for integers; ids are exact in double
        if base in ("im2col", "pixel_shuffle", "pixel_unshuffle"):
            return func(labels(args[0]).double(), *args[1:], **kwargs).long()
        return func(labels(args[0]), *args[1:], **kwargs)
    moved_args, moved_kwargs = tree_map_only(Tensor, labels, (args, kwargs))
    return func(*moved_args, **moved_kwargs)


def _part_dim(base: str, args: Any) -> int:
    dim = (
        args[2]
        if base in ("split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "chunk")
        and len(args) > 2
        else None
    )
    if dim is None and base in ("slice", "narrow", "select", "unbind") and len(args) > 1:
        dim = args[1]
    return int(dim or 0)


def _check_part(state: State, base: str, source: Tensor, out: Tensor, args: Any) -> None:
    dim = _part_dim(base, args) % source.dim()
    if dim not in state.labels.channels(source):
        return
    size = source.shape[dim]
    length = 1 if base in ("select", "unbind") else out.shape[dim]
    if length == size and base not in ("select", "unbind"):
        return
    why = f"{base} over channels at {state.where()}"
    if base in ("select", "unbind"):
        return state.constraints.one_unit(source, dim, why)
    step = args[4] if base == "slice" and len(args) > 4 else 1
    even = length > 1 and size % length == 0
    if base == "slice":
        even = even and (args[2] or 0) % size % length == 0
    if base == "split_with_sizes":
        even = even and len(set(args[1])) == 1
    if step != 1:
        return state.constraints.one_unit(source, dim, why)
    state.constraints.part(source, dim, size // length if even else 0, state.rebindable, why)


def _check_shuffle(state: State, source: Tensor, args: Any) -> None:
    ids = vector_along(source, 1)
    why = f"channel shuffle at {state.where()}"
    if ids is None:
        state.ids.freeze(source, why)
    else:
        table = ids.view(int(args[1]), -1)
        state.ids.unite_along(table, (0,), why)


def _check_pick(state: State, base: str, source: Tensor, out: Tensor, args: Any) -> None:
    """Freeze unless every dimension with channels passes untouched (same size, indexed whole)."""
    dims = (
        {int(arg) % source.dim() for arg in args[1:] if isinstance(arg, int)}
        if base in ("index_select", "gather", "unfold")
        else set()
    )
    if base == "roll":
        dims = {dim % source.dim() for dim in (args[2] if len(args) > 2 else range(source.dim()))}
    if base == "index":
        dims = {dim for dim, index in enumerate(args[1]) if index is not None}
    if base == "im2col":
        dims = set(range(source.dim()))
    for dim in sorted(dims):
        if dim in state.labels.channels(source):
            state.constraints.one_unit(source, dim, f"{base} over channels at {state.where()}")


def _check_split(state: State, labels: Tensor, before: torch.Size) -> None:
    """Dimensions that a view lays channels out in must stay a grid; `labels` are the view's."""
    channels = state.labels.channels(labels)
    rows = set(varying(labels)) - set(channels)
    for _, new in match_dims(before, labels.shape):
        if len([dim for dim in new if labels.shape[dim] > 1]) > 1 and any(
            dim in channels for dim in new
        ):
            axes = [dim for dim in new if dim not in rows]
            state.constraints.grid(labels, axes, f"view that splits channels at {state.where()}")


def _pad_labels(state: State, source: Tensor, pads: list[int]) -> Tensor:
    """Ids after zero padding: a border beside channels is a frozen id of its own, any other its
    neighbour's."""
    channels = varying(source)
    for place in range(len(pads) // 2):
        dim = source.dim() - 1 - place
        before, after = pads[2 * place], pads[2 * place + 1]
        if before < 0 or after < 0:
            if dim in channels:
                state.ids.freeze(source, f"crop of channels at {state.where()}")
            source = source.narrow(
                dim, max(-before, 0), source.shape[dim] - max(-before, 0) - max(-after, 0)
            )
        edge = (
            torch.tensor(
                state.ids.new_frozen(f"joined with zero padding of channels at {state.where()}")
            )
            if dim in channels
            else None
        )
        parts = [source]
        for count, front in ((max(before, 0), True), (max(after, 0), False)):
            if count:
                shape = [*source.shape[:dim], count, *source.shape[dim + 1 :]]
                border = (
                    edge.expand(shape)
                    if edge is not None
                    else source.narrow(dim, 0, 1).expand(shape)
                )
                parts = [border, *parts] if front else [*parts, border]
        source = torch.cat(parts, dim) if len(parts) > 1 else source
    return source
