"""Carry channel ids through one real forward pass.

Functions with parameters are intercepted at function level (`layers.py`); everything below at operator level: data movement is
run on the ids themselves, pointwise operators unite the ids of their operands, reductions and pools pass ids that are
constant along what they reduce. Any other operator freezes the ids that reach it, with its name as the reason.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

from autoprune.errors import ModelError
from autoprune.pruning.ids import Ids, Labels, Use, varying
from autoprune.pruning.layers import Layers
from autoprune.pruning.movement import COPIES, MOVES, move
from autoprune.pruning.shrink import named_tensors
from autoprune.task import Inputs

__all__ = ["Propagation", "propagate"]

_OPAQUE_CALLS = {"multi_head_attention_forward", "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell",
                 "rnn_tanh_cell", "rnn_relu_cell", "bilinear", "embedding_bag"}
_POINTWISE = {"native_dropout", "dropout", "hardtanh", "where", "masked_fill", "clamp", "nan_to_num", "zero", "fill", "hardswish", "hardsigmoid", "leaky_relu", "elu", "celu", "selu",
              "gelu", "silu", "mish", "relu", "relu6", "softplus", "logsigmoid", "log_sigmoid_forward", "softshrink", "hardshrink", "threshold", "rrelu_with_noise", "rrelu_with_noise_functional"}
_SHAPE_ONLY = {"empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "sym_size", "is_nonzero", "_has_compatible_shallow_copy_type"}
_SPATIAL = re.compile(r"(_?(max|avg|adaptive_max|adaptive_avg|fractional_max)_pool\dd.*|_?upsample_.*\dd.*|(reflection|replication)_pad\dd|mkldnn_max_pool\dd)")
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "all", "any", "argmax", "argmin",
               "logsumexp", "linalg_vector_norm", "norm", "median", "aminmax"}
_ALONG = {"softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "sort", "flip", "roll", "topk"}
_CONTRACTIONS = {"mm", "bmm", "matmul", "addmm", "baddbmm"}


class Propagation:
    """The ids found by one forward pass, and the rules that find them."""

    def __init__(self, model: nn.Module) -> None:
        self.ids, self.labels = Ids(), Labels()
        self.path: list[str] = []
        self.quiet = 0
        self.layers = Layers(model, self.ids, self.labels, self.where)
        self.positions = WeakIdKeyDictionary()  # tensor moved out of a parameter -> (name, flat positions in it)
        self.shapes = {name: tensor.shape for name, tensor in named_tensors(model)}
        self.opaque: dict[str, str] = {}  # parameter -> the operator that reads it in a way no rule covers

    def where(self) -> str:
        """The module that is running."""
        return self.path[-1] if self.path else "the model"

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Operators inside do not count as the model's."""
        self.quiet += 1
        try:
            yield
        finally:
            self.quiet -= 1

    def operator(self, name: str, func: Any, out: Any, args: Any, kwargs: Any) -> None:
        """The rule for one operator of the forward pass."""
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        outs = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        parameters = [tensor for tensor in tensors if self._position(tensor) is not None]
        labelled = [tensor for tensor in tensors if tensor in self.labels]
        if not labelled and not parameters:
            return
        base = name.strip("_") if name.endswith("_") else name
        if base.startswith("new_") or base in _SHAPE_ONLY:
            return
        if not labelled:
            return self._parameter_alone(base, func, outs, args, kwargs, parameters)
        if base == "copy" or (name.endswith("_") and tensors[0]._is_view() and tensors[0] not in self.labels):
            return self._written(outs, tensors)
        if base in MOVES and not parameters:
            return move(self, base, func, outs, args, kwargs)
        if torch.Tag.pointwise in func.tags or base in _POINTWISE:
            return self._pointwise(outs, tensors)
        if parameters:
            self._mark_opaque(parameters, base)
        elif _SPATIAL.fullmatch(base) and self._spatial(base, outs, tensors[0]):
            return
        elif base in _REDUCTIONS and self._reduction(outs, tensors[0], args):
            return
        elif base in _ALONG and self._along(outs, tensors[0], args):
            return
        elif base in _CONTRACTIONS and self._contraction(outs[0], *tensors[-2:]):
            return
        for tensor in outs or labelled[:1]:
            self.layers.give_up(tensor, labelled, f"operator {base}")

    def _parameter_alone(self, base: str, func: Any, outs: list[Tensor], args: Any, kwargs: Any, parameters: list[Tensor]) -> None:
        if base in COPIES or base in ("view", "reshape", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand"):
            found = self._position(parameters[0])
            assert found is not None
            name, positions = found
            with self.silence():
                moved = positions if base in COPIES else (
                    positions.reshape(outs[0].shape) if base in ("view", "reshape", "_unsafe_view") else func(positions, *args[1:], **kwargs))
            self.positions[outs[0]] = (name, moved)
        else:
            self._mark_opaque(parameters, base)

    def _position(self, tensor: Tensor) -> tuple[str, Tensor] | None:
        name = self.layers.names.get(id(tensor))
        if name is not None:
            return name, torch.arange(tensor.numel()).view(tensor.shape)
        found: tuple[str, Tensor] | None = self.positions.get(tensor)
        return found

    def _mark_opaque(self, parameters: list[Tensor], base: str) -> None:
        for tensor in parameters:
            found = self._position(tensor)
            if found is not None:
                self.opaque.setdefault(found[0], f"operator {base} at {self.where()} reads {found[0]}")

    def _written(self, outs: list[Tensor], tensors: list[Tensor]) -> None:
        target, source = tensors[0], tensors[-1]
        if target._is_view():
            for tensor in (target, source):
                self.ids.freeze(self.labels.get(tensor), f"written into a part of a tensor at {self.where()}")
        else:
            self.labels.set(outs[0], self.labels.get(source).expand(outs[0].shape))

    def _pointwise(self, outs: list[Tensor], tensors: list[Tensor]) -> None:
        shape = outs[0].shape
        joined: Tensor | None = None
        for tensor in tensors:
            if tensor in self.labels:
                labels = self.labels.get(tensor).expand(shape)
                if joined is not None:
                    self.ids.unite(joined, labels)
                joined = labels if joined is None else torch.maximum(joined, labels)
        assert joined is not None
        for tensor in tensors:
            found = self._position(tensor)
            if found is not None and tensor.numel() > 1:
                self._tie(found[0], found[1].expand(shape), joined)
        for out in outs:
            self.labels.set(out, joined.expand(out.shape))

    def _tie(self, name: str, positions: Tensor, labels: Tensor) -> None:
        """Tie each dimension of a parameter, broadcast over an activation, to the ids it meets there."""
        shape = self.shapes[name]
        rest = positions.reshape(-1)
        flat = self.ids.roots(labels).reshape(-1)
        for dim in reversed(range(len(shape))):
            index, rest = rest % shape[dim], rest // shape[dim]
            if shape[dim] == 1:
                continue
            vector = torch.zeros(shape[dim], dtype=torch.int64)
            vector[index] = flat
            if bool((vector[index] == flat).all()) and bool((vector != vector[:1]).any()):
                self.ids.uses.append(Use(name, dim, vector, "carry"))
        if len(varying(labels)) and not any(use.tensor == name for use in self.ids.uses):
            self.ids.freeze(labels, f"parameter {name} meets channels in a way no rule covers, at {self.where()}")

    def _spatial(self, base: str, outs: list[Tensor], tensor: Tensor) -> bool:
        match = re.search(r"(\d)d", base)
        assert match is not None
        labels = self.labels.get(tensor)
        kept = labels.dim() - int(match[1])
        if any(dim >= kept for dim in varying(labels)):
            return False
        first = labels[(..., *([slice(1)] * int(match[1])))]
        for out in outs:
            self.labels.set(out, first.expand(out.shape))
        return True

    def _reduction(self, outs: list[Tensor], tensor: Tensor, args: Any) -> bool:
        labels = self.labels.get(tensor)
        given = next((arg for arg in args[1:] if isinstance(arg, (list, tuple)) or (isinstance(arg, int) and not isinstance(arg, bool))), None)
        dims = sorted({dim % labels.dim() for dim in ([given] if isinstance(given, int) else given or range(labels.dim()))})
        if any(dim in varying(labels) for dim in dims):
            return False
        for dim in reversed(dims):
            labels = labels.narrow(dim, 0, 1)
        for out in outs:
            self.labels.set(out, labels.expand(out.shape) if out.dim() == labels.dim() else labels.reshape(out.shape))
        return True

    def _along(self, outs: list[Tensor], tensor: Tensor, args: Any) -> bool:
        labels = self.labels.get(tensor)
        dims = {dim % labels.dim() for arg in args[1:] for dim in (arg if isinstance(arg, (list, tuple)) else [arg]) if isinstance(dim, int)}
        if any(dim in dims for dim in varying(labels)):
            return False
        for out in outs:
            self.labels.set(out, labels.expand(out.shape) if out.shape == labels.shape else labels[tuple(slice(n) for n in out.shape)])
        return True

    def _contraction(self, out: Tensor, first: Tensor, second: Tensor) -> bool:
        a, b = self.labels.get(first), self.labels.get(second)
        if a.dim() - 1 in varying(a) or b.dim() - 2 in varying(b) or out.dim() != b.dim() or out.dim() != a.dim():
            return False
        rows, columns = a.narrow(-1, 0, 1).expand(out.shape), b.narrow(-2, 0, 1).expand(out.shape)
        if bool(rows.any()) and bool(columns.any()):
            return False
        self.labels.set(out, torch.maximum(rows, columns))
        return True


class _Functions(TorchFunctionMode):
    def __init__(self, found: Propagation) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = self.found.layers.handlers.get(func)
        opaque = getattr(func, "__name__", "") in _OPAQUE_CALLS
        if handler is None and not opaque:
            return func(*args, **kwargs)
        with self.found.silence():
            out = func(*args, **kwargs)
        if handler is not None:
            handler(out, *args, **kwargs)
            return out
        leaves = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, Tensor):
                self.found.layers.give_up(tensor, leaves, func.__name__)
        return out


