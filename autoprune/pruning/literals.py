"""Widths written into the code of a forward: noted during the trace, bound anew on the cut model.

`view(b, n, 3, 12, 64)`, `x[:, :24]`, `split([8, 16])` or `chunk(2)` mean a width of the dense model. Where the code
does not follow a cut by itself, the module's forward is wrapped: its n-th such call gets the cut model's widths.
Calls are counted over the module's own code, not over that of the modules it calls.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from autoprune.pruning.ids import Labels, varying

__all__ = ["ATTRIBUTE", "Bindings", "Call", "Literal", "bind", "bindings_of", "read"]

Change = dict[str, Any]
Bindings = dict[str, dict[int, Change]]  # module -> n-th call of its own -> what is bound anew

ATTRIBUTE = 0  # in place of a call: an attribute that says how wide a module without parameters is
_SIZES = {"view", "reshape", "expand", "unflatten"}
_PARTS = {"split", "chunk"}
_NORMS = {"layer_norm", "rms_norm"}
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
_SCALED = {"mul", "multiply", "__mul__", "__rmul__", "div", "divide", "true_divide", "__truediv__"}


@dataclass(frozen=True)
class Literal:
    """The `call`-th call of a module's own code: where channels meet numbers in its arguments.

    `ids` maps a place (an output dimension, a slice, 0) to the ids along it; `fixed` holds what else a change needs.
    """

    owner: str
    call: int
    kind: str
    ids: Mapping[int, Tensor]
    fixed: Any = None
    always: bool = False  # the code as it is does not fit every admissible cut

    def parts(self) -> list[Tensor]:
        """The ids of each part that is taken of a dimension."""
        if self.kind == "parts":
            return list(torch.split(self.ids[0], self.fixed["sizes"]))
        return [ids[slice(*self.fixed[place])] for place, ids in self.ids.items()] if self.kind == "bounds" else []

    def change(self, count: Callable[[Tensor, int, int], int]) -> Change:
        """The call's new numbers; `count(ids, start, stop)` is how many of a range of ids are kept."""
        if self.kind == "scalar":
            return {"scalar": self.fixed}
        if self.kind == "attribute":
            return {"attribute": self.fixed, "value": count(self.ids[0], 0, len(self.ids[0]))}
        if self.kind == "parts":
            sizes, start = [], 0
            for size in self.fixed["sizes"]:
                sizes.append(count(self.ids[0], start, start + size))
                start += size
            return {"parts": sizes, "dim": self.fixed["dim"]}
        if self.kind == "bounds":
            return {
                "bounds": {
                    place: [count(ids, 0, bound) if bound is not None else None for bound in self.fixed[place]]
                    for place, ids in self.ids.items()
                }
            }
        merged = self.fixed or ()
        return {
            self.kind: {place: -1 if place in merged else count(ids, 0, len(ids)) for place, ids in self.ids.items()}
        }


