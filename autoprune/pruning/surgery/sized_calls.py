"""Calls whose arguments may be widths, as `view(b, n, 3, 12, 64)`, `x[:, :24]`, `split([8, 16])` or
`chunk(2)`.

They are counted over a module's own code, not over that of the modules it calls; where training
takes a path of its own, its calls have negative numbers. Tracing notes what they depend on
(`tracing/size_literals.py`), and the forward of a cut module is wrapped, so that its n-th such call
gets the cut model's widths (`patch_forward.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["ATTRIBUTE", "Bindings", "Call", "Change", "read"]

Change = dict[str, Any]
# Module -> n-th call of its own -> what is bound anew
Bindings = dict[str, dict[int, Change]]

# In place of a call: an attribute that says how wide a module without parameters is. Calls count
# from 1 on, those of training from -1 down, so 0 is free
ATTRIBUTE = 0
_SIZES = {"view", "reshape", "expand", "unflatten"}
_PARTS = {"split", "chunk"}
_NORMS = {"layer_norm", "rms_norm"}
# Under torch.export sizes are symbols
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
_SCALED = {"mul", "multiply", "__mul__", "__rmul__", "div", "divide", "true_divide", "__truediv__"}


@dataclass
class Call:
    """One call with numbers in it, as the trace sees it."""

    kind: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rebindable: bool = False
    # Place in an index -> dimension
    slices: dict[int, int] = field(default_factory=dict)


def read(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The call as one that may hold widths, or None for any other; which calls are counted depends
    on nothing else."""
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


def _slices(tensor: Tensor, index: Any) -> dict[int, int] | None:
    """Place in an index -> dimension of its slices with a step of one; None for an index that is
    not simple."""
    entries = index if isinstance(index, tuple) else (index,)
    taken = sum(1 for entry in entries if isinstance(entry, (int, slice)))
    if any(
        not (entry is None or entry is Ellipsis or isinstance(entry, (int, slice)))
        for entry in entries
    ):
        return None
    dims, dim = {}, 0
    for place, entry in enumerate(entries):
        if isinstance(entry, slice) and entry.step in (None, 1):
            dims[place] = dim
        dim += tensor.dim() - taken if entry is Ellipsis else 0 if entry is None else 1
    return dims
