"""Importance: gather gradients once; sum element scores over all members of a unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.group import Group
from autoprune.pruning.coupling import Coupling, tensor_of
from autoprune.task import Batch

__all__ = ["Importance", "gradients"]


def gradients(
    model: nn.Module, batches: Iterable[Batch], loss: Callable[[Any, Any], Tensor], count: int = 8
) -> dict[str, Tensor]:
    """Mean d loss / d parameter over the first `count` batches, in eval mode, by parameter; `model` is left as it was.

    Raises InputError where there is no batch.
    """
    training = {module: module.training for module in model.modules()}
    held = {name: (parameter.grad, parameter.requires_grad) for name, parameter in model.named_parameters()}
    model.eval()
    device = next(model.parameters()).device
    seen = 0
    try:
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad_(parameter.is_floating_point())
        with torch.enable_grad():
            for args, kwargs, target in batches:
                from autoprune.task import Inputs

                inputs = Inputs(args, kwargs).to(device)
                loss(inputs.call(model), Inputs.of((target,)).to(device).args[0]).backward()  # type: ignore[no-untyped-call]
                seen += 1
                if seen == count:
                    break
        if not seen:
            raise InputError("gradients need at least one batch; the data gave none")
        return {
            name: parameter.grad.detach().clone() / seen if parameter.grad is not None else torch.zeros_like(parameter)
            for name, parameter in model.named_parameters()
        }
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad, needs = held[name]
            parameter.requires_grad_(needs)
        for module, was in training.items():
            module.training = was


class Importance:
    """Importance of one model's units and weights by any criterion; gradients are gathered once, when first needed."""

    def __init__(
        self, model: nn.Module, coupling: Coupling, gather: Callable[[], Mapping[str, Tensor]] | None = None
    ) -> None:
        self._parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
        self._model, self._coupling, self._gather = model, coupling, gather
        self._gradients: Mapping[str, Tensor] | None = None
        self._units: dict[str, Tensor] = {}  # criterion -> importance of every unit

    def gradient(self, tensor: str) -> Tensor | None:
        """d loss / d tensor; None where no data was given."""
        if self._gather is None:
            return None
        if self._gradients is None:
            self._gradients = self._gather()
        return self._gradients.get(tensor)

    def elements(self, tensor: str, criterion: str) -> Tensor:
        """Importance of each element of a parameter, shaped like it."""
        plugin = plugins.load("criterion", criterion)()
        return torch.as_tensor(
            plugin.score(self._parameters[tensor], self.gradient(tensor) if plugin.needs_gradients else None)
        )

    def units(self, group: Group, criterion: str) -> Tensor:
        """Importance of each unit of a group, (cells, units per cell), summed over all its parameters."""
        if criterion not in self._units:
            self._units[criterion] = self._sum(criterion)
        return self._units[criterion][self._coupling.members[group.key]]

    def weights(self, group: Group, criterion: str) -> Tensor:
        """Importance of each weight of a weights group, shaped like the weight."""
        return self.elements(tensor_of(self._model, group.name), criterion)

    def _sum(self, criterion: str) -> Tensor:
        total = torch.zeros(self._coupling.total, dtype=torch.float64)
        seen: set[tuple[str, int, int]] = set()
        elements: dict[str, Tensor] = {}
        for slot in self._coupling.slots:
            place = (slot.tensor, slot.dim, slot.groups)
            if slot.tensor not in self._parameters or place in seen:
                continue
            seen.add(place)
            if slot.tensor not in elements:
                elements[slot.tensor] = self.elements(slot.tensor, criterion).double().cpu()
            inside = slot.units >= 0
            total.index_add_(0, slot.units[inside], _per_entry(elements[slot.tensor], slot.dim, slot.groups)[inside])
        return total


def _per_entry(elements: Tensor, dim: int, groups: int) -> Tensor:
    """Sum over everything but `dim`; with `groups`, one entry for each input channel of a grouped convolution."""
    if groups > 1:
        return torch.cat([_per_entry(part, dim, 1) for part in elements.chunk(groups)])
    return elements.movedim(dim, 0).flatten(1).sum(1) if elements.dim() > 1 else elements
