"""A masked reference for Torch-Pruning: the dense model without exactly the channels that it
removed.

Every entry that it took out of a parameter, along every dimension, is zero in the dense model: what
a channel gives and what is read from it. Norms across channels take their statistics over the
channels that are kept, and attention scales by the width a head has left, since the pruned model
does both. So a cut in the right places compares equal, and one that removed other channels at the
reader than at the producer does not.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch_pruning.pruner import function

Kept = dict[int, Tensor]  # dimension -> indices into the dense tensor


class Removed:
    """Records, while open, which entries of which dimension every pruned parameter kept."""

    def __init__(self) -> None:
        self.kept: dict[int, Kept] = {}
        self._alive: list[Tensor] = []  # an id is only good as long as its tensor lives

    def __enter__(self) -> Removed:
        self._original = original = function.BasePruningFunc._prune_parameter_and_grad

        def record(pruner: Any, weight: Tensor, keep_idxs: Any, pruning_dim: int) -> Tensor:
            fresh = original(pruner, weight, keep_idxs, pruning_dim)
            dim = pruning_dim % weight.dim()
            before = self.kept.get(id(weight), {})
            index = torch.as_tensor(keep_idxs, dtype=torch.long)
            self.kept[id(fresh)] = before | {dim: before[dim][index] if dim in before else index}
            self._alive += [weight, fresh]
            return fresh

        function.BasePruningFunc._prune_parameter_and_grad = record
        return self

    def __exit__(self, *_: Any) -> None:
        function.BasePruningFunc._prune_parameter_and_grad = self._original

    def of(self, parameter: Tensor) -> Kept:
        return self.kept.get(id(parameter), {})


@torch.no_grad()
def reference(dense: nn.Module, pruned: nn.Module, removed: Removed) -> nn.Module:
    """A copy of `dense` that computes what `pruned` should."""
    masked = copy.deepcopy(dense)
    modules = dict(masked.named_modules())
    for path, module in pruned.named_modules():
        before = modules[path]
        for name, parameter in module.named_parameters(recurse=False):
            kept = removed.of(parameter)
            if kept:
                setattr(before, name, nn.Parameter(zeroed(getattr(before, name).detach(), kept)))
        if isinstance(module, nn.MultiheadAttention):
            _rescale(before, module)
        weight = getattr(module, "weight", None)
        crossing = "Norm" in type(module).__name__ and not any(
            k in type(module).__name__ for k in ("Batch", "Instance")
        )
        if crossing and isinstance(weight, nn.Parameter) and 0 in removed.of(weight):
            parent, _, name = path.rpartition(".")
            setattr(modules[parent], name, KeptNorm(module, removed.of(weight)[0]))
    return Scaled(masked)


def zeroed(tensor: Tensor, kept: Kept) -> Tensor:
    """`tensor` with everything zero that is not kept."""
    for dim, index in kept.items():
        mask = torch.zeros(tensor.shape[dim], dtype=tensor.dtype)
        mask[index] = 1
        tensor = tensor * mask.view([-1 if d == dim else 1 for d in range(tensor.dim())])
    return tensor


def _rescale(dense: Any, pruned: nn.MultiheadAttention) -> None:
    """Queries scaled so that scores come out as with the pruned width of a head."""
    factor = math.sqrt(dense.head_dim / pruned.head_dim)
    for weight in (dense.in_proj_weight, dense.in_proj_bias):
        if weight is not None:
            weight[: dense.embed_dim] *= factor


class KeptNorm(nn.Module):
    """A norm that runs over its kept channels only, by the pruned norm itself; the others come out
    as zero."""

    def __init__(self, pruned: nn.Module, index: Tensor) -> None:
        super().__init__()
        self.pruned, self.index = copy.deepcopy(pruned), index
        self.dim = 1 if "2d" in type(pruned).__name__ or "Group" in type(pruned).__name__ else -1

    def forward(self, x: Tensor) -> Tensor:
        kept = self.pruned(x.index_select(self.dim, self.index))
        return torch.zeros_like(x).index_copy(self.dim, self.index, kept)


class Scaled(nn.Module):
    """Runs a masked model with scaled_dot_product_attention scaled by the width of a head that is
    not all zero."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.masked = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _KeptWidth():
            return self.masked(*args, **kwargs)

    def get_submodule(self, target: str) -> nn.Module:
        return self.masked.get_submodule(target)


class _KeptWidth(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and kwargs.get("scale") is None:
            query = args[0] if args else kwargs["query"]
            used = (query != 0).any(-2).flatten(0, -2)  # (anything, width of a head)
            kwargs["scale"] = 1 / math.sqrt(max(1, int(used.sum(-1).max())))
        return func(*args, **kwargs)
