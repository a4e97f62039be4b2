"""Ridge regression, many problems at once, also on some entries of the solution only; its strength
by held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Regression", "towards"]

# Conjugate gradients are exact after as many steps as there are unknowns; a wide layer stops here
_STEPS = 100
# Rows for each input. With so many, solving again with the held-out ones too changes little
_PLENTY = 10


@dataclass(frozen=True)
class Regression:
    """Outputs (b, n, o) from inputs (b, n, d): Y = X D + shift, the shift only where it is
    `shifted`.

    D is zero where `kept`, boolean like D, is not.
    """

    inputs: Tensor
    outputs: Tensor
    shifted: bool
    kept: Tensor | None = None

    def rows(self, chosen: Tensor) -> Regression:
        """The same on some rows, boolean (n,), only."""
        return replace(self, inputs=self.inputs[:, chosen], outputs=self.outputs[:, chosen])

    def solve(self, ridges: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
        """D (b, d, o) and shift (b, 1, o) for each strength, as `towards` takes it."""
        centre, rest = (
            tensor.mean(1, keepdim=True) * self.shifted for tensor in (self.inputs, self.outputs)
        )
        for change in towards(self.inputs - centre, self.outputs - rest, ridges, self.kept):
            yield change, rest - centre @ change

    def validate(
        self, ridges: Sequence[float], held: Tensor, centred: bool
    ) -> tuple[Tensor, Tensor] | None:
        """D and shift of the strength with the least squared error on the rows `held`, when fitted
        on the others.

        Where rows are few, then fitted on all. None where it gains less over no change than the
        standard error of that gain, or either part has no rows. `centred`: the mean error is no
        error.
        """
        if not bool(held.any()) or bool(held.all()):
            return None
        test, rest = self.rows(held), self.rows(~held)

        def sizes(error: Tensor) -> Tensor:
            return (error - error.mean(1, keepdim=True) * centred).double().square().sum((0, 2))

        best, most, before = None, 0.0, sizes(test.outputs)
        for ridge, (change, shift) in zip(ridges, rest.solve(ridges), strict=True):
            gains = before - sizes(test.outputs - test.inputs @ change - shift)
            gain, error = float(gains.sum()), float(gains.norm())
            # Of one held-out row the gain is its own error: 0.99 of it lets such a row count
            if gain > most and gain > 0.99 * error:
                best, most = (ridge, change, shift), gain
        if best is None:
            return None
        return (
            best[1:]
            if rest.inputs.shape[1] >= _PLENTY * rest.inputs.shape[2]
            else next(self.solve(best[:1]))
        )


def towards(
    inputs: Tensor, outputs: Tensor, ridges: Sequence[float], kept: Tensor | None = None
) -> Iterator[Tensor]:
    """The D that minimises |X D - Y|^2 + lambda |D|^2, each of a batch: X (b, n, d), Y (b, n, o) ->
    D (b, d, o).

    One for each of `ridges`: lambda is that times the mean diagonal of X'X, and no less than
    rounding asks for. Where `kept`, boolean like D, is given, D is zero elsewhere. Inputs that are
    all zero give zero. Products are in the inputs' precision (single at least), solving is in
    double precision.
    """
    inputs, outputs, kind = _wide(inputs), _wide(outputs), inputs.dtype
    count, size = inputs.shape[1:]
    small = kept is None and count < size  # X' (XX' + lambda I)^-1 Y is the same
    gram = (inputs @ inputs.mT if small else inputs.mT @ inputs).double()
    scale = gram.diagonal(dim1=1, dim2=2).sum(1) / size
    scale = torch.where(scale > 0, scale, 1.0)[:, None]
    right = (outputs if small else inputs.mT @ outputs).double()
    for ridge in ridges:
        damping = max(ridge, 10 * torch.finfo(inputs.dtype).eps) * scale
        solution = (
            _direct(gram, right, damping) if kept is None else _on(kept, gram, right, damping)
        )
        solution = solution.to(inputs.dtype)
        yield (inputs.mT @ solution if small else solution).to(kind)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _direct(gram: Tensor, right: Tensor, damping: Tensor) -> Tensor:
    """By Cholesky; damped tenfold where rounding has made a gram indefinite. Not a number where
    `gram` is none."""
    for power in range(10):
        damped = gram.clone()
        damped.diagonal(dim1=1, dim2=2).add_(damping * 10**power)
        # Unlike `cholesky` it does not raise, so that one bad problem of a batch is not all of it
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            return torch.cholesky_solve(right, factor)
    return torch.full_like(right, torch.nan)


def _on(kept: Tensor, gram: Tensor, right: Tensor, damping: Tensor) -> Tensor:
    """By conjugate gradients over the kept entries of each column (Hestenes & Stiefel 1952), scaled
    by the diagonal."""
    gram = gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(damping)
    scale = 1 / gram.diagonal(dim1=1, dim2=2)[:, :, None]
    solution, left = torch.zeros_like(right), right * kept
    # Of squares: the residual comes down to 1e-5 of what it was
    goal = 1e-10 * left.square().sum(1, keepdim=True)
    step = scale * left
    size = (left * step).sum(1, keepdim=True)
    for _ in range(min(_STEPS, gram.shape[1])):
        seen = (gram @ step) * kept
        # A column that is solved has no step left: 0 / 1e-300 leaves it as it is, 0 / 0 would not
        length = size / (step * seen).sum(1, keepdim=True).clamp_min(1e-300)
        solution, left = solution + length * step, left - length * seen
        if bool((left.square().sum(1, keepdim=True) <= goal).all()):
            break
        fresh = scale * left
        before, size = size, (left * fresh).sum(1, keepdim=True)
        step = fresh + size / before.clamp_min(1e-300) * step
    return solution