@dataclass
class Call:
    """One call with numbers in it, as the trace sees it."""

    kind: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rebindable: bool = False
    slices: dict[int, int] = field(default_factory=dict)  # place in an index -> dimension

    def note(self, out: Any, labels: Labels, owner: str, number: int) -> Literal | None:
        """What of it depends on channels; None where nothing does."""
        source = labels.get(self.args[0]) if isinstance(self.args[0], Tensor) else None
        if self.kind == "scalar":
            tensor, value = self.args[:2] if isinstance(self.args[0], Tensor) else self.args[1::-1]
            return Literal(owner, number, "scalar", {}, value) if tensor in labels else None
        if source is None or self.args[0] not in labels:
            return None
        channels = labels.channels(source)
        if self.kind == "shape":
            return Literal(owner, number, "shape", {0: _line(source, source.dim() - 1)})
        if self.kind == "bounds":
            found = {place: dim for place, dim in self.slices.items() if dim in channels}
            bounds = {place: _bounds(self.args[1], place, source.shape[dim]) for place, dim in found.items()}
            lines = {place: _line(source, dim) for place, dim in found.items()}
            return Literal(owner, number, "bounds", lines, bounds) if found else None
        if self.kind == "parts":
            dim = int(self.kwargs.get("dim", self.args[2] if len(self.args) > 2 else 0)) % source.dim()
            fixed = {"sizes": [part.shape[dim] for part in out], "dim": dim}
            return Literal(owner, number, "parts", {0: _line(source, dim)}, fixed) if dim in channels else None
        return self._sizes(out, source, labels, owner, number)

    def _sizes(self, out: Tensor, source: Tensor, held: Labels, owner: str, number: int) -> Literal | None:
        from autoprune.pruning.movement import matched

        labels = held.get(out)
        channels, before = held.channels(labels), varying(source)
        expanded = len(self.args) > 0 and self.kind == "expand"
        runs = [([], [dim]) for dim in range(out.dim())] if expanded else matched(source.shape, out.shape)
        lines: dict[int, Tensor] = {}
        merged: list[int] = []  # dimensions that hold channels together with other things
        for old, new in runs:
            wide = [dim for dim in new if out.shape[dim] > 1]
            if not any(dim in channels for dim in new):
                continue
            mixed = any(dim not in before and source.shape[dim] > 1 for dim in old)
            lines |= {dim: _line(labels, dim) for dim in wide if dim in channels or not mixed}
            merged += wide if mixed and len(wide) == 1 else []
        return Literal(owner, number, "sizes", lines, tuple(merged)) if lines else None


