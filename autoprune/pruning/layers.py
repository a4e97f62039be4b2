"""What layers with parameters do to channel ids: contractions end them and start fresh ones, norms carry them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from autoprune.pruning.demands import Demands
from autoprune.pruning.ids import Balance, Ids, Labels, Use, small, spread, varying
from autoprune.pruning.literals import ATTRIBUTE, Literal
from autoprune.pruning.recurrent import recurrent_rules
from autoprune.pruning.shrink import named_tensors

__all__ = ["Layers"]


class Layers:
    """Rules for functions with parameters; `handlers` maps a function to its rule `(output, *its arguments)`."""

    def __init__(self, model: nn.Module, ids: Ids, labels: Labels, demands: Demands, where: Callable[[], str]) -> None:
        self.ids, self.labels, self.demands, self.where = ids, labels, demands, where
        self.literals: list[Literal] = []
        self.shapes = {name: tensor.shape for name, tensor in named_tensors(model)}
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
            torch.addmm: self._addmm,
            **dict.fromkeys((torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__), self._matmul),
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

    def use(
        self, tensor: Tensor | None, dim: int, ids: Tensor, role: str, kind: str = "other", groups: int = 1
    ) -> None:
        """Tie a dimension of a parameter or buffer, or of what was moved out of one, to ids."""
        if tensor is not None:
            name, dim, places = self.place(tensor, dim)
            if places is not None:
                ids = torch.full((self.shapes[name][dim],), -1).index_copy(0, places, ids)
            self.ids.uses.append(Use(name, dim, ids.clone(), role, kind, groups))  # type: ignore[arg-type]

    def place(self, tensor: Tensor, dim: int) -> tuple[str, int, Tensor | None]:
        """The parameter that a tensor shows, which of its dimensions `dim` is, and the entries shown; None for all."""
        name = self.names.get(id(tensor))
        if name is not None:
            return name, dim, None
        name, places = self.positions[tensor]
        line = places[tuple(slice(None) if d == dim % places.dim() else 0 for d in range(places.dim()))]
        for own in reversed(range(len(self.shapes[name]))):
            index, line = line % self.shapes[name][own], line // self.shapes[name][own]
            if len(index.unique()) == tensor.shape[dim] > 1:
                return name, own, index
        return name, 0, torch.zeros(tensor.shape[dim], dtype=torch.int64)

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
        name, own, places = self.place(weight, dim)
        if (name, own) not in self.born:
            self.born[name, own] = self.ids.new(self.shapes[name][own])
        return self.born[name, own] if places is None else self.born[name, own][places]

    def read(self, input: Tensor, dim: int, what: str) -> Tensor | None:
        """Ids along the dimension that a layer contracts; what shares a place on it is one unit.

        None where channels lie along other dimensions only.
        """
        labels = self.labels.get(input)
        dim %= labels.dim()
        channels = varying(labels)
        if channels and dim not in channels:
            return None
        others = [other for other in channels if other != dim]
        if others:
            self.ids.unite_along(labels, others, f"{what} over a dimension mixed with others at {self.where()}")
        (table,) = small(labels)
        vector = table.amax([other for other in range(table.dim()) if other != dim]) if table.dim() > 1 else table
        return vector.expand(labels.shape[dim]).clone()

    def known(self, *tensors: Tensor | None) -> bool:
        """Whether every tensor is a parameter or buffer of the model itself."""
        return all(tensor is None or id(tensor) in self.names or tensor in self.positions for tensor in tensors)

    def _linear(
        self, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False
    ) -> None:
        if not self.known(weight, bias):
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
        """Whether a call is a layer's: a product of matrices is where its second factor is a parameter of rank two."""
        if func not in self.handlers or self.handlers[func] not in (self._matmul, self._addmm):
            return func in self.handlers
        weight, bias = (args[2], args[0]) if func is torch.addmm else (args[1], None)
        return bool(
            weight.dim() == 2 and self.known(weight, bias) and not self.known(args[1 if bias is not None else 0])
        )

    def _matmul(self, out: Tensor, input: Tensor, weight: Tensor) -> None:
        self._linear(out, input, weight, transposed=True)

    def _addmm(self, out: Tensor, bias: Tensor, input: Tensor, weight: Tensor, **_: Any) -> None:
        self._linear(out, input, weight, bias, transposed=True)

    def _beside(self, out: Tensor, input: Tensor, weight: Tensor, dim: int, what: str) -> None:
        """Channels lie along other dimensions than the contracted one (token mixing): they pass, its own units stay."""
        labels = self.labels.get(input)
        self.labels.set(out, labels.narrow(dim, 0, 1).expand(out.shape))
        name = self.place(weight, 0)[0]
        self.refuse(name.removesuffix(".weight"), weight.shape[0], f"{what} beside a dimension with channels")

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
        if ids is None:
            return self.give_up_layer(out, input, weight, 0, "convolution beside a dimension with channels")
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
        if ids is None:
            return self.give_up_layer(out, input, weight, 1, "transposed convolution beside a dimension with channels")
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
        if not self.known(*per_channel):
            return self.give_up(out, (input,), "normalisation with computed parameters")
        ids = self.read(input, 1, "normalisation")
        if ids is not None:
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
        ids = self.read(input, 1, "normalisation")
        if running_mean is None and weight is None and ids is not None:  # torch warns where this attribute is not right
            self.literals.append(Literal(self.where(), ATTRIBUTE, "attribute", {0: ids}, "num_features"))
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
        if not self.known(weight, bias) or (len(normalized_shape) != 1 and input in self.labels):
            return self.give_up(out, (input,), "layer norm over several dimensions")
        self._normalised(out, input, -1, weight, bias)

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
        if not self.known(weight, bias):
            return self.give_up(out, (input,), "group norm with computed parameters")
        ids = self.read(input, 1, "group norm")
        if num_groups > 1 and ids is not None:
            self.ids.balances.append(Balance(ids, num_groups, f"group norm {self.where()}"))
        self._normalised(out, input, 1, weight, bias)

    def statistic(self, out: Tensor, input: Tensor, dims: Sequence[int]) -> bool:
        """A mean or norm over channels, as hand-written norms take it: over the kept ones. False if it is none."""
        labels, call = self.labels.get(input), self.norm_count
        over = {dim % labels.dim() for dim in dims} & set(varying(labels))
        if len(over) != 1 or not over <= set(self.labels.channels(labels)):
            return False
        (dim,) = over

        def use(ids: Tensor) -> None:
            self.norm_calls[call] = ids

        self.demands.columns(labels, dim, f"norm over a dimension mixed with others at {self.where()}", use)
        if out.shape == labels.shape:
            self.labels.set(out, labels)
        elif len(varying(labels)) > 1:
            rest = labels
            for other in dims:
                rest = rest.narrow(other, 0, 1)
            self.labels.set(out, rest.reshape(out.shape) if out.dim() < rest.dim() else rest.expand(out.shape))
        return True

    def _normalised(self, out: Tensor, input: Tensor, dim: int, *per_channel: Tensor | None) -> None:
        """A norm across `dim`: over the channels that are kept, or, within one unit, over all of it."""
        labels, call = self.labels.get(input), self.norm_count
        held = [tensor for tensor in per_channel if tensor is not None]

        def use(ids: Tensor) -> None:
            self.norm_calls[call] = ids
            for tensor in held:
                self.use(tensor, 0, ids, "carry")

        self.demands.columns(labels, dim, f"norm over a dimension mixed with others at {self.where()}", use)
        self.labels.set(out, labels)

    def _embedding(self, out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> None:
        if not self.known(weight) or input in self.labels:
            return self.give_up_layer(out, input, weight, 1, "embedding with a computed weight or input")
        fresh = self.fresh(weight, 1)
        row = self.ids.new_frozen(f"row of an embedding at {self.where()}")
        self.use(weight, 0, torch.tensor(row).expand(len(weight)), "carry")
        self.use(weight, 1, fresh, "produce", "embedding")
        self.labels.set(out, spread(fresh, out.shape, -1))

    def _prelu(self, out: Tensor, input: Tensor, weight: Tensor) -> None:
        if not self.known(weight):
            return self.give_up(out, (input,), "PReLU with a computed weight")
        ids = self.read(input, min(1, input.dim() - 1), "PReLU") if weight.numel() > 1 else None
        if ids is not None:
            self.use(weight, 0, ids, "carry")
        self.labels.set(out, self.labels.get(input))
