"""Layers whose zeros are left out: the same function as the dense layer, from a sparse matrix. For
inference only."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.measuring.sparse_kernels import kernels
from autoprune.measuring.sparse_kernels.kernels import KERNELS

__all__ = [
    "LoweredConv2d",
    "LoweredLayer",
    "LoweredLinear",
    "densify",
    "lower_layer",
    "lowered_layers",
    "replace_layers",
]


# Rows of one CSR product: their inputs stay in cache, 197 rows take 0.6 to 0.9 of the time of one
# product
_ROWS = 32


class LoweredLayer(nn.Module):
    """A weight (outputs, inputs) as a sparse matrix, and a bias (outputs,) or None. `state_dict` is
    the dense layer's.

    Its forward raises ModelError while training, or where a gradient is asked for: `densify(model)`
    is dense again.
    """

    bias: Tensor | None
    values: Tensor
    crow: Tensor | None
    col: Tensor | None

    def __init__(self, kernel: str, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if kernel not in KERNELS:
            raise ModelError(
                f"unknown kernel {kernel!r} of a lowered layer; known: {', '.join(KERNELS)}"
            )
        self.kernel, self.shape = kernel, tuple(weight.shape)
        self._matrix: Tensor | None = None
        self._pack(weight)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.training = False

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew at each call, in the dense layer's shape."""
        dense = self.values if self.crow is None else self._build_matrix().to_dense()
        return dense.reshape(self.shape)

    def multiply(self, columns: Tensor) -> Tensor:
        """weight (O, K) times columns (K, M), without the bias: (O, M)."""
        if self._matrix is None or self._matrix.device != self.values.device:
            # A tensor made in inference mode could not be used outside it, and this one is kept
            with torch.inference_mode(False), torch.no_grad():
                self._matrix = self._build_matrix()
        if columns.shape[1] == 1 and self.kernel == "csr":
            # Twice as fast as a product with one column
            return torch.mv(self._matrix, columns[:, 0])[:, None]
        return torch.mm(self._matrix, columns)

    def check(self, input: Tensor) -> None:
        """Raise ModelError where this layer is used for more than inference."""
        if self.training or (torch.is_grad_enabled() and input.requires_grad):
            what = "is in training mode" if self.training else "was asked for a gradient"
            raise ModelError(
                f"a lowered layer ({self.extra_repr()}) {what}, and it is for inference only; "
                "call model.eval(), or "
                "make it dense again: autoprune.load(folder, lowered=False), or densify(model)"
            )

    def dense(self) -> nn.Module:
        """The layer that this one stands for."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """As `csr, (64, 32), 90.0% zeros`."""
        zeros = 1 - int(torch.count_nonzero(self.values)) / math.prod(self.shape)
        return f"{self.kernel}, {self.shape}, {zeros:.1%} zeros"

    def _pack(self, weight: Tensor) -> None:
        matrix = weight.detach().reshape(len(weight), -1)
        self.size = tuple(matrix.shape)
        self._matrix = None
        for name, tensor in zip(
            ("values", "crow", "col"), kernels.pack(self.kernel, matrix), strict=True
        ):
            self.register_buffer(name, tensor, persistent=False)

    def _build_matrix(self) -> Tensor:
        return kernels.matrix(self.kernel, self.size, self.values, self.crow, self.col)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self._matrix = None
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        # A sparse tensor cannot be copied with its module; it is built anew in the copy
        return {**self.__dict__, "_matrix": None}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        *rest: Any,
    ) -> None:
        name = prefix + "weight"
        if name in state_dict:
            self._pack(state_dict[name].reshape(self.shape).to(self.values))
        elif strict:
            missing.append(name)
        others = {key: tensor for key, tensor in state_dict.items() if key != name}
        super()._load_from_state_dict(others, prefix, metadata, strict, missing, *rest)


class LoweredLinear(LoweredLayer):
    """(..., inputs) -> (..., outputs), contiguous."""

    def __init__(self, kernel: str, layer: nn.Linear) -> None:
        super().__init__(kernel, layer.weight, layer.bias)
        self.out_features, self.in_features = layer.out_features, layer.in_features

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Linear."""
        self.check(input)
        rows = input.reshape(-1, input.shape[-1])
        output = rows.new_empty(len(rows), self.size[0])
        step = _ROWS if self.kernel == "csr" and len(rows) >= 2 * _ROWS else max(1, len(rows))
        for part, out in zip(torch.split(rows, step), torch.split(output, step), strict=True):
            product = self.multiply(part.t()).t()
            if self.bias is None:
                out.copy_(product)
            else:  # one pass that transposes and adds
                torch.add(product, self.bias, out=out)
        return output.view(*input.shape[:-1], self.size[0])

    def dense(self) -> nn.Module:
        """An nn.Linear with these values."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return _fill_layer(layer, self)


class LoweredConv2d(LoweredLayer):
    """(N, C, H, W) or (C, H, W) as nn.Conv2d without groups: 1x1 on the image as it is, larger ones
    on its patches."""

    def __init__(self, kernel: str, layer: nn.Conv2d) -> None:
        super().__init__(kernel, layer.weight, layer.bias)
        self.window: dict[str, Any] = {
            name: getattr(layer, name) for name in ("kernel_size", "dilation", "padding", "stride")
        }
        ones, zeros = (1, 1), (0, 0)
        self.pointwise = (layer.kernel_size, layer.stride, layer.padding) == (ones, ones, zeros)

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Conv2d."""
        self.check(input)
        images = input if input.dim() == 4 else input[None]
        # (N, K, L)
        places = images.flatten(2) if self.pointwise else F.unfold(images, **self.window)
        count, length = places.shape[0], places.shape[2]
        columns = places[0] if count == 1 else places.transpose(0, 1).reshape(places.shape[1], -1)
        output = self.multiply(columns)
        if self.bias is not None:
            output = output.add_(self.bias[:, None])
        output = (
            output.view(-1, count, length)
            .transpose(0, 1)
            .reshape(count, -1, *self._positions(images))
        )
        return output if input.dim() == 4 else output[0]

    def _positions(self, images: Tensor) -> tuple[int, int]:
        """Height and width of the output."""
        window = zip(
            *(self.window[name] for name in ("kernel_size", "dilation", "padding", "stride")),
            strict=True,
        )
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, (kernel, dilation, padding, stride) in zip(
                images.shape[2:], window, strict=True
            )
        )
        return height, width

    def dense(self) -> nn.Module:
        """An nn.Conv2d with these values."""
        outputs, inputs = self.shape[:2]
        layer = nn.Conv2d(inputs, outputs, bias=self.bias is not None, device="meta", **self.window)
        return _fill_layer(layer, self)