def read(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The call as one that may hold widths, or None for any other; which calls are counted depends on nothing else."""
    name = getattr(func, "__name__", "")
    if name in _SIZES:
        return Call("expand" if name == "expand" else "sizes", args, kwargs, True)
    if name in _PARTS:
        return Call("parts", args, kwargs, True)
    if name in _NORMS:
        return Call("shape", args, kwargs, True)
    if name == "__getitem__":
        slices = _slices(args[0], args[1])
        return Call("bounds", args, kwargs, slices is not None, slices or {})
    if name in _SCALED and len(args) == 2 and any(isinstance(arg, _NUMBERS) for arg in args):
        return Call("scalar", args, kwargs)
    return None


def bind(model: nn.Module, bindings: Bindings, noted: set[tuple[str, int]] | None = None) -> nn.Module:
    """`model` itself, the forwards of the named modules wrapped; `noted` collects the calls that needed it."""
    for name, module in list(model.named_modules()) if bindings else ():
        if bindings.get(name):
            module.forward = _Bound(module, name, bindings[name], noted)
            if ATTRIBUTE in bindings[name]:
                setattr(module, bindings[name][ATTRIBUTE]["attribute"], bindings[name][ATTRIBUTE]["value"])
    return model


def bindings_of(model: nn.Module) -> Bindings:
    """What is bound anew in a cut model, by module."""
    return {
        name: module.forward.changes for name, module in model.named_modules() if isinstance(module.forward, _Bound)
    }


class _Bound:
    """A module's forward under new numbers."""

    def __init__(
        self, module: nn.Module, name: str, changes: dict[int, Change], noted: set[tuple[str, int]] | None
    ) -> None:
        self.module, self.name, self.changes, self.noted = module, name, changes, noted
        functools.update_wrapper(self, type(module).forward, updated=())
        self.__wrapped__ = functools.partial(type(module).forward, module)  # signature without self

    @property
    def __code__(self) -> Any:
        """Of the forward that is wrapped: torch.export reads argument names there."""
        return type(self.module).forward.__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if set(self.changes) == {ATTRIBUTE}:
            return type(self.module).forward(self.module, *args, **kwargs)
        with _Rebinding(self):
            return type(self.module).forward(self.module, *args, **kwargs)


class _Rebinding(TorchFunctionMode):
    def __init__(self, bound: _Bound) -> None:
        super().__init__()
        self.bound, self.calls = bound, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if read(func, args, kwargs) is not None and _running() is self.bound.module:
            self.calls += 1
            change = self.bound.changes.get(self.calls)
            if change is not None:
                new = _rebound(func, args, kwargs, change)
                if self.bound.noted is not None and _differs(new, (func, args, kwargs)):
                    self.bound.noted.add((self.bound.name, self.calls))
                func, args, kwargs = new
        return func(*args, **kwargs)


def _running() -> Any:
    """The module whose own code makes the current call."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__:
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _rebound(func: Any, args: Any, kwargs: Any, change: Change) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    if "scalar" in change:
        tensor = args[0] if isinstance(args[0], Tensor) else args[1]
        other = change["scalar"]
        return func, (tensor, other) if tensor is args[0] else (other, tensor), kwargs
    if "parts" in change:
        return torch.split, (args[0], change["parts"]), {"dim": change["dim"]}
    if "shape" in change:
        return func, (args[0], (change["shape"][0],), *args[2:]), kwargs
    if "bounds" in change:
        index = list(args[1]) if isinstance(args[1], tuple) else [args[1]]
        for place, (start, stop) in change["bounds"].items():
            index[place] = slice(start, stop)
        return func, (args[0], tuple(index)), kwargs
    return _resized(func, args, kwargs, change["sizes"])


def _resized(
    func: Any, args: Any, kwargs: Any, sizes: Mapping[int, int]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The sizes of a view, each where it is not -1; -1 is written where channels are merged with other dimensions."""
    offset = 0
    if func.__name__ == "unflatten":
        dim, given = args[1], list(args[2])
        offset = dim % args[0].dim()
    else:
        given = list(args[1:]) if len(args) > 1 else list(kwargs.get("size", kwargs.get("shape", ())))
        given = list(given[0]) if len(given) == 1 and isinstance(given[0], Sequence) else given
    for place, size in sizes.items():
        place -= offset
        if 0 <= place < len(given) and given[place] != -1 and (size != -1 or -1 not in given):
            given[place] = size
    if func.__name__ == "unflatten":
        return func, (args[0], args[1], given), kwargs
    return func, (args[0], given), {}


def _differs(new: Any, old: Any) -> bool:
    """Whether the code, as it is, asks for other numbers."""
    if "dim" in new[2] and new[0] is torch.split:
        try:
            return bool([part.shape[new[2]["dim"]] for part in old[0](*old[1], **old[2])] != new[1][1])
        except RuntimeError:  # the code's parts do not add up any more
            return True
    flat = [tree_leaves((*call[1][1:], *call[2].values())) for call in (new, old)]
    pairs = [(a, b) for a, b in zip(*flat, strict=True) if not isinstance(a, Tensor)]
    if (-1, True) in [
        (a, b != -1) for a, b in pairs
    ]:  # merged dimensions: is the number that the code has for them right?
        return bool(math.prod(b for _, b in pairs) != new[1][0].numel())
    return any(a != b for a, b in pairs)


def _line(labels: Tensor, dim: int) -> Tensor:
    """Ids along `dim` at the first place of the others."""
    return labels[tuple(slice(None) if d == dim else 0 for d in range(labels.dim()))].clone()


def _slices(tensor: Tensor, index: Any) -> dict[int, int] | None:
    """Place in an index -> dimension of its slices with a step of one; None for an index that is not simple."""
    entries = index if isinstance(index, tuple) else (index,)
    taken = sum(1 for entry in entries if isinstance(entry, (int, slice)))
    if any(not (entry is None or entry is Ellipsis or isinstance(entry, (int, slice))) for entry in entries):
        return None
    found, dim = {}, 0
    for place, entry in enumerate(entries):
        if isinstance(entry, slice) and entry.step in (None, 1):
            found[place] = dim
        dim += tensor.dim() - taken if entry is Ellipsis else 0 if entry is None else 1
    return found


def _bounds(index: Any, place: int, size: int) -> list[int | None]:
    entry = index[place] if isinstance(index, tuple) else index
    start, stop, _ = entry.indices(size)
    return [start if entry.start is not None else None, stop if entry.stop is not None else None]
