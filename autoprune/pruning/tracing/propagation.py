"""What each operator of a forward pass does to channel ids; `trace.py` runs the pass.

Functions with parameters are intercepted at function level (`layers.py`), everything below at
operator level: data movement is run on the ids themselves (`data_movement.py`), pointwise operators
unite the ids of their operands, reductions and pools pass ids that are constant along what they
reduce (`operators.py`). Any other operator freezes the ids that reach it, with its name as the
reason.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from autoprune.pruning.surgery.parametrizations import computed_weights
from autoprune.pruning.tracing.channel_ids import varying
from autoprune.pruning.tracing.data_movement import (
    COPIES,
    MOVES,
    PARAMETER_MOVES,
    RESHAPES,
    argument,
    move,
)
from autoprune.pruning.tracing.layers import Layers
from autoprune.pruning.tracing.operators import attention, by_rule, pointwise, tie

__all__ = ["Propagation"]

# Beside those that torch tags as pointwise
_POINTWISE = {
    "native_dropout",
    "dropout",
    "hardtanh",
    "where",
    "masked_fill",
    "clamp",
    "nan_to_num",
    "zero",
    "fill",
    "hardswish",
    "hardsigmoid",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "gelu",
    "silu",
    "mish",
    "relu",
    "relu6",
    "softplus",
    "logsigmoid",
    "log_sigmoid_forward",
    "softshrink",
    "hardshrink",
    "threshold",
    "rrelu_with_noise",
    "rrelu_with_noise_functional",
}
# They read a shape and no value, so that no channel passes
_SHAPE_ONLY = {
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
    "sym_size",
    "is_nonzero",
    "_has_compatible_shallow_copy_type",
}


class Propagation:
    """The ids found by one forward pass, or by one of evaluation and one of training, and the rules
    that find them."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = self.state = Layers(model)
        self.layers.handlers[F.scaled_dot_product_attention] = functools.partial(
            attention, self.state
        )
        self.ids, self.labels, self.constraints = (
            self.state.ids,
            self.state.labels,
            self.state.constraints,
        )
        self.positions, self.opaque = self.state.positions, self.state.opaque
        self.computed = list(computed_weights(model))
        # Parameter -> shape of what the first layer that reads it gives
        self.given: dict[str, torch.Size] = {}
        self.training = False  # the pass that runs
        # Norms across channels that the pass of evaluation calls
        self.evaluation_norms = 0
        self.evaluated: set[str] = set()  # tensors that it uses

    def operator(self, name: str, func: Any, out: Any, args: Any, kwargs: Any) -> None:
        """The rule for one operator of the forward pass."""
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        outs = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        parameters = [tensor for tensor in tensors if self.state.position(tensor) is not None]
        labelled = [tensor for tensor in tensors if tensor in self.labels]
        if not labelled and not parameters:
            return
        # A buffer may say which entries are taken
        if labelled and labelled[0] is tensors[0]:
            parameters = [tensor for tensor in parameters if tensor.is_floating_point()]
        base = name.strip("_") if name.endswith("_") else name
        if base.startswith("new_") or base in _SHAPE_ONLY:
            return
        if not labelled:
            return self._parameter_alone(base, func, outs, args, kwargs, parameters)
        if base == "copy" or (
            name.endswith("_")
            and tensors[0]._is_view()
            and not bool(self.labels.get(tensors[0]).all())
        ):
            return self._write_into(outs, tensors)
        if base == "as_strided" and _same_layout(tensors[0], outs[0]):
            base = "alias"
        if base in ("cat", "stack"):
            for tensor in parameters:
                self._join(tensor, labelled[0], argument(func, args, kwargs, "dim") or 0, base)
            return move(self.state, base, func, outs, args, kwargs)
        if base in MOVES and not parameters:
            return move(self.state, base, func, outs, args, kwargs)
        if torch.Tag.pointwise in func.tags or base in _POINTWISE:
            return pointwise(self.state, outs, tensors)
        if parameters:
            self._mark_opaque(parameters, base)
        elif by_rule(self.state, base, outs, tensors, argument(func, args, kwargs, "dim")):
            return
        for tensor in outs or labelled[:1]:
            self.layers.give_up(tensor, labelled, f"operator {base}")

    def _parameter_alone(
        self,
        base: str,
        func: Any,
        outs: list[Tensor],
        args: Any,
        kwargs: Any,
        parameters: list[Tensor],
    ) -> None:
        """Data movement of a parameter is run on the places in it; no rule covers anything else
        that reads it."""
        if base == "zero" and parameters[0] in self.positions:
            return
        if base in ("index", "index_select") and args[0] is parameters[0]:
            parameters = parameters[:1]  # a buffer may say which entries are taken
        elementwise = (torch.Tag.pointwise in func.tags or base in _POINTWISE) and outs[
            0
        ].shape == parameters[0].shape
        if not (elementwise or base in PARAMETER_MOVES) or len(parameters) > 1:
            self._mark_opaque(parameters, base)
            for out in outs:
                # Whatever it is joined with cannot be cut either
                if out.is_floating_point():
                    why = f"operator {base} of parameters at {self.state.where()}"
                    self.labels.set(out, torch.tensor(self.ids.new_frozen(why)).expand(out.shape))
            return
        position = self.state.position(parameters[0])
        assert position is not None
        name, places = position
        with self.state.silence():
            moved: Any = places
            if base in RESHAPES:
                moved = places.reshape(outs[0].shape)
            elif not elementwise and base not in COPIES:
                rest, options = tree_map_only(Tensor, Tensor.cpu, (args[1:], kwargs))
                moved = func(places.detach(), *rest, **options)
        for out, where in zip(
            outs, moved if isinstance(moved, (list, tuple)) else [moved], strict=True
        ):
            self.positions[out] = (name, where)

    def _join(self, tensor: Tensor, neighbour: Tensor, dim: int, base: str) -> None:
        """A parameter that is joined to an activation takes its ids (a class token), or is frozen
        beside them."""
        labels = self.labels.get(neighbour)
        if base == "cat" and dim % labels.dim() in varying(labels):
            edge = self.ids.new_frozen(f"parameter joined to channels at {self.state.where()}")
            return self.labels.set(tensor, torch.tensor(edge).expand(tensor.shape))
        if base == "cat":
            labels = labels.narrow(dim, 0, 1)
        labels = labels.expand(tensor.shape)
        tie(self.state, tensor, labels)
        self.labels.set(tensor, labels)

    def _mark_opaque(self, parameters: list[Tensor], base: str) -> None:
        for tensor in parameters:
            position = self.state.position(tensor)
            if position is not None:
                self.opaque.setdefault(
                    position[0], f"operator {base} at {self.state.where()} reads {position[0]}"
                )

    def _write_into(self, outs: list[Tensor], tensors: list[Tensor]) -> None:
        target, source = tensors[0], tensors[-1]
        if self.state.position(target) is not None:
            self.ids.freeze(
                self.labels.get(source), f"written into a buffer at {self.state.where()}"
            )
            self._mark_opaque([target], "copy")
        elif target._is_view():
            for tensor in (target, source):
                self.ids.freeze(
                    self.labels.get(tensor),
                    f"written into a part of a tensor at {self.state.where()}",
                )
        else:
            self.labels.set(outs[0], self.labels.get(source).expand(outs[0].shape))


def _same_layout(tensor: Tensor, out: Tensor) -> bool:
    """Whether `out` holds the same elements at the same places; only strides of dimensions of
    length 1 may differ."""
    return bool(
        tensor.shape == out.shape
        and tensor.storage_offset() == out.storage_offset()
        and all(
            a == b or n == 1
            for a, b, n in zip(tensor.stride(), out.stride(), tensor.shape, strict=True)
        )
    )