def _fill_layer(layer: nn.Module, lowered: LoweredLayer) -> nn.Module:
    parameters = {"weight": lowered.weight} | (
        {} if lowered.bias is None else {"bias": lowered.bias}
    )
    for name, tensor in parameters.items():
        setattr(layer, name, nn.Parameter(tensor.detach().clone()))
    return layer.train(lowered.training)


def lower_layer(layer: nn.Module, kernel: str, name: str) -> LoweredLayer:
    """The layer of that name with its zeros left out. Raises ModelError for one that cannot be."""
    try:
        if isinstance(layer, nn.Linear):
            return LoweredLinear(kernel, layer)
        if isinstance(layer, nn.Conv2d):
            return LoweredConv2d(kernel, layer)
    except RuntimeError as error:  # a tile format of a shape that it does not divide
        raise ModelError(
            f"{name} cannot be lowered to {kernel!r}: {str(error).splitlines()[0]}"
        ) from error
    raise ModelError(
        f"{name} is a {type(layer).__name__}; linear layers and convolutions can be lowered"
    )


def lowered_layers(model: nn.Module) -> Iterator[tuple[str, LoweredLayer]]:
    """Every lowered layer of a model, with its name."""
    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, LoweredLayer)
    )


def densify(model: nn.Module) -> nn.Module:
    """A copy with dense layers in the place of lowered ones, to train or export; a model without
    any is given back.

    Lowering freezes all parameters: in the copy all of them take gradients again.
    """
    lowered = dict(lowered_layers(model))
    if not lowered:
        return model
    dense = copy.deepcopy(model)
    replace_layers(dense, {name: layer.dense() for name, layer in lowered.items()})
    return dense.requires_grad_(True)


def replace_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put modules in the place of those of the same name, under every name that they have, in
    `model` itself."""
    new = {id(model.get_submodule(name)): layer for name, layer in layers.items()}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in new:
                setattr(parent, name, new[id(child)])
        # Its fused path would read the weights past the layers
        if isinstance(parent, nn.TransformerEncoderLayer):
            kind = 1 if parent.activation is F.relu or isinstance(parent.activation, nn.ReLU) else 0
            kind = (
                2 if parent.activation is F.gelu or isinstance(parent.activation, nn.GELU) else kind
            )
            # torch's numbers of ReLU and GELU; 0: it has no fused form of the activation
            parent.activation_relu_or_gelu = 0 if any(lowered_layers(parent)) else kind
