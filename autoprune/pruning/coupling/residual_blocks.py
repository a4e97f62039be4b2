"""Residual blocks that can go whole: the identity with parameters at zero (Huang et al. 2016,
arXiv:1603.09382)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from autoprune.group import Group
from autoprune.pruning.surgery.forward import plain_forward, steady_forward
from autoprune.pruning.surgery.shrink import named_tensors, replace_tensors
from autoprune.task import Inputs

__all__ = ["blocks_groups"]


def blocks_groups(model: nn.Module, inputs: Inputs, training: bool = False) -> Iterable[Group]:
    """A group for each of a model's removable residual blocks, in order of execution.

    With `training` a block must be one on the path of training as well.
    """
    trained = set(_removable(model, inputs, training=True)) if training else None
    for name in _removable(model, inputs):
        if trained is None or name in trained:
            yield Group(name, "blocks", (name,), ("block",), (1,))


def _removable(model: nn.Module, inputs: Inputs, training: bool = False) -> Iterable[str]:
    """Innermost modules whose output, parameters at zero, is their first argument exactly."""
    # A forward may write into buffers
    model = replace_tensors(model, lambda _, tensor: tensor.clone())
    forward = steady_forward if training else plain_forward
    calls = _calls(model, inputs, forward)
    names = {id(module): name for name, module in model.named_modules()}
    chosen: list[str] = []
    tied = _tied_names(model)
    # A module's call is noted before those inside it
    for module, (args, kwargs) in reversed(calls.items()):
        name = names[id(module)]
        if any(other.startswith(f"{name}.") for other in chosen) or _shares(name, tied):
            continue
        empty = replace_tensors(
            module,
            lambda _, tensor: (
                torch.zeros_like(tensor) if isinstance(tensor, nn.Parameter) else tensor.clone()
            ),
        )
        for parameter in empty.parameters():
            parameter.data.zero_()
        with forward(empty):
            # It may write into what it is given
            out = empty(args[0].clone(), *args[1:], **kwargs)
        if isinstance(out, Tensor) and torch.equal(out, args[0]):
            chosen.append(name)
    return reversed(chosen)


def _tied_names(model: nn.Module) -> list[list[str]]:
    """The names of each parameter and buffer that has more than one."""
    names: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model, every_name=True):
        names.setdefault(id(tensor), []).append(name)
    return [members for members in names.values() if len(members) > 1]


def _shares(block: str, tied: list[list[str]]) -> bool:
    """Whether a block has a parameter or buffer that is read outside it as well."""
    return any(len({name.startswith(f"{block}.") for name in names}) > 1 for names in tied)


def _calls(
    model: nn.Module, inputs: Inputs, forward: Callable[[nn.Module], AbstractContextManager[None]]
) -> dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Modules with parameters and modules inside that are called once, first argument and output of
    one shape."""
    calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    other: set[nn.Module] = {model}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (
            module in calls
            or not args
            or not isinstance(args[0], Tensor)
            or not args[0].is_floating_point()
        ):
            other.add(module)
        else:
            calls[module] = tree_map_only(Tensor, torch.clone, (args, kwargs))

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if (
            not isinstance(out, Tensor)
            or module not in calls
            or out.shape != calls[module][0][0].shape
        ):
            other.add(module)

    hooks = []
    for module in model.modules():
        if any(True for _ in module.children()) and any(True for _ in module.parameters()):
            hooks += [
                module.register_forward_pre_hook(enter, with_kwargs=True),
                module.register_forward_hook(leave),
            ]
    try:
        with forward(model):
            inputs.call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return {module: call for module, call in calls.items() if module not in other}
