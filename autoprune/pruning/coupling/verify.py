"""Groups are proved once, together: the cut model must compute what the model with masked consumers
computes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from autoprune.group import Group
from autoprune.pruning.coupling.coupling import Coupling, trace
from autoprune.pruning.coupling.masked_reference import masked_outputs
from autoprune.pruning.coupling.residual_blocks import blocks_groups
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.pruning.surgery.patch_forward import bind
from autoprune.pruning.surgery.shrink import replace_tensors
from autoprune.task import Inputs

__all__ = [
    "TOLERANCE",
    "discover",
    "prove",
    "random_keep",
    "randomise",
    "relative_error",
    "telling_keep",
]

# Relative. Single precision may round by more in a deep net: then double precision decides
TOLERANCE = 1e-5


def discover(model: nn.Module, inputs: Inputs) -> Coupling:
    """The proved groups of `model`: units groups first, in order of execution, then weights groups.

    Every units group is proved by cutting it and comparing with the model whose consumers are
    masked; one that fails is refused with the reason, never half cut. `model` is untouched. Raises
    ModelError where its forward fails.
    """
    coupling = trace(model, inputs)
    refusals, needed = prove(model, inputs, coupling)
    blocks = blocks_groups(model, inputs.rows(2), coupling.training)
    return coupling.without(refusals).binding(needed).joined_by(blocks)


def prove(
    model: nn.Module, inputs: Inputs, coupling: Coupling
) -> tuple[dict[str, str], set[tuple[str, int]]]:
    """Refusals, by group key: groups whose cut model differs from the masked one by more than 1e-5
    relative, or fails.

    Beside them the calls (module, n-th of its own) that only gave that with numbers bound anew.
    Weights are drawn anew, so that zeros or saturated units cannot hide an error. All groups are
    tried at once, a random part of each cut, of a size of its own; then every other one, then the
    rest, their first or last units cut: what holds when all are cut may not hold beside a group at
    full width, nor for a cut less even than a random one. Only where a trial fails is it repeated
    in halves.
    """
    trial = _Trial(model, inputs, coupling)
    groups = [group for group in coupling.prunable() if group.level == "units"]
    settled = trial.passing(groups)
    trial.lopsided = True
    for part in (settled[::2], settled[1::2]):
        trial.passing(part)
    return trial.refusals, trial.needed


class _Trial:
    """Cuts of a model with weights drawn anew, each compared with what masking gives."""

    def __init__(self, model: nn.Module, inputs: Inputs, coupling: Coupling) -> None:
        generator = torch.Generator("cpu").manual_seed(0)
        self.probe = randomise(model)
        self.inputs = inputs.rows(2).map(lambda tensor: _disturb(tensor, generator))
        # Calls whose numbers had to be bound anew
        self.needed: set[tuple[str, int]] = set()
        self.refusals: dict[str, str] = {}
        # Cut the first units of each group's cells, or the last, not random ones
        self.lopsided = False
        self.modes = (False, True) if coupling.training else (False,)
        self.coupling = self._without_data(coupling)

    def passing(self, groups: list[Group]) -> list[Group]:
        """Those of `groups` that can be cut alone and together; the others are refused."""
        problem = self.difference(groups)
        if problem is None:
            return groups
        if len(groups) == 1:
            self.refusals[groups[0].key] = problem
            return []
        half = len(groups) // 2
        first, second = self.passing(groups[:half]), self.passing(groups[half:])
        while first and second and (problem := self.difference(first + second)) is not None:
            passes, fails = 0, len(second)  # how many of `second` beside all of `first`
            while fails - passes > 1:
                middle = (passes + fails) // 2
                failure = self.difference(first + second[:middle])
                passes, fails = (middle, fails) if failure is None else (passes, middle)
                problem = failure or problem
            culprit = second.pop(fails - 1)
            self.refusals[culprit.key] = f"together with other groups, {problem}"
        return first + second

    def difference(self, groups: Sequence[Group]) -> str | None:
        """What is wrong when a part of each of `groups` is cut, or None."""
        if not groups:
            return None
        keep = {group.key: self._keep(group.key) for group in groups}
        for training in self.modes:
            if (problem := self._difference(keep, training)) is not None:
                return f"in training, {problem}" if training else problem
        return None

    def _difference(self, keep: dict[str, Tensor], training: bool) -> str | None:
        try:
            smaller = self._cut(keep)
            error = relative_error(
                outputs_of(smaller, self.inputs, training),
                masked_outputs(self.probe, self.inputs, self.coupling, keep, training),
            )
            # Rounding, or really wrong? double precision tells
            if not error <= TOLERANCE:
                wide = self.inputs.map(_wide)
                error = relative_error(
                    outputs_of(_double(smaller), wide, training),
                    masked_outputs(_double(self.probe), wide, self.coupling, keep, training),
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
        """A factor that differs with other weights at the same widths comes from the data, not from
        a width."""
        factors = [literal for literal in coupling.literals if literal.kind == "scalar"]
        if not factors:
            return coupling
        bindings = replace(coupling, literals=tuple(factors)).bindings({})
        data: set[tuple[str, int]] = set()
        for training in self.modes:
            probe = replace_tensors(self.probe, lambda _, tensor: tensor.clone())
            outputs_of(bind(probe, bindings, data), self.inputs, training)
        return replace(
            coupling,
            literals=tuple(
                literal
                for literal in coupling.literals
                if (literal.owner, literal.call) not in data
            ),
        )

    def _keep(self, key: str) -> Tensor:
        keep = telling_keep(self.coupling, key)
        if self.lopsided:
            cells = keep.view(self.coupling.members[key].shape).sort(1).values
            cells[1::2] = cells[1::2].flip(1)
            keep = cells.flatten()
        return keep

    def _cut(self, keep: dict[str, Tensor]) -> nn.Module:
        return self.coupling.apply(self.probe, keep, noted=self.needed)


def telling_keep(coupling: Coupling, key: str) -> Tensor:
    """`random_keep` with other channels for every group, and other shares, so that a mix-up of two
    groups shows."""
    # Not `hash`: that of a word differs from process to process
    draw = zlib.crc32(key.encode())
    return random_keep(coupling, key, (1 / 4, 1 / 3, 2 / 5)[draw % 3], draw)


def random_keep(coupling: Coupling, key: str, share: float = 1 / 3, seed: int = 0) -> Tensor:
    """Boolean (units,): a random admissible share of a group goes, at least one of each cell."""
    cells, size = coupling.members[key].shape
    generator = torch.Generator("cpu").manual_seed(seed + 7919 * cells + size)
    drop = min(max(1, round(size * share)), size - 1)
    keep = torch.ones(cells, size, dtype=torch.bool, device="cpu")
    for cell in keep:
        cell[torch.randperm(size, generator=generator, device="cpu")[:drop]] = False
    return keep.flatten()


def relative_error(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """max |a - b| / max |b| over all outputs; infinite where their number, shapes or finiteness
    differ."""
    if len(first) != len(second) or any(
        a.shape != b.shape for a, b in zip(first, second, strict=True)
    ):
        return math.inf
    worst = 0.0
    for a, b in zip(first, second, strict=True):
        if not b.numel():
            continue
        a, b = a.double(), b.double()
        # Outputs that are all zero have no scale
        scale = b.abs().max().clamp_min(1e-30)
        error = ((a - b).abs().max() / scale).item()
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def randomise(model: nn.Module) -> nn.Module:
    """A copy with fresh random parameters and statistics, of the usual scales."""
    generator = torch.Generator("cpu").manual_seed(0)
    parameters = dict(model.named_parameters())

    def fresh(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or (name not in parameters and "running" not in name):
            return tensor.clone()
        noise = torch.randn(tensor.shape, generator=generator, device="cpu")
        if tensor.dim() >= 2:
            fan_in = (
                tensor[0].numel()
                if tensor.dim() < 5 or name.endswith("weight")
                else tensor.shape[-1]
            )
            return (noise * math.sqrt(2 / fan_in)).to(tensor)
        if name.endswith(("bias", "running_mean")):
            return (0.1 * noise).to(tensor)
        return (0.5 + torch.rand(tensor.shape, generator=generator, device="cpu")).to(tensor)

    return replace_tensors(model, fresh)


def _disturb(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor + 0.5 * torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)


def _double(model: nn.Module) -> nn.Module:
    return replace_tensors(model, lambda name, tensor: _wide(tensor))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
