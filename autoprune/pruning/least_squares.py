"""Ridge regression, many problems at once, also on some entries of the solution only."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["towards"]

_STEPS = 100  # at most, of conjugate gradients


def towards(inputs: Tensor, outputs: Tensor, ridge: float, kept: Tensor | None = None) -> Tensor:
    """The D that minimises |X D - Y|^2 + lambda |D|^2, each of a batch: X (b, n, d), Y (b, n, o) -> D (b, d, o).

    lambda is `ridge` times the mean diagonal of X'X, and no less than rounding asks for. Where `kept`, boolean like D,
    is given, D is zero elsewhere. Inputs that are all zero give zero. Products are in the inputs' precision (single at
    least), solving is in double precision.
    """
    inputs, outputs, kind = _wide(inputs), _wide(outputs), inputs.dtype
    count, size = inputs.shape[1:]
    ridge = max(ridge, 10 * torch.finfo(inputs.dtype).eps)
    small = kept is None and count < size  # X' (XX' + lambda I)^-1 Y is the same
    gram = (inputs @ inputs.mT if small else inputs.mT @ inputs).double()
    scale = gram.diagonal(dim1=1, dim2=2).sum(1) / size
    scale = torch.where(scale > 0, scale, 1.0)[:, None]
    right = (outputs if small else inputs.mT @ outputs).double()
    found = _direct(gram, right, ridge * scale) if kept is None else _on(kept, gram, right, ridge * scale)
    found = found.to(inputs.dtype)
    return (inputs.mT @ found if small else found).to(kind)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _direct(gram: Tensor, right: Tensor, damping: Tensor) -> Tensor:
    """By Cholesky; damped tenfold where rounding has made a gram indefinite. Not a number where `gram` is none."""
    for power in range(10):
        damped = gram.clone()
        damped.diagonal(dim1=1, dim2=2).add_(damping * 10**power)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            return torch.cholesky_solve(right, factor)
    return torch.full_like(right, torch.nan)


def _on(kept: Tensor, gram: Tensor, right: Tensor, damping: Tensor) -> Tensor:
    """By conjugate gradients over the kept entries of each column (Hestenes & Stiefel 1952), scaled by the diagonal."""
    gram = gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(damping)
    scale = 1 / gram.diagonal(dim1=1, dim2=2)[:, :, None]
    found, left = torch.zeros_like(right), right * kept
    goal = 1e-10 * left.square().sum(1, keepdim=True)
    step = scale * left
    size = (left * step).sum(1, keepdim=True)
    for _ in range(min(_STEPS, gram.shape[1])):
        seen = (gram @ step) * kept
        length = size / (step * seen).sum(1, keepdim=True).clamp_min(1e-300)
        found, left = found + length * step, left - length * seen
        if bool((left.square().sum(1, keepdim=True) <= goal).all()):
            break
        fresh = scale * left
        before, size = size, (left * fresh).sum(1, keepdim=True)
        step = fresh + size / before.clamp_min(1e-300) * step
    return found