class _Operators(TorchDispatchMode):
    def __init__(self, found: Propagation) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.found.quiet:
            with self.found.silence():
                self.found.operator(func._schema.name.split("::")[1], func, out, args, kwargs)
        return out


@contextlib.contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no fused attention path; everything as before afterwards."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, was in training.items():
            module.training = was


@contextlib.contextmanager
def _paths(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the names of the running modules on `path`."""
    def enter(name: str) -> Callable[..., None]:
        return lambda *_: path.append(name or "the model")

    hooks = [hook for name, module in model.named_modules() for hook in (
        module.register_forward_pre_hook(enter(name)), module.register_forward_hook(lambda *_: path.pop() and None))]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def propagate(model: nn.Module, inputs: Inputs) -> Propagation:
    """Run `model` once on `inputs` and return the ids that were found. Raises ModelError where the forward fails."""
    found = Propagation(model)
    entering = found.ids.new_frozen("joined with the network's input")
    for tensor in inputs.tensors():
        if tensor.is_floating_point():
            found.labels.set(tensor, torch.tensor(entering).expand(tensor.shape))
    try:
        with plain_forward(model), _paths(model, found.path), _Functions(found), _Operators(found):
            output = inputs.call(model)
    except Exception as error:
        raise ModelError(f"the model's forward failed on inputs of shapes {[tuple(t.shape) for t in inputs.tensors()]}: "
                         f"{type(error).__name__}: {error}") from error
    for leaf in tree_flatten(dict(output) if hasattr(output, "items") else output)[0]:
        if isinstance(leaf, Tensor):
            found.ids.freeze(found.labels.get(leaf), "reaches the network's output")
    return found

