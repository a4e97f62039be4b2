"""Fisher: second-order estimate of what the loss gains when a weight goes (Theis et al. 2018,
arXiv:1801.05787)."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Fisher"]


@dataclass(frozen=True)
class Fisher:
    """½ w² · mean (dL/dw)²: the empirical Fisher information stands for the Hessian. The mean is
    over batches."""

    scores = "elements"
    needs = ("squared gradients",)
    comparable = True

    def score(self, weight: Tensor, squared_gradient: Tensor) -> Tensor:
        """Shaped like `weight`."""
        return weight.square() * squared_gradient / 2
