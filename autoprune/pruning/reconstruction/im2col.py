"""Linear layers and convolutions as one matrix product: rows of inputs @ weight matrix = rows of
outputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoprune.pruning.surgery.shrink import named_tensors

__all__ = ["Calls", "Contraction"]


@dataclass(frozen=True)
class Contraction:
    """One call of a linear layer (no spatial dimensions) or a convolution.

    Its rows are all (image, output position) pairs, numbered in the order of the output. A
    transposed convolution is the convolution of its input, zeros put between the pixels, with its
    flipped weight.
    """

    input: Tensor  # (N, C, *sizes)
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()  # before, after; per spatial dimension
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial shape of the weight."""
        return tuple(self.weight.shape[2:])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Spatial shape of the output."""
        axes = zip(
            self.input.shape[2:], self.padding, self.dilation, self.kernel, self.stride, strict=True
        )
        return tuple(
            (size + sum(pad) - wide * (taps - 1) - 1) // step + 1
            for size, pad, wide, taps, step in axes
        )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.input.shape[0] * math.prod(self.sizes)

    @property
    def outputs_dim(self) -> int:
        """The dimension of the weight along which outputs are cut."""
        return 1 if self.transposed and self.groups == 1 else 0

    def inputs(self, rows: Tensor) -> Tensor:
        """What these rows read: (groups, rows, kernel places * inputs of a group)."""
        pads = [length for pad in reversed(self.padding) for length in pad]
        pixels = (F.pad(self.input, pads) if any(pads) else self.input).movedim(1, -1).contiguous()
        sizes = pixels.shape[1:-1]
        image, *corner = torch.unravel_index(rows, (len(pixels), *self.sizes))
        places = (image * math.prod(sizes))[:, None]
        for dim, first in enumerate(corner):
            across = math.prod(sizes[dim + 1 :])
            taps = torch.arange(self.kernel[dim], device=rows.device) * self.dilation[dim]
            places = (
                places[:, :, None] + ((first * self.stride[dim])[:, None] + taps)[:, None] * across
            ).flatten(1)
        read = pixels.flatten(0, -2)[places.flatten()].view(*places.shape, self.groups, -1)
        return read.permute(2, 0, 1, 3).flatten(2)

    def outputs(self, out: Tensor, rows: Tensor) -> Tensor:
        """These rows of the call's result, (rows, outputs)."""
        if not self.kernel:
            return out.reshape(-1, out.shape[-1])[rows]
        image = out.reshape(self.input.shape[0], out.shape[-1 - len(self.kernel)], -1)
        return image[rows // image.shape[2], :, rows % image.shape[2]]

    def matrix(self) -> Tensor:
        """The weight as (groups, kernel places * inputs, outputs of a group)."""
        if self.transposed:
            turned = self.weight.flip(tuple(range(2, self.weight.dim())))
            turned = turned.reshape(self.groups, -1, *turned.shape[1:])
            return turned.movedim((1, 2), (-2, -1)).flatten(1, -2)
        return (
            self.weight.movedim(1, -1)
            .reshape(self.groups, len(self.weight) // self.groups, -1)
            .transpose(1, 2)
        )

    def write(self, matrix: Tensor) -> None:
        """Set the weight, in place, to what `matrix()` would give as `matrix`."""
        if self.transposed:
            turned = (
                matrix.reshape(self.groups, *self.kernel, -1, matrix.shape[2])
                .movedim((-2, -1), (1, 2))
                .flatten(0, 1)
            )
            self.weight.copy_(turned.flip(tuple(range(2, turned.dim()))))
        else:
            self.weight.copy_(matrix.mT.reshape(self.weight.movedim(1, -1).shape).movedim(-1, 1))


class Calls(TorchFunctionMode):
    """Shows every call that reads a model's tensors: layers, batch norms and all others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # By storage, which a view shares: a fused projection is read in parts, or transposed
        self.held = {
            tensor.untyped_storage().data_ptr(): (name, tensor)
            for name, tensor in named_tensors(model)
        }
        self.counts: Counter[str] = Counter()

    def name(self, tensor: Tensor | None) -> str | None:
        """Of the parameter or buffer that a tensor is, or shows a part of."""
        return (
            None
            if tensor is None
            else self.held.get(tensor.untyped_storage().data_ptr(), (None,))[0]
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READERS:
            call = _READERS[func](*args, **kwargs)
            name, first = self._place(call.weight)
            if name is not None:
                self.counts[name] += 1
                return self.layer(call, name, first, lambda: func(*args, **kwargs))
        if func is F.batch_norm:
            self.norm(*args, **kwargs)
        out = func(*args, **kwargs)
        self.other(out, args, kwargs)
        return out

    def _place(self, weight: Tensor) -> tuple[str | None, int]:
        """Name and first row of a weight that is a parameter or some whole rows of one; else no
        name."""
        name, whole = self.held.get(weight.untyped_storage().data_ptr(), (None, weight))
        if weight.shape == whole.shape and weight.stride() == whole.stride():
            return name, 0
        parts = (
            weight.is_contiguous() and whole.is_contiguous() and weight.shape[1:] == whole.shape[1:]
        )
        return (name, int(weight.storage_offset()) // weight[0].numel()) if parts else (None, 0)

    def layer(self, call: Contraction, name: str, first: int, run: Callable[[], Tensor]) -> Tensor:
        """The result of a call that reads rows of the tensor `name`, from `first` on; `run` makes
        the call."""
        raise NotImplementedError

    def norm(
        self, input: Tensor, mean: Tensor | None, var: Tensor | None, *args: Any, **kwargs: Any
    ) -> None:
        """A batch norm, before it runs."""
        raise NotImplementedError

    def other(self, out: Any, args: Any, kwargs: Any) -> None:
        """Any other call, when it has run."""


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Contraction:
    return Contraction(input.reshape(-1, input.shape[-1]), weight, bias)


def _conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Contraction:
    count = weight.dim() - 2
    dilation = _many(dilation, count)
    if padding == "same":
        # As torch does: of an odd number the greater half is put behind
        spans = [wide * (taps - 1) for wide, taps in zip(dilation, weight.shape[2:], strict=True)]
        pads = tuple((span // 2, span - span // 2) for span in spans)
    else:
        pads = tuple(
            (tensor, tensor) for tensor in _many(0 if padding == "valid" else padding, count)
        )
    return Contraction(
        _add_batch(input, weight), weight, bias, _many(stride, count), pads, dilation, groups
    )


def _conv_transpose(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Contraction:
    input, count = _add_batch(input, weight), weight.dim() - 2
    stride, padding, output_padding, dilation = (
        _many(tensor, count) for tensor in (stride, padding, output_padding, dilation)
    )
    sizes = [(size - 1) * step + 1 for size, step in zip(input.shape[2:], stride, strict=True)]
    # Zeros between the pixels make a convolution with a stride of one of it (Dumoulin & Visin 2016,
    # arXiv:1603.07285)
    apart = input.new_zeros(*input.shape[:2], *sizes)
    apart[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = input
    axes = zip(dilation, weight.shape[2:], padding, output_padding, strict=True)
    edges = [(wide * (taps - 1) - pad, extra) for wide, taps, pad, extra in axes]
    pads = tuple((edge, edge + extra) for edge, extra in edges)
    return Contraction(apart, weight, bias, (1,) * count, pads, dilation, groups, True)


def _add_batch(input: Tensor, weight: Tensor) -> Tensor:
    return input if input.dim() == weight.dim() else input[None]


def _many(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    return tuple(value) * (count if len(value) == 1 else 1)


_READERS: dict[Any, Callable[..., Contraction]] = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.conv3d: _conv,
    F.conv_transpose1d: _conv_transpose,
    F.conv_transpose2d: _conv_transpose,
    F.conv_transpose3d: _conv_transpose,
}
