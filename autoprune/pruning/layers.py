"""What layers with parameters do to channel ids: contractions end them and start fresh ones, norms carry them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from autoprune.pruning.ids import Balance, Ids, Labels, Use, spread, vector_along
from autoprune.pruning.ids import varying as varying_dims
from autoprune.pruning.shrink import named_tensors

__all__ = ["Layers"]


class Layers:
    """Rules for functions with parameters; `handlers` maps a function to its rule `(output, *its arguments)`."""

    def __init__(self, model: nn.Module, ids: Ids, labels: Labels, where: Callable[[], str]) -> None:
        self.ids, self.labels, self.where = ids, labels, where
        self.names = {id(tensor): name for name, tensor in named_tensors(model)}
        self.norm_calls: dict[
            int, Tensor
        ] = {}  # n-th call of layer_norm, rms_norm or group_norm -> ids of its channels
        self.norm_count = 0
        self.positions = WeakIdKeyDictionary()  # tensor moved out of a parameter -> (name, flat positions in it)
        self.opaque: dict[str, str] = {}  # parameter -> why what reads it is covered by no rule
        self.refused: dict[str, tuple[int, str]] = {}  # layer that no rule covers -> (units, why)
        self.born: dict[
            tuple[str, int], Tensor
        ] = {}  # parameter, dimension -> ids of its channels, the same at every use
        self.handlers: dict[Any, Callable[..., None]] = {
            F.linear: self._linear,
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
            F.scaled_dot_product_attention: self._attention,
        }

    def use(
        self, tensor: Tensor | None, dim: int, ids: Tensor, role: str, kind: str = "other", groups: int = 1
    ) -> None:
        """Tie a dimension of a parameter or buffer to ids."""
        if tensor is not None:
            self.ids.uses.append(Use(self.names[id(tensor)], dim, ids.clone(), role, kind, groups))  # type: ignore[arg-type]

    def give_up(self, out: Tensor, inputs: Sequence[Tensor | None], why: str) -> None:
        """Freeze the ids and the parameters that reach this call, and whatever its output is joined with."""
        why = f"{why} at {self.where()}"
        for tensor in inputs:
            if tensor is None:
                continue
            if tensor in self.labels:
                self.ids.freeze(self.labels.get(tensor), why)
            name = self.names.get(id(tensor)) or self.positions.get(tensor, ("", None))[0]  # type: ignore[no-untyped-call]
            if name:
                self.opaque.setdefault(name, why)
        if out.is_floating_point():
            self.labels.set(out, torch.tensor(self.ids.new_frozen(why)).expand(out.shape))

    def refuse(self, layer: str, units: int, why: str) -> None:
        """Name a layer whose units cannot be cut, so that it stands in the table of groups."""
        self.refused.setdefault(layer, (units, f"{why} at {self.where()}"))

    def give_up_layer(self, out: Tensor, input: Tensor, weight: Tensor, dim: int, why: str) -> None:
        """As `give_up`, for a layer that would have started fresh ids on dimension `dim` of its weight."""
        self.give_up(out, (input, weight), why)
        name = self.names.get(id(weight), "")
        self.refuse(name.removesuffix(".weight") or self.where(), weight.shape[dim], why)

    def fresh(self, weight: Tensor, dim: int) -> Tensor:
        """Ids of the channels that a parameter gives; the same at every use of it."""
        place = (self.names[id(weight)], dim)
        if place not in self.born:
            self.born[place] = self.ids.new(weight.shape[dim])
        return self.born[place]

    def read(self, input: Tensor, dim: int, what: str) -> Tensor:
        """Ids along the dimension that a layer contracts; zeros, and all of them frozen, where others are mixed in."""
        labels = self.labels.get(input)
        ids = vector_along(labels, dim)
        if ids is None:
            self.ids.freeze(labels, f"{what} over a dimension mixed with others at {self.where()}")
            return torch.zeros(input.shape[dim], dtype=torch.int64)
        return ids

    def known(self, *tensors: Tensor | None) -> bool:
        """Whether every tensor is a parameter or buffer of the model itself."""
        return all(tensor is None or id(tensor) in self.names for tensor in tensors)

    def _linear(self, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        if not self.known(weight, bias):
            return self.give_up_layer(out, input, weight, 0, "linear with a computed weight")
        ids = self.read(input, -1, "linear")
        fresh = self.fresh(weight, 0)
        self.use(weight, 1, ids, "consume", "linear")
        self.use(weight, 0, fresh, "produce", "linear")
        self.use(bias, 0, fresh, "carry")
        self.labels.set(out, spread(fresh, out.shape, -1))

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
        if not self.known(weight, bias):
            return self.give_up_layer(out, input, weight, 0, "convolution with a computed weight")
        channel = input.dim() - weight.dim() + 1
        ids = self.read(input, channel, "convolution")
        if groups == len(ids) and groups > 1:  # depthwise: a channel passes through its own filters
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
        if not self.known(weight, bias):
            return self.give_up_layer(out, input, weight, 1, "transposed convolution with a computed weight")
        channel = input.dim() - weight.dim() + 1
        ids = self.read(input, channel, "transposed convolution")
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

    def _batch_norm(
        self,
        out: Tensor,
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> None:
        per_channel = (running_mean, running_var, weight, bias)
        ids = vector_along(self.labels.get(input), 1)
        if ids is None or not self.known(*per_channel):
            return self.give_up(out, (input,), "normalisation over a dimension mixed with others")
        for tensor in per_channel:
            self.use(tensor, 0, ids, "carry")
        self.labels.set(out, self.labels.get(input))

    def _instance_norm(
        self,
        out: Tensor,
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *rest: Any,
        **options: Any,
    ) -> None:
        if input in self.labels and running_mean is None and weight is None:
            return self.give_up(
                out, (input,), "instance norm without a weight (its width is written into the module; use affine=True)"
            )
        self._batch_norm(out, input, running_mean, running_var, weight, bias)

    def _layer_norm(
        self,
        out: Tensor,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> None:
        self.norm_count += 1
        ids = vector_along(self.labels.get(input), -1)
        if ids is None or not self.known(weight, bias) or (len(normalized_shape) != 1 and input in self.labels):
            return self.give_up(out, (input,), "layer norm over several dimensions")
        if input in self.labels and weight is None:
            return self.give_up(out, (input,), "layer norm without a weight: its width is written into the code")
        self._normalised(out, input, ids, weight, bias)

    def _rms_norm(
        self,
        out: Tensor,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> None:
        self._layer_norm(out, input, normalized_shape, weight)

    def _group_norm(
        self,
        out: Tensor,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> None:
        self.norm_count += 1
        ids = vector_along(self.labels.get(input), 1)
        if ids is None or not self.known(weight, bias):
            return self.give_up(out, (input,), "group norm over a dimension mixed with others")
        if num_groups > 1:
            self.ids.balances.append(Balance(ids, num_groups, f"group norm {self.where()}"))
        self._normalised(out, input, ids, weight, bias)

    def _normalised(self, out: Tensor, input: Tensor, ids: Tensor, *per_channel: Tensor | None) -> None:
        self.norm_calls[self.norm_count] = ids
        for tensor in per_channel:
            self.use(tensor, 0, ids, "carry")
        self.labels.set(out, self.labels.get(input))

    def _embedding(self, out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> None:
        if not self.known(weight) or input in self.labels:
            return self.give_up_layer(out, input, weight, 1, "embedding with a computed weight or input")
        fresh = self.fresh(weight, 1)
        self.use(weight, 1, fresh, "produce", "embedding")
        self.labels.set(out, spread(fresh, out.shape, -1))

    def _prelu(self, out: Tensor, input: Tensor, weight: Tensor) -> None:
        ids = vector_along(self.labels.get(input), min(1, input.dim() - 1))
        if not self.known(weight) or (weight.numel() > 1 and ids is None):
            return self.give_up(out, (input,), "PReLU over a dimension mixed with others")
        if weight.numel() > 1 and ids is not None:
            self.use(weight, 0, ids, "carry")
        self.labels.set(out, self.labels.get(input))

    def _attention(self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> None:
        labels = self.labels.get(value)
        if value.dim() - 2 in varying_dims(labels):
            return self.give_up(out, (query, key, value), "attention over a dimension with channels")
        for tensor in (query, key):  # the width of a head is part of the scale; heads are pruned whole or not at all
            self.ids.freeze(self.labels.get(tensor), f"width of the attention at {self.where()}")
        self.labels.set(out, labels.narrow(-2, 0, 1).expand(*out.shape[:-1], labels.shape[-1]))
