"""Run a model's forward once and hand every call of it to its rule, at function and at operator
level."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from autoprune.errors import ModelError
from autoprune.pruning.surgery import sized_calls
from autoprune.pruning.surgery.forward import (
    STATISTICS,
    dims_of,
    on_cpu,
    output_tensors,
    plain_forward,
    steady_forward,
)
from autoprune.pruning.tracing.propagation import Propagation
from autoprune.pruning.tracing.size_literals import literal
from autoprune.pruning.tracing.state import Running, ties
from autoprune.task import Inputs

__all__ = ["propagate"]

# Calls that read parameters in ways no rule covers. nn.MultiheadAttention itself is replaced by
# `Attention` beforehand: what comes here are its subclasses and calls of the function
_OPAQUE_CALLS = {"multi_head_attention_forward", "bilinear", "embedding_bag"}


class _Functions(TorchFunctionMode):
    def __init__(self, found: Propagation) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = sized_calls.read(func, args, kwargs) if self.found.state.path else None
        if call is None:
            return self._call(func, args, kwargs)
        running = self.found.state.path[-1]
        running.calls += 1
        number = -running.calls if self.found.training else running.calls
        self.found.state.rebindable = call.rebindable
        try:
            out = self._call(func, args, kwargs)
        finally:
            self.found.state.rebindable = False
        with self.found.state.silence():
            noted = literal(call, out, self.found.labels, running.name, number)
        if noted is not None:
            self.found.state.literals.append(noted)
        return out

    def _call(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = getattr(func, "__name__", "")
        if func is torch._weight_norm:
            return self._compute_weight(func, args, kwargs)
        if name in STATISTICS and args and isinstance(args[0], Tensor):
            return self._statistic(func, args, kwargs)
        handler = (
            self.found.layers.handlers[func] if self.found.layers.by_layer(func, args) else None
        )
        if handler is None and name not in _OPAQUE_CALLS:
            return func(*args, **kwargs)
        with self.found.state.silence():
            out = func(*args, **kwargs)
            if handler is not None:
                self._note(out, args, kwargs)
                handler(out, *args, **kwargs)
                return out
        leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        results = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        for tensor in results:
            self.found.layers.give_up(tensor, leaves, func.__name__)
        self.found.layers.refuse(self.found.state.where(), results[0].shape[-1], func.__name__)
        return out

    def _note(self, out: Any, args: Any, kwargs: Any) -> None:
        """The shape of what a layer gives, by the parameters that it reads."""
        shapes = [leaf.shape for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        for leaf in tree_flatten((args, kwargs))[0]:
            name = (
                self.found.state.parameter_name(leaf)
                if isinstance(leaf, Tensor) and leaf.dim() > 1
                else None
            )
            if name is not None:
                self.found.given.setdefault(name, shapes[0])

    def _compute_weight(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Weight norm shows its direction, entry by entry."""
        with self.found.state.silence():
            out = func(*args, **kwargs)
        self.found.state.show(out, args[0])
        return out

    def _statistic(self, func: Any, args: Any, kwargs: Any) -> Any:
        layers = self.found.layers
        layers.norm_count += 1
        if args[0] in self.found.labels:
            with self.found.state.silence():
                out = func(*args, **kwargs)
                if isinstance(out, Tensor) and layers.statistic(
                    out, args[0], dims_of(func, args, kwargs)
                ):
                    return out
        return func(*args, **kwargs)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: Propagation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.found.state.quiet:
            with self.found.state.silence():
                self.found.operator(func._schema.name.split("::")[1], func, out, args, kwargs)
        return out


@contextlib.contextmanager
def _paths(model: nn.Module, found: Propagation) -> Iterator[None]:
    """Keep the running modules on the path."""
    path = found.state.path

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, *_: Any) -> None:
            path.append(Running(name))
            found.state.quiet += isinstance(module, _SpectralNorm)

        return hook

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        path.pop()
        if isinstance(module, _SpectralNorm):  # shows its direction, entry by entry
            found.state.quiet -= 1
            if isinstance(out, Tensor):
                found.state.show(out, args[0])

    hooks = [
        hook
        for name, module in model.named_modules()
        for hook in (
            module.register_forward_pre_hook(enter(name)),
            module.register_forward_hook(leave, always_call=True),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def propagate(model: nn.Module, inputs: Inputs, training: bool = False) -> Propagation:
    """Run `model` once on `inputs` and return the ids that were found; with `training`, once more
    in that mode.

    Raises ModelError where the forward fails.
    """
    with on_cpu():
        propagation = Propagation(model)
        entering = propagation.ids.new_frozen("joined with the network's input")
    _pass(propagation, model, inputs, entering)
    propagation.evaluation_norms = propagation.layers.norm_count
    propagation.evaluated = {use.tensor for use in propagation.ids.uses}
    if training:
        propagation.training = True
        _pass(propagation, model, inputs.map(lambda tensor: tensor.clone()), entering)
    with propagation.state.silence():
        propagation.constraints.settle()
        for computed in propagation.computed:
            propagation.ids.uses += list(
                ties(computed, propagation.ids.uses, propagation.state.shapes[computed.direction])
            )
    return propagation


def _pass(found: Propagation, model: nn.Module, inputs: Inputs, entering: int) -> None:
    """One forward, its calls handed to their rules, its outputs frozen."""
    with on_cpu():
        for tensor in inputs.tensors():
            if tensor.is_floating_point():
                found.labels.set(tensor, torch.tensor(entering).expand(tensor.shape))
    mode = steady_forward if found.training else plain_forward
    try:
        with mode(model), _paths(model, found), _Functions(found), _Operators(found):
            output = inputs.call(model)
    except Exception as error:
        raise ModelError(
            "the model's forward failed on inputs of shapes "
            f"{[tuple(t.shape) for t in inputs.tensors()]}: "
            f"{type(error).__name__}: {error}"
        ) from error
    with found.state.silence():
        for tensor in output_tensors(output):
            why = "reaches the network's output" + (" in training" if found.training else "")
            found.ids.freeze(found.labels.get(tensor), why)
