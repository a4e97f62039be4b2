"""One forward pass of a model as it stands, and the tensors that come out of it."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.utils._pytree import tree_leaves

from autoprune.errors import ModelError
from autoprune.pruning.surgery.without_chance import Steady
from autoprune.task import Inputs

# Functions that hand-written norms are made of
STATISTICS = {"mean", "var", "std", "norm", "vector_norm", "normalize"}

__all__ = [
    "STATISTICS",
    "dims_of",
    "on_cpu",
    "output_tensors",
    "outputs_of",
    "plain_forward",
    "steady_forward",
]


def on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Makes new tensors on the CPU, whatever the user's default device is."""
    return (
        contextlib.nullcontext()
        if torch.get_default_device().type == "cpu"
        else torch.device("cpu")
    )


@contextlib.contextmanager
def plain_forward(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no fused attention path; everything as before afterwards."""
    training = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    # In eval mode torch's encoder layers run as one fused operator, which shows none of its parts
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
def steady_forward(model: nn.Module) -> Iterator[None]:
    """As `plain_forward`, but the way that training goes, without chance; weights are normed as in
    eval mode."""
    with plain_forward(model):
        model.train()
        for module in model.modules():
            # In training it goes on iterating where its weight is read
            if isinstance(module, _SpectralNorm):
                module.eval()
        state = random.getstate()
        random.seed(0)
        try:
            with Steady():
                yield
        finally:
            random.setstate(state)


def outputs_of(model: nn.Module, inputs: Inputs, training: bool = False) -> list[Tensor]:
    """Output tensors of one plain forward, random numbers the same each time; in `training` of a
    steady one."""
    with steady_forward(model) if training else plain_forward(model), torch.random.fork_rng():
        torch.manual_seed(0)
        return output_tensors(inputs.call(model))


def output_tensors(output: Any) -> list[Tensor]:
    """Every tensor of an output: alone, in sequences, mappings and data classes.

    Raises ModelError where there is none: it could not be compared, and nothing in it be protected
    from a cut.
    """
    tensors = list(_tensors(output))
    if not tensors:
        raise ModelError(
            f"the model's output holds no tensor that can be found: {type(output).__name__}; "
            "return a tensor, "
            "or a tuple, dictionary or data class of tensors"
        )
    return tensors


def _tensors(output: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        elif isinstance(leaf, Mapping):
            yield from _tensors(dict(leaf))
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from _tensors(
                {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}
            )
        elif hasattr(leaf, "__dict__") and not callable(leaf) and not isinstance(leaf, type):
            yield from _tensors(dict(vars(leaf)))


def dims_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    """The dimensions that a call of one of `STATISTICS` goes over; all of them where it names
    none."""
    place = 1 if func.__name__ in ("mean", "var", "std") else 2
    default = 1 if func.__name__ == "normalize" else None
    given = kwargs.get("dim", args[place] if len(args) > place else default)
    if given is None or isinstance(given, bool):
        return list(range(args[0].dim()))
    return [given] if isinstance(given, int) else list(given)
