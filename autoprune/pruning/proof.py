"""Every group is proved once: the cut model must compute what the model with masked consumers computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoprune.group import Group
from autoprune.pruning.blocks import blocks_group
from autoprune.pruning.coupling import Coupling, Slot, trace
from autoprune.pruning.forward import STATISTICS, dims_of, outputs_of
from autoprune.pruning.literals import Bindings, bind
from autoprune.pruning.reparametrised import Reparametrised, kept_function, reparametrised
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
    refusals, needed = prove(model, inputs, coupling)
    return coupling.without(refusals).binding(needed).joined_by(blocks_group(model, inputs.rows(2)))


def prove(model: nn.Module, inputs: Inputs, coupling: Coupling) -> tuple[dict[str, str], set[tuple[str, int]]]:
    """Refusals, by group key: groups whose cut model differs from the masked one by more than 1e-5 relative, or fails.

    Beside them the calls (module, n-th of its own) that only gave that with numbers bound anew.
    A random third of each group is cut. Weights are drawn anew, so that zeros or saturated units cannot hide an error.
    All groups are tried at once; only where that fails are they tried in halves.
    """
    trial = _Trial(model, inputs, coupling)
    groups = [group for group in coupling.prunable() if group.level == "units"]
    refusals: dict[str, str] = {}

    def search(part: Sequence[Group]) -> None:
        if not part:
            return
        problem = trial.difference(part)
        if problem is None:
            return
        if len(part) == 1:
            refusals[part[0].key] = problem
            return
        search(part[: len(part) // 2])
        search(part[len(part) // 2 :])

    search(groups)
    remaining = [group for group in groups if group.key not in refusals]
    if refusals and (problem := trial.difference(remaining)) is not None:
        refusals |= {group.key: f"together with other groups, {problem}" for group in remaining}
        remaining = []
    trial.note_mixtures(remaining)
    return refusals, trial.needed


class _Trial:
    """Cuts of a model with weights drawn anew, each compared with what masking gives."""

    def __init__(self, model: nn.Module, inputs: Inputs, coupling: Coupling) -> None:
        generator = torch.Generator().manual_seed(0)
        self.probe = _randomised(model)
        self.inputs = inputs.rows(2).map(
            lambda t: t + 0.5 * torch.randn(t.shape, generator=generator).to(t) if t.is_floating_point() else t
        )
        self.needed: set[tuple[str, int]] = set()  # calls whose numbers had to be bound anew
        self.coupling = self._without_data(coupling)

    def difference(self, groups: Sequence[Group]) -> str | None:
        """What is wrong when a random third of `groups` is cut, or None."""
        if not groups:
            return None
        keep = {group.key: random_keep(self.coupling, group.key) for group in groups}
        try:
            smaller = self._cut(keep)
            error = relative_error(
                outputs_of(smaller, self.inputs), masked_outputs(self.probe, self.inputs, self.coupling, keep)
            )
            if not error <= TOLERANCE:  # rounding, or really wrong? double precision tells
                error = relative_error(
                    outputs_of(_double(smaller), self.inputs.map(_wide)),
                    masked_outputs(_double(self.probe), self.inputs.map(_wide), self.coupling, keep),
                )
        except Exception as problem:
            said = (str(problem).splitlines() or [""])[0][:120]
            return f"the model does not run after the cut ({type(problem).__name__}: {said})"
        if not error <= TOLERANCE:
            return (
                f"after a cut the same code reads other channels (bounds written into the code?): "
                f"cut and masked model differ by {error:.2g} relative"
            )
        return None

    def _without_data(self, coupling: Coupling) -> Coupling:
        """A factor that differs with other weights at the same widths comes from the data, not from a width."""
        factors = [literal for literal in coupling.literals if literal.kind == "scalar"]
        if not factors:
            return coupling
        bindings: Bindings = {}
        for literal in factors:
            bindings.setdefault(literal.owner, {})[literal.call] = {"scalar": literal.fixed}
        data: set[tuple[str, int]] = set()
        outputs_of(bind(replace_tensors(self.probe, lambda _, tensor: tensor.clone()), bindings, data), self.inputs)
        return replace(
            coupling, literals=tuple(each for each in coupling.literals if (each.owner, each.call) not in data)
        )

    def note_mixtures(self, groups: Sequence[Group]) -> None:
        """Cut every other group, then the rest: a number that follows when all are cut may not when only some are."""
        if self.coupling.literals:
            for part in (groups[::2], groups[1::2]):
                if part:
                    outputs_of(self._cut({g.key: random_keep(self.coupling, g.key) for g in part}), self.inputs)

    def _cut(self, keep: dict[str, Tensor]) -> nn.Module:
        return bind(shrink(self.probe, self.coupling.cuts(keep)), self.coupling.bindings(keep), self.needed)


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
    zeroed: dict[str, list[Slot]] = {}
    for slot in coupling.slots:
        if slot.role == "consume" and not bool(alive[slot.units].all()):
            zeroed.setdefault(slot.tensor, []).append(slot)
    parameters = dict(model.named_parameters())
    for each in reparametrised(model):  # along its own dimension a scale is zeroed: a direction of zeros has no norm
        mine = zeroed.pop(each.direction, [])
        zeroed[each.direction] = [slot for slot in mine if each.right or slot.dim != each.dim]
        zeroed[each.scale] = [slot for slot in mine if not each.right and slot.dim == each.dim]

    def masked(name: str, tensor: Tensor) -> Tensor:
        fresh = tensor.clone()
        for slot in zeroed.get(name, []) if name in parameters else []:
            kept = alive[slot.units].to(tensor.device)
            rows = zip(fresh.chunk(slot.groups), kept.chunk(slot.groups), strict=True)
            fresh = torch.cat([row * _along(part, row, slot.dim) for row, part in rows])
        return fresh

    def along(each: Reparametrised) -> Tensor:
        return model.get_parameter(each.direction).detach()

    with _KeptNorms({call: alive[units] for call, units in coupling.norms.items()}):
        return outputs_of(replace_tensors(model, kept_function(model, along, masked)), inputs)


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
        statistic = getattr(func, "__name__", "") in STATISTICS and args and isinstance(args[0], Tensor)
        if func not in (F.layer_norm, F.rms_norm, F.group_norm) and not statistic:
            return func(*args, **kwargs)
        self.calls += 1
        keep = self.kept.get(self.calls)
        if keep is None or bool(keep.all()):
            return func(*args, **kwargs)
        index = keep.nonzero()[:, 0]
        return (_kept_statistic if statistic else _kept_norm)(func, index, len(keep), *args, **kwargs)


def _kept_statistic(func: Any, index: Tensor, width: int, input: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A mean or norm over the kept channels of the one dimension that is as wide as they are."""
    dim = next(dim for dim in dims_of(func, (input, *args), kwargs) if input.shape[dim] == width)
    out = func(input.index_select(dim, index), *args, **kwargs)
    return torch.zeros_like(input).index_copy(dim, index, out) if func.__name__ == "normalize" else out


def _kept_norm(
    func: Callable[..., Tensor],
    index: Tensor,
    width: int,
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
