"""Hold weight masks on a model while it trains: set after each optimiser step, where gradual by a schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["Mask", "Masks"]


@dataclass
class Mask:
    """The mask of one parameter. `keep(weight, share)` gives the pattern at a share in [0, 1] of the final ratio.

    A gradual mask is chosen anew from the current weights at every step of the schedule, as Zhu & Gupta 2017
    (arXiv:1710.01878) do; any other is chosen once, at the start.
    """

    tensor: str
    keep: Callable[[Tensor, float], Tensor]
    gradual: bool
    pattern: Tensor | None = None


@dataclass
class Masks:
    """All masks of a model. `schedule` maps progress in training, in [0, 1], to the share of the final ratio."""

    model: nn.Module
    masks: list[Mask] = field(default_factory=list)
    schedule: Callable[[float], float] = lambda progress: 1.0

    def __post_init__(self) -> None:
        self.step(0.0)

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Zero what is masked at `progress`; call it after each optimiser step."""
        parameters = dict(self.model.named_parameters())
        for mask in self.masks:
            weight = parameters[mask.tensor]
            if mask.pattern is None or mask.gradual:
                share = self.schedule(progress) if mask.gradual else 1.0
                mask.pattern = mask.keep(weight.detach(), share)
            weight.mul_(mask.pattern.to(weight.device))

    def finish(self) -> None:
        """Set every mask to its final ratio and let go of them: from here an exact zero is the mask."""
        self.step(1.0)
        self.masks = []

    def final(self) -> dict[str, Tensor]:
        """Which weights each parameter will keep, chosen from the weights as they are now; True keeps."""
        parameters = dict(self.model.named_parameters())
        return {mask.tensor: mask.keep(parameters[mask.tensor].detach(), 1.0) for mask in self.masks}
