"""Weights that are computed from others: `weight_norm` and `spectral_norm` keep their function when
channels go.

Both divide a weight by a norm of all of it, and that norm would change with a cut. What they
multiply by is scaled so that in eval mode the cut weight is a part of the dense one (Salimans &
Kingma 2016, arXiv:1602.07868; Miyato et al. 2018, arXiv:1802.05957). Training goes on from there as
they define it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["Reparametrised", "computed_weights", "kept_function"]


@dataclass(frozen=True)
class Reparametrised:
    """`direction` is the tensor that has the weight's shape, `scale` the one that is scaled to keep
    its function.

    Weight norm: direction v, scale g, along `dim`. Spectral norm: direction W, scale u, `right` v.
    """

    direction: str
    scale: str
    dim: int
    right: str | None = None


def computed_weights(model: nn.Module) -> Iterator[Reparametrised]:
    """Every weight of a model that is computed by weight norm or spectral norm."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield Reparametrised(f"{prefix}{hook.name}_v", f"{prefix}{hook.name}_g", hook.dim)
        for own, chain in getattr(module, "parametrizations", {}).items():
            place = f"{prefix}parametrizations.{own}"
            if len(chain) == 1 and isinstance(chain[0], _WeightNorm):
                yield Reparametrised(f"{place}.original1", f"{place}.original0", chain[0].dim)
            elif len(chain) == 1 and isinstance(chain[0], _SpectralNorm) and chain[0].dim >= 0:
                dim = chain[0].dim
                if chain.original.dim() > 1:
                    yield Reparametrised(f"{place}.original", f"{place}.0._u", dim, f"{place}.0._v")


def kept_function(
    model: nn.Module,
    along: Callable[[Reparametrised], Tensor],
    new: Callable[[str, Tensor], Tensor],
) -> Callable[[str, Tensor], Tensor]:
    """`new`, a change of tensors by name, with the scales of computed weights set so that these
    only lose entries.

    `along` gives a direction with only the channels along the scale's own dimension cut.
    """
    scaled = {weight.scale: weight for weight in computed_weights(model)}

    def keeping(name: str, tensor: Tensor) -> Tensor:
        fresh = new(name, tensor)
        parametrized = scaled.get(name)
        if parametrized is None:
            return fresh
        after = new(parametrized.direction, model.get_parameter(parametrized.direction).detach())
        if parametrized.right is None:
            factor = _norms(after, parametrized.dim) / _norms(along(parametrized), parametrized.dim)
        else:
            right = model.get_buffer(parametrized.right)
            before = _sigma(
                model.get_parameter(parametrized.direction).detach(),
                tensor,
                right,
                parametrized.dim,
            )
            factor = before / _sigma(after, fresh, new(parametrized.right, right), parametrized.dim)
        return fresh * factor.to(fresh)

    return keeping if scaled else new


def _norms(weight: Tensor, dim: int) -> Tensor:
    # A direction of zeros has no norm to divide by
    return torch.norm_except_dim(weight, 2, dim).clamp_min(1e-30)


def _sigma(weight: Tensor, left: Tensor, right: Tensor, dim: int) -> Tensor:
    return left @ (weight.movedim(dim, 0).flatten(1) @ right)
