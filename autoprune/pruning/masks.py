"""Hold weight masks on a model while it trains: set after each optimiser step, where gradual by a
schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["Mask", "Masks"]


class Gradual(Protocol):
    """A technique whose masks fill step by step."""

    def filled(self, part: float) -> float:
        """Of all that goes, how much is gone after a `part` of the way."""

    def share(self, progress: float) -> float:
        """Of all that goes, how much is gone by `progress` in training."""


@dataclass
class Mask:
    """The mask of one parameter. `keep(weight, share)` gives the pattern at a share in [0, 1] of
    the final ratio.

    A `gradual` mask is empty at first and chosen anew from the current weights whenever its share
    changes, as Zhu & Gupta 2017 (arXiv:1710.01878) do; any other is chosen once, at the start.
    """

    tensor: str
    keep: Callable[[Tensor, float], Tensor]
    gradual: Gradual | None = None
    pattern: Tensor | None = None
    share: float | None = None  # that the pattern is of


@dataclass
class Masks:
    """All masks of a model; those that are not gradual are set at once."""

    model: nn.Module
    masks: list[Mask] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._set({mask.tensor: 0.0 if mask.gradual else 1.0 for mask in self.masks})

    @property
    def gradual(self) -> bool:
        """Whether any of them is."""
        return any(mask.gradual for mask in self.masks)

    def step(self, progress: float) -> None:
        """Zero what is masked at `progress` in training; call it after each optimiser step."""
        self._set(
            {
                mask.tensor: mask.gradual.share(progress) if mask.gradual else 1.0
                for mask in self.masks
            }
        )

    def fill(self, part: float, progress: float) -> bool:
        """Zero what goes after a `part` of the way to what is masked at `progress`; whether any
        mask is another now."""
        return self._set(
            {
                mask.tensor: min(mask.gradual.filled(part), mask.gradual.share(progress))
                if mask.gradual
                else 1.0
                for mask in self.masks
            }
        )

    @torch.no_grad()
    def _set(self, shares: Mapping[str, float]) -> bool:
        parameters, changed = dict(self.model.named_parameters()), False
        for mask in self.masks:
            weight, share = parameters[mask.tensor], shares[mask.tensor]
            if mask.pattern is None or mask.share != share:
                mask.pattern, mask.share = mask.keep(weight.detach(), share), share
                changed = True
            weight.mul_(mask.pattern.to(weight.device))
        return changed

    def finish(self) -> None:
        """Set every mask to its final ratio and let go of them: from here an exact zero is the
        mask."""
        self.step(1.0)
        self.masks = []

    def final(self) -> dict[str, Tensor]:
        """Which weights each parameter will keep, chosen from the weights as they are now; True
        keeps."""
        parameters = dict(self.model.named_parameters())
        return {
            mask.tensor: mask.keep(parameters[mask.tensor].detach(), 1.0) for mask in self.masks
        }
