"""What layers with parameters do to channel ids: contractions end them and start fresh ones, norms
carry them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.pruning.tracing.channel_ids import Balance, spread
from autoprune.pruning.tracing.norms import Norms
from autoprune.pruning.tracing.recurrent import recurrent_rules

__all__ = ["Layers"]


class Layers(Norms):
    """Rules for functions with parameters; `handlers` maps a function to its rule `(output, *its
    arguments)`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.handlers: dict[Any, Callable[..., None]] = {
            F.linear: self._linear,
            torch.addmm: self._addmm,
            **dict.fromkeys(
                (torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__), self._matmul
            ),
            F.conv1d: self._conv,
            F.conv2d: self._conv,
            F.conv3d: self._conv,
            F.conv_transpose1d: self._conv_transpose,
            F.conv_transpose2d: self._conv_transpose,
            F.conv_transpose3d: self._conv_transpose,
            F.batch_norm: self._batch_norm,
            F.instance_norm: self._instance_norm,
            F.layer_norm: self._layer_norm,
            F.rms_norm: self._rms_norm,
            F.group_norm: self._group_norm,
            F.embedding: self._embedding,
            F.prelu: self._prelu,
            torch.prelu: self._prelu,
            **recurrent_rules(self),
        }

    def _linear(
        self,
        out: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        transposed: bool = False,
    ) -> None:
        if not self.are_parameters(weight, bias):
            return self.give_up_layer(out, input, weight, 0, "linear with a computed weight")
        ids = self.read(input, -1, "linear")
        if ids is None:
            return self._beside(out, input, weight, -1, "linear")
        own = 1 if transposed else 0
        fresh = self.fresh(weight, own)
        self.use(weight, 1 - own, ids, "consume", "linear")
        self.use(weight, own, fresh, "produce", "linear")
        self.use(bias, 0, fresh, "carry")
        self.labels.set(out, spread(fresh, out.shape, -1))

    def by_layer(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether a call is a layer's: a product of matrices is where its second factor is a
        parameter of rank two."""
        if func not in self.handlers or self.handlers[func] not in (self._matmul, self._addmm):
            return func in self.handlers
        weight, bias = (args[2], args[0]) if func is torch.addmm else (args[1], None)
        return bool(
            weight.dim() == 2
            and self.are_parameters(weight, bias)
            and not self.are_parameters(args[1 if bias is not None else 0])
        )

    def _matmul(self, out: Tensor, input: Tensor, weight: Tensor) -> None:
        self._linear(out, input, weight, transposed=True)

    def _addmm(self, out: Tensor, bias: Tensor, input: Tensor, weight: Tensor, **_: Any) -> None:
        self._linear(out, input, weight, bias, transposed=True)

    def _beside(self, out: Tensor, input: Tensor, weight: Tensor, dim: int, what: str) -> None:
        """Channels lie along other dimensions than the contracted one (token mixing): they pass,
        its own units stay."""
        labels = self.labels.get(input)
        self.labels.set(out, labels.narrow(dim, 0, 1).expand(out.shape))
        name = self.place(weight, 0)[0]
        self.refuse(
            name.removesuffix(".weight"),
            weight.shape[0],
            f"{what} beside a dimension with channels",
        )

    def _conv(
        self,
        out: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        if not self.are_parameters(weight, bias):
            return self.give_up_layer(out, input, weight, 0, "convolution with a computed weight")
        channel = input.dim() - weight.dim() + 1
        ids = self.read(input, channel, "convolution")
        if ids is None:
            return self.give_up_layer(
                out, input, weight, 0, "convolution beside a dimension with channels"
            )
        # Depthwise: a channel passes through its own filters
        if groups == len(ids) and groups > 1:
            fresh = ids.repeat_interleave(weight.shape[0] // groups)
            self.use(weight, 0, fresh, "carry", "conv")
        else:
            fresh = self.fresh(weight, 0)
            self.use(weight, 1, ids, "consume", "conv", groups)
            self.use(weight, 0, fresh, "produce", "conv")
            if groups > 1:
                why = f"grouped convolution {self.where()}"
                self.ids.balances += [Balance(ids, groups, why), Balance(fresh, groups, why)]
        self.use(bias, 0, fresh, "carry")
        self.labels.set(out, spread(fresh, out.shape, channel))

    def _conv_transpose(
        self,
        out: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> None:
        if not self.are_parameters(weight, bias):
            return self.give_up_layer(
                out, input, weight, 1, "transposed convolution with a computed weight"
            )
        channel = input.dim() - weight.dim() + 1
        ids = self.read(input, channel, "transposed convolution")
        if ids is None:
            return self.give_up_layer(
                out, input, weight, 1, "transposed convolution beside a dimension with channels"
            )
        if groups == len(ids) and groups > 1:
            fresh = ids.repeat_interleave(weight.shape[1])
            self.use(weight, 0, ids, "carry", "conv")
        elif groups > 1:
            return self.give_up_layer(out, input, weight, 1, "grouped transposed convolution")
        else:
            fresh = self.fresh(weight, 1)
            self.use(weight, 0, ids, "consume", "conv")
            self.use(weight, 1, fresh, "produce", "conv")
        self.use(bias, 0, fresh, "carry")
        self.labels.set(out, spread(fresh, out.shape, channel))

    def _embedding(self, out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> None:
        if not self.are_parameters(weight) or input in self.labels:
            return self.give_up_layer(
                out, input, weight, 1, "embedding with a computed weight or input"
            )
        fresh = self.fresh(weight, 1)
        row = self.ids.new_frozen(f"row of an embedding at {self.where()}")
        self.use(weight, 0, torch.tensor(row).expand(len(weight)), "carry")
        self.use(weight, 1, fresh, "produce", "embedding")
        self.labels.set(out, spread(fresh, out.shape, -1))
