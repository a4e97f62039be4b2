"""What norms do to channel ids: they carry them, and take their statistics over the channels that
are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from autoprune.pruning.surgery.sized_calls import ATTRIBUTE
from autoprune.pruning.tracing.channel_ids import Balance, varying
from autoprune.pruning.tracing.size_literals import Literal
from autoprune.pruning.tracing.state import State

__all__ = ["Norms"]


class Norms(State):
    """Rules for norms, the hand-written ones among them, and for PReLU."""

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
        if not self.are_parameters(*per_channel):
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
        # Torch warns where this attribute is not right
        if running_mean is None and weight is None and ids is not None:
            self.literals.append(
                Literal(self.where(), ATTRIBUTE, "attribute", {0: ids}, "num_features")
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
        if not self.are_parameters(weight, bias) or (
            len(normalized_shape) != 1 and input in self.labels
        ):
            return self.give_up(out, (input,), "layer norm over several dimensions")
        self._normalise(out, input, -1, weight, bias)

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
        if not self.are_parameters(weight, bias):
            return self.give_up(out, (input,), "group norm with computed parameters")
        ids = self.read(input, 1, "group norm")
        if num_groups > 1 and ids is not None:
            self.ids.balances.append(Balance(ids, num_groups, f"group norm {self.where()}"))
        self._normalise(out, input, 1, weight, bias)

    def statistic(self, out: Tensor, input: Tensor, dims: Sequence[int]) -> bool:
        """A mean or norm over channels, as hand-written norms take it: over the kept ones. False if
        it is none."""
        labels, call = self.labels.get(input), self.norm_count
        over = {dim % labels.dim() for dim in dims} & set(varying(labels))
        if len(over) != 1 or not over <= set(self.labels.channels(labels)):
            return False
        (dim,) = over

        def use(ids: Tensor) -> None:
            self.norm_calls[call] = ids

        self.constraints.columns(
            labels, dim, f"norm over a dimension mixed with others at {self.where()}", use
        )
        if out.shape == labels.shape:
            self.labels.set(out, labels)
        elif len(varying(labels)) > 1:
            rest = labels
            for other in dims:
                rest = rest.narrow(other, 0, 1)
            self.labels.set(
                out, rest.reshape(out.shape) if out.dim() < rest.dim() else rest.expand(out.shape)
            )
        return True

    def _normalise(self, out: Tensor, input: Tensor, dim: int, *per_channel: Tensor | None) -> None:
        """A norm across `dim`: over the channels that are kept, or, within one unit, over all of
        it."""
        labels, call = self.labels.get(input), self.norm_count
        held = [tensor for tensor in per_channel if tensor is not None]

        def use(ids: Tensor) -> None:
            self.norm_calls[call] = ids
            for tensor in held:
                self.use(tensor, 0, ids, "carry")

        self.constraints.columns(
            labels, dim, f"norm over a dimension mixed with others at {self.where()}", use
        )
        self.labels.set(out, labels)

    def _prelu(self, out: Tensor, input: Tensor, weight: Tensor) -> None:
        if not self.are_parameters(weight):
            return self.give_up(out, (input,), "PReLU with a computed weight")
        ids = self.read(input, min(1, input.dim() - 1), "PReLU") if weight.numel() > 1 else None
        if ids is not None:
            self.use(weight, 0, ids, "carry")
        self.labels.set(out, self.labels.get(input))
