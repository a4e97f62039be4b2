"""What criteria see of a model on data: gradients, their squares, input features; gathered once,
when first needed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autoprune.errors import InputError
from autoprune.plugins import Need
from autoprune.pruning.surgery.attention import Attention
from autoprune.pruning.surgery.forward import plain_forward
from autoprune.pruning.surgery.shrink import replace_tensors
from autoprune.task import Batch, Inputs

__all__ = ["Statistics", "activations", "gradients", "join_batches"]

_COUNT = 8  # batches
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


class Statistics:
    """One model on data: for each need a tensor shaped like each parameter that has it, by the
    parameter's name.

    `batches()` starts anew each time. Raises InputError where the data or the loss that a need
    takes was not given.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Callable[[], Iterable[Batch]] | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
    ) -> None:
        self._model, self._batches, self._loss = model, batches, loss
        self._found: dict[Need, Mapping[str, Tensor]] = {}

    def __call__(self, need: Need) -> Mapping[str, Tensor]:
        """What `need` names, by parameter; a parameter that has none is left out."""
        if need not in self._found:
            self._found[need] = self._gather(need)
        return self._found[need]

    def _gather(self, need: Need) -> Mapping[str, Tensor]:
        if self._batches is None or (self._loss is None and need != "activations"):
            wanted = "batches= (a data loader)" + ("" if need == "activations" else " and loss=")
            raise InputError(f"this criterion needs {need}: give {wanted}")
        if need == "activations":
            return activations(self._model, self._batches())
        assert self._loss is not None
        return gradients(
            self._model, self._batches(), self._loss, squared=need == "squared gradients"
        )


def gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[Any, Any], Tensor],
    count: int = _COUNT,
    *,
    squared: bool = False,
) -> dict[str, Tensor]:
    """Mean d loss / d parameter over the first `count` batches, in eval mode, by parameter; `model`
    is left as it was.

    `squared`: the mean of each batch's squares. Raises InputError where there is no batch.
    """
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    device = next(model.parameters()).device
    seen = 0
    with _differentiable(model):
        for args, kwargs, target in itertools.islice(batches, count):
            output = Inputs(args, kwargs).to(device).call(model)
            loss(output, Inputs.of((target,)).to(device).args[0]).backward()  # type: ignore[no-untyped-call]
            seen += 1
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    total[name] += parameter.grad.square() if squared else parameter.grad
                    parameter.grad = None
    if not seen:
        raise InputError("gradients need at least one batch; the data gave none")
    return {name: tensor.detach() / seen for name, tensor in total.items()}


def activations(
    model: nn.Module, batches: Iterable[Batch], count: int = _COUNT
) -> dict[str, Tensor]:
    """L2 norm of the input feature that each weight multiplies, over all samples and positions of
    `count` batches.

    By parameter, shaped like it; only weights of linear layers, attention projections and
    convolutions that the forward reads have any. Raises InputError where there is no batch.
    """
    # Shared; a forward may write into buffers
    parameters = dict(model.named_parameters())
    copy = replace_tensors(
        model, lambda name, tensor: tensor if name in parameters else tensor.clone()
    )
    Attention.take_over_all(copy)
    device = next(model.parameters()).device
    features, seen = _InputFeatures(copy), 0
    with plain_forward(copy), features:
        for args, kwargs, _ in itertools.islice(batches, count):
            Inputs(args, kwargs).to(device).call(copy)
            seen += 1
    if not seen:
        raise InputError("activations need at least one batch; the data gave none")
    return features.norms()


def join_batches(batches: Iterable[Batch], count: int) -> Inputs:
    """The first `count` inputs as one batch; tensors without the batch's dimension are the first
    batch's.

    Batches of other shapes than the first are left out. Raises InputError where there is no batch.
    """
    parts: list[Inputs] = []
    held = 0
    for args, kwargs, _ in batches:
        part = Inputs(args, kwargs)
        if parts and _shapes(part) != _shapes(parts[0]):
            continue
        parts.append(part)
        held += part.batch_size
        if held >= count:
            break
    if not parts:
        raise InputError("a reconstruction needs at least one batch; the data gave none")
    batched = parts[0].batch_size
    columns = zip(*(part.tensors() for part in parts), strict=True)
    joined = [
        torch.cat(column) if column[0].dim() and len(column[0]) == batched else column[0]
        for column in columns
    ]
    return parts[0].with_tensors(joined).rows(min(held, count))


def _shapes(inputs: Inputs) -> list[torch.Size]:
    return [tensor.shape[1:] for tensor in inputs.tensors()]


class _InputFeatures(TorchFunctionMode):
    """Sums the squares of every input feature of linear layers and convolutions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters = dict(model.named_parameters())
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        # (first dimension, second dimension) of the weight
        self._squares: dict[str, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear or func in _CONVOLUTIONS or func in _TRANSPOSED:
            given = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            self._add(func, given["input"], given["weight"])
        return func(*args, **(kwargs or {}))

    def norms(self) -> dict[str, Tensor]:
        """By parameter, shaped like it."""
        norms_by_name = {}
        for name, squares in self._squares.items():
            weight = self._parameters[name]
            norms = squares.sqrt().to(weight.dtype)
            norms_by_name[name] = norms.view(*norms.shape, *[1] * (weight.dim() - 2)).expand(
                weight.shape
            )
        return norms_by_name

    def _add(self, func: Any, inputs: Tensor, weight: Tensor) -> None:
        # A fused projection is read in parts
        whole = weight if id(weight) in self._names else weight._base
        name = self._names.get(id(whole))
        if name is None or whole is None or weight.shape[1:] != whole.shape[1:]:
            return
        channel = inputs.dim() - weight.dim() + 1
        # In double: a sum over all positions of all batches
        squares = inputs.double().square().movedim(channel, 0).flatten(1).sum(1)
        if func in _TRANSPOSED:
            per_weight = squares[:, None].expand(weight.shape[:2])
        else:
            groups = squares.view(-1, weight.shape[1])  # the inputs of each group
            per_weight = groups.repeat_interleave(len(weight) // len(groups), 0)
        held = self._squares.setdefault(
            name, torch.zeros(whole.shape[:2], dtype=torch.float64, device=whole.device)
        )
        first = (weight.storage_offset() - whole.storage_offset()) // max(1, whole.stride(0))
        held[first : first + len(weight)] += per_weight


@contextlib.contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Eval mode, every floating-point parameter with a gradient of its own; everything as before
    afterwards."""
    training = {module: module.training for module in model.modules()}
    held = {
        name: (parameter.grad, parameter.requires_grad)
        for name, parameter in model.named_parameters()
    }
    model.eval()
    try:
        for parameter in model.parameters():
            parameter.grad = None
            parameter.requires_grad_(parameter.is_floating_point())
        # Whoever asks may be inside no_grad
        with torch.enable_grad():
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad, needs = held[name]
            parameter.requires_grad_(needs)
        for module, was in training.items():
            module.training = was
