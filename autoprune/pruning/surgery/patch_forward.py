"""Give the code of a cut model's forwards the widths it has, where it was written for the dense
ones."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from autoprune.errors import ModelError
from autoprune.pruning.surgery.sized_calls import ATTRIBUTE, Bindings, Change, read

__all__ = ["bind", "bindings_of"]


def bind(
    model: nn.Module, bindings: Bindings, noted: set[tuple[str, int]] | None = None
) -> nn.Module:
    """`model` itself, the forwards of the named modules wrapped; `noted` collects the calls that
    needed it.

    What was bound before stays, but for the numbers that `bindings` has, too.
    """
    for name, module in list(model.named_modules()) if bindings else ():
        if bindings.get(name):
            module.forward = _Bound(module, name, bindings[name], noted)
            if ATTRIBUTE in bindings[name]:
                setattr(
                    module,
                    bindings[name][ATTRIBUTE]["attribute"],
                    bindings[name][ATTRIBUTE]["value"],
                )
    return model


def bindings_of(model: nn.Module) -> Bindings:
    """What is bound anew in a cut model, by module."""
    return {
        name: module.forward.changes
        for name, module in model.named_modules()
        if isinstance(module.forward, _Bound)
    }


class _Bound:
    """A module's forward under new numbers: its class's, or the one that was set on the module."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        changes: dict[int, Change],
        noted: set[tuple[str, int]] | None,
    ) -> None:
        given = vars(module).get("forward")
        self.module, self.name, self.noted = module, name, noted
        self.own: Callable[..., Any] | None = given
        self.earlier: dict[int, Change] = {}
        if isinstance(given, _Bound):
            self.own, self.earlier = given.own, given.changes
        self.changes: dict[int, Change] = self.earlier | {
            call: _merge_changes(self.earlier.get(call, {}), change)
            for call, change in changes.items()
        }
        functools.update_wrapper(self, self._defined_forward(), updated=())
        self.__wrapped__ = self._forward()  # signature without self

    @property
    def __code__(self) -> Any:
        """Of the forward that is wrapped: torch.export reads argument names there."""
        named = self._defined_forward()
        return (named.func if isinstance(named, functools.partial) else named).__code__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if set(self.changes) == {ATTRIBUTE}:
            return self._forward()(*args, **kwargs)
        with _Rebinding(self):
            return self._forward()(*args, **kwargs)

    def _defined_forward(self) -> Any:
        """The forward as it was defined."""
        return type(self.module).forward if self.own is None else self.own

    def _forward(self) -> Callable[..., Any]:
        """The forward, without self; asked for anew, because a copy has another module."""
        return (
            functools.partial(type(self.module).forward, self.module)
            if self.own is None
            else self.own
        )


class _Rebinding(TorchFunctionMode):
    def __init__(self, bound: _Bound) -> None:
        super().__init__()
        self.bound, self.calls = bound, 0
        # On a path with numbers of its own
        self.trains = bound.module.training and min(bound.changes) < ATTRIBUTE

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = read(func, args, kwargs)
        if call is not None and _running() is self.bound.module:
            self.calls += -1 if self.trains else 1
            change = self.bound.changes.get(self.calls)
            if change and ("sizes" if call.kind == "expand" else call.kind) not in change:
                self._strange()
            elif change:
                new = _rebound(func, args, kwargs, change)
                if self.bound.noted is not None and _differs(
                    new, self._before(func, args, kwargs, change)
                ):
                    self.bound.noted.add((self.bound.name, self.calls))
                func, args, kwargs = new
        return func(*args, **kwargs)

    def _before(self, func: Any, args: Any, kwargs: Any, change: Change) -> Any:
        """The call with the numbers that an earlier cut gave it, or as it is in the code."""
        earlier = self.bound.earlier.get(self.calls, {})
        return (
            _rebound(func, args, kwargs, earlier)
            if earlier.keys() == change.keys()
            else (func, args, kwargs)
        )

    def _strange(self) -> None:
        """Another call than the trace saw: the forward goes other ways for other data, and the
        number is not known."""
        if self.bound.noted is None:
            raise ModelError(
                f"{self.bound.name or 'the model'} makes other calls than when its widths were "
                "noted: its forward "
                "depends on its data in a way that a cut model cannot follow"
            )
        self.bound.noted.add((self.bound.name, self.calls))


def _running() -> Any:
    """The module whose own code makes the current call."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code is nn.Module._call_impl.__code__:
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _merge_changes(old: Change, new: Change) -> Change:
    """`new`, and what `old` has of the same kind at other places."""
    return {
        kind: old.get(kind, {}) | changes if isinstance(changes, dict) else changes
        for kind, changes in new.items()
    }


def _rebound(
    func: Any, args: Any, kwargs: Any, change: Change
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
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
    return _resize_call(func, args, kwargs, change["sizes"])


def _resize_call(
    func: Any, args: Any, kwargs: Any, sizes: Mapping[int, int]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The sizes of a view, each where it is not -1; -1 is written where channels are merged with
    other dimensions."""
    offset = 0
    if func.__name__ == "unflatten":
        dim, given = args[1], list(args[2])
        offset = dim % args[0].dim()
    else:
        given = (
            list(args[1:]) if len(args) > 1 else list(kwargs.get("size", kwargs.get("shape", ())))
        )
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
            return bool(
                [part.shape[new[2]["dim"]] for part in old[0](*old[1], **old[2])] != new[1][1]
            )
        except RuntimeError:  # the code's parts do not add up any more
            return True
    flat = [tree_leaves((*call[1][1:], *call[2].values())) for call in (new, old)]
    if len(flat[0]) != len(flat[1]):
        return True
    pairs = [(a, b) for a, b in zip(*flat, strict=True) if not isinstance(a, Tensor)]
    # merged dimensions: is the number that the code has for them right?
    if (-1, True) in [(a, b != -1) for a, b in pairs]:
        return bool(math.prod(b for _, b in pairs) != new[1][0].numel())
    return any(a != b for a, b in pairs)
