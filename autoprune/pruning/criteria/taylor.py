"""Taylor: first-order estimate of what the loss gains when a weight goes (Molchanov et al. 2019,
arXiv:1906.10771)."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor:
    """|w · dL/dw|, the gradient taken on calibration batches."""

    scores = "elements"
    needs = ("gradients",)
    comparable = True

    def score(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Shaped like `weight`."""
        return (weight * gradient).abs()
