"""One threshold over the weights of all layers: what a global share comes to in each of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Threshold"]


class Threshold:
    """Weights of several layers ranked together, by name: scores as they are, so they have to
    compare across layers.

    With the magnitude this is global magnitude pruning; with LAMP's scores it is layer-adaptive
    (Lee et al. 2021, arXiv:2010.07611), and no layer loses all.
    """

    def __init__(self, scores: Mapping[str, Tensor]) -> None:
        self._sizes = {name: tensor.numel() for name, tensor in scores.items()}
        owners = [torch.full((size,), place) for place, size in enumerate(self._sizes.values())]
        order = torch.cat(
            [score.detach().flatten().double().cpu() for score in scores.values()]
        ).argsort(stable=True)
        # Of the weights, the least important first
        self._owners = torch.cat(owners)[order]

    def ratios(self, share: float) -> dict[str, float]:
        """The share that each layer loses where `share` of all weights goes, the least important;
        one stays in each."""
        gone = torch.bincount(
            self._owners[: round(share * len(self._owners))], minlength=len(self._sizes)
        ).tolist()
        sizes = self._sizes.items()
        return {
            name: min(count, size - 1) / size
            for (name, size), count in zip(sizes, gone, strict=True)
        }
