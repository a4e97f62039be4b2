"""What a cut must equal: the model at full width whose dropped units are zeroed where they are
consumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoprune.pruning.coupling.coupling import Coupling, Slot
from autoprune.pruning.surgery.attention import Attention
from autoprune.pruning.surgery.forward import STATISTICS, dims_of, outputs_of
from autoprune.pruning.surgery.parametrizations import (
    Reparametrised,
    computed_weights,
    kept_function,
)
from autoprune.pruning.surgery.shrink import replace_tensors
from autoprune.task import Inputs

__all__ = ["masked_outputs"]

# Names of the arguments after the input, which a call may give by place
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.layer_norm: ("normalized_shape", "weight", "bias", "eps"),
    F.rms_norm: ("normalized_shape", "weight", "eps"),
    F.group_norm: ("num_groups", "weight", "bias", "eps"),
}


def masked_outputs(
    model: nn.Module,
    inputs: Inputs,
    coupling: Coupling,
    keep: dict[str, Tensor],
    training: bool = False,
) -> list[Tensor]:
    """Outputs of the model at full width whose dropped units are zeroed where they are consumed; as
    `outputs_of`.

    Norms across channels take their statistics over the kept channels only: that is what the cut
    model does.
    """
    alive = coupling.kept_mask(keep)
    zeroed: dict[str, list[Slot]] = {}
    for slot in coupling.slots:
        if slot.role == "consume" and not bool(alive[slot.units].all()):
            zeroed.setdefault(slot.tensor, []).append(slot)
    parameters = dict(model.named_parameters())
    # along its own dimension a scale is zeroed: a direction of zeros has no norm
    for weight in computed_weights(model):
        mine = zeroed.pop(weight.direction, [])
        zeroed[weight.direction] = [slot for slot in mine if weight.right or slot.dim != weight.dim]
        zeroed[weight.scale] = [
            slot for slot in mine if not weight.right and slot.dim == weight.dim
        ]

    def masked(name: str, tensor: Tensor) -> Tensor:
        # A forward may write into buffers
        fresh = tensor if name in parameters else tensor.clone()
        for slot in zeroed.get(name, []) if name in parameters else []:
            kept = alive[slot.units].to(tensor.device)
            rows = zip(fresh.chunk(slot.groups), kept.chunk(slot.groups), strict=True)
            fresh = torch.cat([row * _along(part, row, slot.dim) for row, part in rows])
        return fresh

    def along(each: Reparametrised) -> Tensor:
        return model.get_parameter(each.direction).detach()

    wide = replace_tensors(model, kept_function(model, along, masked))
    # As in the trace: norms are told apart by the order of their calls
    Attention.take_over_all(wide)
    earlier = coupling.evaluation_norms if training else 0
    with _KeptNorms({call - earlier: alive[units] for call, units in coupling.norms.items()}):
        return outputs_of(wide, inputs, training)


class _KeptNorms(TorchFunctionMode):
    """Runs the n-th norm across channels over its kept channels only, as far as `kept` names it."""

    def __init__(self, kept: dict[int, Tensor]) -> None:
        super().__init__()
        self.kept, self.calls = kept, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        statistic = (
            getattr(func, "__name__", "") in STATISTICS and args and isinstance(args[0], Tensor)
        )
        if func not in _ARGUMENTS and not statistic:
            return func(*args, **kwargs)
        self.calls += 1
        keep = self.kept.get(self.calls)
        if keep is None or bool(keep.all()):
            return func(*args, **kwargs)
        index = keep.nonzero()[:, 0].to((args[0] if args else kwargs["input"]).device)
        return (_kept_statistic if statistic else _kept_norm)(
            func, index, len(keep), *args, **kwargs
        )


def _kept_statistic(
    func: Any, index: Tensor, width: int, input: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """A mean or norm over the kept channels of the one dimension that is as wide as they are."""
    dim = next(dim for dim in dims_of(func, (input, *args), kwargs) if input.shape[dim] == width)
    out = func(input.index_select(dim, index), *args, **kwargs)
    return (
        torch.zeros_like(input).index_copy(dim, index, out) if func.__name__ == "normalize" else out
    )


def _kept_norm(
    func: Callable[..., Tensor], index: Tensor, width: int, input: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    dim = 1 if func is F.group_norm else -1
    given = dict(zip(_ARGUMENTS[func], args, strict=False)) | kwargs
    given = {
        name: argument[index] if isinstance(argument, Tensor) else argument
        for name, argument in given.items()
    }
    if func is not F.group_norm:
        given["normalized_shape"] = (len(index),)
    normalised = func(input.index_select(dim, index), **given)
    return torch.zeros_like(input).index_copy(dim, index, normalised)


def _along(kept: Tensor, tensor: Tensor, dim: int) -> Tensor:
    return kept.to(tensor.dtype).view([-1 if d == dim else 1 for d in range(tensor.dim())])
