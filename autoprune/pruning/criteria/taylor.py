"""Taylor: first-order estimate of what the loss gains when a weight goes (Molchanov et al. 2019, arXiv:1906.10771)."""

from dataclasses import dataclass

from torch import Tensor

from autoprune.errors import InputError

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor:
    """|w · dL/dw|, the gradient taken on calibration batches."""

    needs_gradients = True

    def score(self, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """Shaped like `weight`."""
        if gradient is None:
            raise InputError("the criterion 'taylor' needs gradients: give batches of data and a loss")
        return (weight * gradient).abs()
