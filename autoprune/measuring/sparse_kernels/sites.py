"""Where a model can be lowered: its linear layers and convolutions with zeros, and the inputs that
each gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import InputError
from autoprune.pruning.surgery.shrink import replace_tensors
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["Site", "place", "sites"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Site:
    """One layer: its distinct inputs, of each shape one; `refusal` says why it stays dense, ""
    where it need not."""

    name: str
    layer: nn.Linear | nn.Conv2d
    refusal: str = ""
    inputs: list[Tensor] = field(default_factory=list)


def place(model: nn.Module, inputs: Inputs, target: Target) -> tuple[nn.Module, Inputs]:
    """A copy of `model`, in eval mode, and its inputs, on the target's device in its dtype. Raises
    InputError."""
    if target.dtype not in _DTYPES:
        raise InputError(
            f"models are lowered in {', '.join(_DTYPES)}; target {target.name!r} asks for "
            f"{target.dtype}"
        )
    dtype = _DTYPES[target.dtype]

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    try:
        device = torch.device(target.device)
        copied = replace_tensors(model, lambda _, tensor: tensor.clone()).to(device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise InputError(
            f"target {target.name!r} has device {target.device!r}, not here: {said}"
        ) from error
    return copied.to(dtype).eval(), inputs.map(moved)


def sites(model: nn.Module, inputs: Inputs) -> list[Site]:
    """The layers with zeros of `model` after one call; `model` is in eval mode, and its hooks are
    as before."""
    watched = list(_candidates(model))
    handles = [site.layer.register_forward_pre_hook(_watch(site)) for site in watched]
    try:
        inputs.call(model)
    finally:
        for handle in handles:
            handle.remove()
    for site in watched:
        if not site.refusal and not site.inputs:
            site.refusal = "not called by the model's forward"
    return watched


def _candidates(model: nn.Module) -> Iterator[Site]:
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        names[id(module)] = name
    shared = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    for module in model.modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)) or not bool((module.weight == 0).any()):
            continue
        yield Site(names[id(module)], module, _refusal(module, shared))


def _refusal(module: nn.Linear | nn.Conv2d, shared: Counter[int]) -> str:
    weight = module._parameters.get("weight")
    kind = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    if weight is None:
        return "its weight is computed"
    if shared[id(weight)] > 1:
        return "its weight is shared"
    if type(module).forward is not kind.forward or "forward" in vars(module):
        return "its forward is not torch's own"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks"
    if isinstance(module, nn.Conv2d):
        if module.groups > 1:
            return "a grouped convolution"
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            return "its padding is not plain zeros in numbers"
    return ""


def _watch(site: Site) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        given = args[0] if args else None
        if not isinstance(given, Tensor) or not given.numel() or site.refusal:
            return
        if all(tensor.shape != given.shape for tensor in site.inputs):
            site.inputs.append(given.detach().clone())

    return hook
