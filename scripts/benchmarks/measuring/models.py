"""Models and random plans of the measuring benchmark."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.measuring import flops
from autoprune.measuring.onnx_slicing.slicer import Slicer, export
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.coupling.verify import discover
from autoprune.target import Target
from autoprune.task import Inputs


def build(name: str) -> nn.Module:
    """A torchvision model with random weights, or `vit`: 6 blocks of width 192, patches of 16
    pixels."""
    import torchvision

    torch.manual_seed(0)
    if name == "vit":
        settings = dict(
            image_size=224, patch_size=16, num_layers=6, num_heads=3, hidden_dim=192, mlp_dim=768
        )
        return torchvision.models.VisionTransformer(**settings).eval()
    return torchvision.models.get_model(name, weights=None).eval()


@dataclass
class Subject:
    """A dense model, its groups, and its exported graph."""

    model: nn.Module
    inputs: Inputs
    coupling: Coupling
    slicer: Slicer

    @classmethod
    def of(cls, name: str, size: int) -> Subject:
        model, inputs = build(name), Inputs.of(torch.randn(2, 3, size, size))
        return cls(model, inputs, discover(model, inputs), Slicer(model, inputs))

    def plan(self, seed: int, top: float = 0.7, eights: bool = False) -> dict[str, Tensor]:
        """Kept units of every group; each group loses its own random share of up to `top`."""
        draw = random.Random(seed)
        keep = {}
        for key, members in self.coupling.members.items():
            if self.coupling.group(key).refusal is not None:
                continue
            cells, size = members.shape
            left = max(1, round(size * (1 - draw.uniform(0, top))))
            left = min(size, max(8, 8 * round(left / 8))) if eights and size >= 16 else left
            keep[key] = (torch.arange(size) < left).repeat(cells)
        return keep

    def flops(self, keep: dict[str, Tensor]) -> float:
        """FLOPs of a plan over those of the dense model."""
        one = self.inputs.rows(1)
        return (
            flops.count(self.coupling.apply(self.model, keep), one).total
            / flops.count(self.model, one).total
        )

    def artefacts(self, keep: dict[str, Tensor], target: Target) -> tuple[Any, Any]:
        """What the target's runtime takes: the plan's, and the dense model's."""
        if plugins.load("runtime", target.runtime)().artefact != "onnx":
            return self.coupling.apply(self.model, keep), self.model
        cuts = self.coupling.cuts(keep)
        if self.slicer.refuses(cuts) is None:
            return self.slicer.cut(cuts), self.slicer.dense
        return export(self.coupling.apply(self.model, keep), self.inputs), self.slicer.dense
