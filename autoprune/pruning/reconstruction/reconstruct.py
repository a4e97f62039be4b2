"""Repair: after a cut, the weights of each layer solved anew so that it gives what the dense layer
gave.

To rank plans, to start their training from, and to prune where nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autoprune.errors import InputError
from autoprune.pruning.calibration import join_batches
from autoprune.pruning.reconstruction.im2col import Calls, Contraction
from autoprune.pruning.reconstruction.ridge import Regression
from autoprune.pruning.surgery.attention import Attention
from autoprune.pruning.surgery.forward import plain_forward
from autoprune.pruning.surgery.shrink import Cut, named_tensors, replace_tensors
from autoprune.task import Batch, Inputs

__all__ = ["Reference", "repair"]

# One of so many images is held out
_HELD = 5
# Times the ridge: the fewer rows a layer has for each input, the more is needed, and what is held
# out tells how much
_STRENGTHS = (1, 10, 100)
# Relative to the largest: what differs by less is what the dense model gives
_SAME = 1e-5


def repair(
    pruned: nn.Module,
    dense: nn.Module,
    cuts: Sequence[Cut],
    batches: Iterable[Batch],
    *,
    images: int = 512,
    positions: int = 20,
    ridge: float = 1.0,
    seed: int = 0,
) -> nn.Module:
    """A repaired copy of `pruned`; see `Reference`, which serves many plans of one dense model."""
    return Reference(dense, batches, images=images, positions=positions, seed=seed).repair(
        pruned, cuts, ridge=ridge
    )


class Reference:
    """What the layers of a dense model give on the first `images` inputs, at about `positions`
    places of each.

    The places are drawn once, by `seed`; the copies that `repair` gives depend on nothing else.
    `dense` is untouched. Every fifth image, one at least, is held out to judge by. It wants some
    hundred images; with a few dozen much stays as cut. It holds one float per layer output, image
    and place. Batches of other shapes than the first are left out. Raises InputError for less than
    two images.
    """

    def __init__(
        self,
        dense: nn.Module,
        batches: Iterable[Batch],
        *,
        images: int = 512,
        positions: int = 20,
        seed: int = 0,
    ) -> None:
        if min(images, positions) < 1:
            raise InputError(
                f"a reconstruction needs images and positions of at least 1; got {images} and "
                f"{positions}"
            )
        # A forward may write into buffers
        copy = replace_tensors(dense, lambda name, tensor: tensor.clone())
        Attention.take_over_all(copy)
        self.inputs = join_batches(batches, images)
        if self.inputs.batch_size < 2:
            raise InputError(
                "a reconstruction needs at least 2 inputs, one of them to judge by, better some "
                "hundred; got 1"
            )
        seen = _Observed(copy, self.inputs.batch_size, positions, seed)
        _run(copy, self.inputs, seen)
        self.layers = seen.alone()
        self.norms = {name: calls[0] for name, calls in seen.norms.items() if len(calls) == 1}

    def repair(
        self,
        pruned: nn.Module,
        cuts: Sequence[Cut],
        *,
        ridge: float = 1.0,
        frozen: Container[str] = (),
    ) -> nn.Module:
        """A copy of `pruned` whose layers give, as nearly as they can, the kept outputs of the
        dense layers.

        In one forward, just before a layer runs, its W = argmin |XW - Y|^2 + lambda |W - W0|^2 is
        solved: X is what the copy, repaired up to there, feeds it, Y what the dense layer gave, W0
        its weights, lambda = `ridge` times the mean square of a column of X (He et al. 2017,
        arXiv:1707.06168). Its bias follows the means. Exact zeros of W0 stay. Of `ridge`, ten and a
        hundred times as much, what is best on the images held out is taken when solved without
        them; then, where places are few, it is solved with all. Where none is clearly better than
        W0, W0 stays. Batch norms are moved so that what they give has the mean and variance it had.
        What receives the same as in the dense model stays as it is, cut or not; and so does a layer
        with a parameter that is named in `frozen`.

        Covered: linear layers, convolutions and transposed ones, grouped or not, and attention
        projections; not what is used more than once in a forward, is tied to something else or is
        computed (weight norm).
        """
        if not ridge >= 0:
            raise InputError(
                f"ridge is a share of the inputs' mean square, at least 0; got {ridge}"
            )
        copy = replace_tensors(pruned, lambda name, tensor: tensor.clone())
        held, seen = dict(named_tensors(copy)), _Solved(copy, self, cuts, ridge, frozen)
        _run(copy, self.inputs, seen)
        # Not the copy itself: its forward may have written into other buffers
        return replace_tensors(
            pruned,
            lambda name, tensor: held[name].detach() if name in seen.solved else tensor.clone(),
        )


def _run(model: nn.Module, inputs: Inputs, seen: Calls) -> None:
    device = next((tensor.device for _, tensor in named_tensors(model)), torch.device("cpu"))
    with plain_forward(model), seen:
        inputs.to(device).call(model)


@dataclass(frozen=True)
class _Layer:
    """One layer of the dense model: the places drawn and its outputs there."""

    total: int  # rows in all
    rows: Tensor
    held: Tensor  # which of the rows are of images held out
    first: int  # of the tensor's rows, the first one the layer uses
    outputs: Tensor  # (rows, outputs)
    normed: bool = False  # read by a batch norm, for which means do not matter


class _Observed(Calls):
    """Notes what the dense model's layers give."""

    def __init__(self, model: nn.Module, images: int, positions: int, seed: int) -> None:
        super().__init__(model)
        self.images, self.positions, self.seed = images, positions, seed
        self.layers: dict[str, list[_Layer]] = {}
        self.norms: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.read: set[str] = set()  # by something that is no layer
        self.last: tuple[str, Tensor | None] = ("", None)

    def alone(self) -> dict[str, list[_Layer]]:
        """The layers of each tensor whose every row is used by one layer, and by nothing else."""
        first_rows = {
            name: [layer.first for layer in layers] for name, layers in self.layers.items()
        }
        return {
            name: self.layers[name]
            for name, firsts in first_rows.items()
            if name not in self.read and len(set(firsts)) == len(firsts)
        }

    def layer(self, call: Contraction, name: str, first: int, run: Callable[[], Tensor]) -> Tensor:
        out = run()
        generator = torch.Generator().manual_seed(self.seed)
        # Of two images one is held out
        count, every = self.images * self.positions, min(_HELD, self.images)
        rows = torch.randperm(call.rows, generator=generator)[:count].sort().values.to(out.device)
        held = rows * self.images // call.rows % every == every - 1
        self.layers.setdefault(name, []).append(
            _Layer(call.rows, rows, held, first, call.outputs(out, rows))
        )
        self.last = name, out
        return out

    def norm(
        self, input: Tensor, mean: Tensor | None, var: Tensor | None, *args: Any, **kwargs: Any
    ) -> None:
        name = self.name(mean)
        # One value a channel has no variance
        if name is not None and input.numel() > input.shape[1]:
            self.norms.setdefault(name, []).append(_statistics(input))
        # A norm takes the mean away: a shift of all that the layer before it gives is no error
        if input is self.last[1]:
            self.layers[self.last[0]][-1] = replace(self.layers[self.last[0]][-1], normed=True)

    def other(self, out: Any, args: Any, kwargs: Any) -> None:
        """Note the tensors read, but not those of which a part or a view is taken."""
        shown = {self.name(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
        if shown:
            named = {
                self.name(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
            }
            self.read |= {name for name in named - shown if name is not None}


class _Solved(Calls):
    """Repairs a cut model, layer by layer, while it runs."""

    def __init__(
        self,
        model: nn.Module,
        reference: Reference,
        cuts: Sequence[Cut],
        ridge: float,
        frozen: Container[str],
    ) -> None:
        super().__init__(model)
        self.reference, self.ridge, self.frozen = reference, ridge, frozen
        self.solved: set[str | None] = set()  # tensors set anew
        self.cuts: dict[str, list[Cut]] = {}
        for cut in cuts:
            self.cuts.setdefault(cut.tensor, []).append(cut)

    def layer(self, call: Contraction, name: str, first: int, run: Callable[[], Tensor]) -> Tensor:
        layers, number = self.reference.layers.get(name, []), self.counts[name] - 1
        changeable = name not in self.frozen and self.name(call.bias) not in self.frozen
        if changeable and number < len(layers) and layers[number].total == call.rows:
            wanted = self._dense_outputs(call, name, layers[number])
            if _solve(call, layers[number], wanted, self.ridge):
                self.solved |= {name, self.name(call.bias)}
        return run()

    def _dense_outputs(self, call: Contraction, name: str, layer: _Layer) -> Tensor:
        """What the dense layer gave, kept outputs only."""
        wanted = layer.outputs
        for cut in self.cuts.get(name, []):
            if cut.groups == 1 and cut.dim == call.outputs_dim:
                keep = cut.keep.repeat_interleave(max(1, wanted.shape[1] // len(cut.keep)))
                wanted = wanted[
                    :, keep[layer.first : layer.first + wanted.shape[1]].to(wanted.device)
                ]
        return wanted.to(call.weight.device)

    def norm(
        self, input: Tensor, mean: Tensor | None, var: Tensor | None, *args: Any, **kwargs: Any
    ) -> None:
        name = self.name(mean)
        if mean is None or var is None or name not in self.reference.norms:
            return
        before = self.reference.norms[name]
        for cut in self.cuts.get(name, []):
            before = before[0][cut.keep], before[1][cut.keep]
        now = _statistics(input)
        same = all(
            bool(((a - b).abs() <= _SAME * b.abs().max()).all())
            for a, b in zip(now, before, strict=True)
        )
        if not same and all(bool(tensor.isfinite().all()) for tensor in now):
            _follow(mean, var, before, now)
            self.solved |= {name, self.name(var)}


def _statistics(input: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, as batch norm takes them for its running ones."""
    var, mean = torch.var_mean(input, [dim for dim in range(input.dim()) if dim != 1])
    return mean, var


def _follow(
    mean: Tensor, var: Tensor, before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]
) -> None:
    """Move a norm's statistics as those of what it receives moved; its own may be of other data,
    and stay so."""
    wider = now[1] / before[1]
    varied = wider.isfinite() & (wider > 0)
    wider = torch.where(varied, wider, 1.0)
    mean.copy_(torch.where(varied, now[0] + (mean - before[0]) * wider.sqrt(), now[0]))
    var.copy_(torch.where(varied, var * wider, now[1]))


def _solve(call: Contraction, layer: _Layer, wanted: Tensor, ridge: float) -> bool:
    """Set the weight and the bias to what gives the wanted outputs, (rows, outputs); False where
    they stay."""
    rows, old = layer.rows.to(call.weight.device), call.matrix()
    inputs = call.inputs(rows)
    missing = wanted.reshape(len(rows), call.groups, -1).transpose(0, 1) - inputs @ old
    if call.bias is not None:
        missing = missing - call.bias.reshape(call.groups, 1, -1)
    if not bool(missing.abs().max() > _SAME * wanted.abs().max()):
        return False
    kept, shifted = old != 0, call.bias is not None or layer.normed
    problem = Regression(inputs, missing, shifted, None if bool(kept.all()) else kept)
    strengths = sorted({ridge * factor for factor in _STRENGTHS})
    solution = problem.validate(strengths, layer.held.to(rows.device), centred=layer.normed)
    if solution is None or not bool(solution[0].isfinite().all()):
        return False
    change, shift = solution
    call.write(old + change)
    if call.bias is not None:
        call.bias.add_(shift.flatten())
    return True
