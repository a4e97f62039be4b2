"""Every group is proved once: the cut model must compute what the model with masked consumers computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoprune.group import Group
from autoprune.pruning.coupling import Coupling, trace
from autoprune.pruning.forward import outputs_of
from autoprune.pruning.shrink import replace_tensors, shrink
from autoprune.task import Inputs

__all__ = ["TOLERANCE", "discover", "masked_outputs", "prove", "relative_error"]

TOLERANCE = 1e-5


def discover(model: nn.Module, inputs: Inputs) -> Coupling:
    """The proved groups of `model`: units groups first, in order of execution, then weights groups.

    Every units group is proved by cutting it and comparing with the model whose consumers are masked; one that fails
    is refused with the reason, never half cut. `model` is untouched. Raises ModelError where its forward fails.
    """
    coupling = trace(model, inputs)
    return coupling.without(prove(model, inputs, coupling))


def prove(model: nn.Module, inputs: Inputs, coupling: Coupling) -> dict[str, str]:
    """Refusals, by group key: groups whose cut model differs from the masked one by more than 1e-5 relative, or fails.

    A random third of each group is cut. Weights are drawn anew, so that zeros or saturated units cannot hide an error.
    All groups are tried at once; only where that fails are they tried in halves.
    """
    groups = [group for group in coupling.prunable() if group.level == "units"]
    probe = _randomised(model)
    generator = torch.Generator().manual_seed(0)
    inputs = inputs.rows(2).map(
        lambda t: t + 0.5 * torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else t
    )
    refusals: dict[str, str] = {}

    def search(part: Sequence[Group]) -> None:
        if not part:
            return
        problem = _difference(probe, inputs, coupling, part)
        if problem is None:
            return
        if len(part) == 1:
            refusals[part[0].key] = problem
            return
        search(part[: len(part) // 2])
        search(part[len(part) // 2 :])

    search(groups)
    remaining = [group for group in groups if group.key not in refusals]
    if refusals and (problem := _difference(probe, inputs, coupling, remaining)) is not None:
        refusals |= {group.key: f"together with other groups, {problem}" for group in remaining}
    return refusals


def _difference(probe: nn.Module, inputs: Inputs, coupling: Coupling, groups: Sequence[Group]) -> str | None:
    """What is wrong when a random third of `groups` is cut, or None."""
    if not groups:
        return None
    keep = {group.key: random_keep(coupling, group.key) for group in groups}
    try:
        smaller = shrink(probe, coupling.cuts(keep))
        error = relative_error(outputs_of(smaller, inputs), masked_outputs(probe, inputs, coupling, keep))
        if TOLERANCE < error < 1e-2:  # rounding, or really wrong? double precision tells
            error = relative_error(
                outputs_of(_double(smaller), inputs.map(_wide)),
                masked_outputs(_double(probe), inputs.map(_wide), coupling, keep),
            )
    except Exception as problem:
        return f"the model does not run after the cut ({type(problem).__name__}: {str(problem).splitlines()[0][:120]})"
    if not error <= TOLERANCE:
        return (
            f"after a cut the same code reads other channels (bounds written into the code?): "
            f"cut and masked model differ by {error:.2g} relative"
        )
    return None


def random_keep(coupling: Coupling, key: str, share: float = 1 / 3, seed: int = 0) -> Tensor:
    """Boolean (units,): a random admissible share of a group goes, at least one of each cell."""
    cells, size = coupling.members[key].shape
    generator = torch.Generator().manual_seed(seed + 7919 * cells + size)
    drop = min(max(1, round(size * share)), size - 1)
    keep = torch.ones(cells, size, dtype=torch.bool)
    for cell in keep:
        cell[torch.randperm(size, generator=generator)[:drop]] = False
    return keep.flatten()


def masked_outputs(model: nn.Module, inputs: Inputs, coupling: Coupling, keep: dict[str, Tensor]) -> list[Tensor]:
    """Outputs of the model at full width whose dropped units are zeroed where they are consumed.

    Norms across channels take their statistics over the kept channels only: that is what the cut model does.
    """
    alive = coupling.kept(keep)
    zeroed = {
        slot.tensor: slot for slot in coupling.slots if slot.role == "consume" and not bool(alive[slot.units].all())
    }
    parameters = dict(model.named_parameters())

    def masked(name: str, tensor: Tensor) -> Tensor:
        slot = zeroed.get(name)
        if slot is None or name not in parameters:
            return tensor.clone()
        kept = alive[slot.units].to(tensor.device)
        if slot.groups > 1:
            rows = [
                row * _along(part, row, slot.dim)
                for row, part in zip(tensor.chunk(slot.groups), kept.chunk(slot.groups), strict=True)
            ]
            return torch.cat(rows)
        return tensor * _along(kept, tensor, slot.dim)

    with _KeptNorms({call: alive[units] for call, units in coupling.norms.items()}):
        return outputs_of(replace_tensors(model, masked), inputs)


def relative_error(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """max |a - b| / max |b| over all outputs; infinite where their number, shapes or finiteness differ."""
    if len(first) != len(second) or any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        return math.inf
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if not b.numel():
            continue
        a, b = a.double(), b.double()
        scale = b.abs().max().clamp_min(1e-30)
        error = ((a - b).abs().max() / scale).item()
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


class _KeptNorms(TorchFunctionMode):
    """Runs the n-th norm across channels over its kept channels only, as far as `kept` names it."""

    def __init__(self, kept: dict[int, Tensor]) -> None:
        super().__init__()
        self.kept, self.calls = kept, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (F.layer_norm, F.rms_norm, F.group_norm):
            return func(*args, **kwargs)
        self.calls += 1
        keep = self.kept.get(self.calls)
        if keep is None or bool(keep.all()):
            return func(*args, **kwargs)
        return _kept_norm(func, keep.nonzero()[:, 0], *args, **kwargs)


def _kept_norm(
    func: Callable[..., Tensor],
    index: Tensor,
    input: Tensor,
    second: Any,
    weight: Tensor | None = None,
    *rest: Any,
    **kwargs: Any,
) -> Tensor:
    dim = 1 if func is F.group_norm else -1
    shape = second if func is F.group_norm else (len(index),)

    def pick(tensor: Any) -> Any:
        return tensor[index] if isinstance(tensor, Tensor) else tensor

    kwargs = {name: pick(value) for name, value in kwargs.items()}
    normalised = func(input.index_select(dim, index), shape, pick(weight), *(pick(value) for value in rest), **kwargs)
    return torch.zeros_like(input).index_copy(dim, index, normalised)


def _along(kept: Tensor, tensor: Tensor, dim: int) -> Tensor:
    return kept.to(tensor.dtype).view([-1 if d == dim else 1 for d in range(tensor.dim())])


def _randomised(model: nn.Module) -> nn.Module:
    """A copy with fresh random parameters and statistics, of the usual scales."""
    generator = torch.Generator().manual_seed(0)
    parameters = dict(model.named_parameters())

    def fresh(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or (name not in parameters and "running" not in name):
            return tensor.clone()
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() >= 2:
            fan_in = tensor[0].numel() if tensor.dim() < 5 or name.endswith("weight") else tensor.shape[-1]
            return (noise * math.sqrt(2 / fan_in)).to(tensor)
        if name.endswith(("bias", "running_mean")):
            return (0.1 * noise).to(tensor)
        return (0.5 + torch.rand(tensor.shape, generator=generator)).to(tensor)

    return replace_tensors(model, fresh)


def _double(model: nn.Module) -> nn.Module:
    return replace_tensors(model, lambda name, tensor: _wide(tensor))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
