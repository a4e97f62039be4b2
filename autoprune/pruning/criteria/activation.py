"""Activation: each weight times the norm of what it multiplies, as in Wanda (Sun et al. 2023,
arXiv:2306.11695)."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Activation"]


@dataclass(frozen=True)
class Activation:
    """|w| · ‖x‖₂, x the input feature over all calibration samples and positions.

    The score is the paper's. It compares weights of one output only, which is what `n_of_m` does;
    other techniques rank the whole layer. A unit sums over its linear and convolution weights:
    nothing else has an input feature.
    """

    scores = "elements"
    needs = ("activations",)
    comparable = False

    def score(self, weight: Tensor, norm: Tensor) -> Tensor:
        """Shaped like `weight`."""
        return weight.abs() * norm
