"""Where a model runs, and what is given back afterwards: device, modes, random states."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import nn

from autoprune.errors import InputError

__all__ = ["device", "on_device", "with_seed"]


def device(name: str) -> torch.device:
    """The device of that name; `auto` is the first CUDA device, or else the CPU. Raises InputError
    if there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}; write auto or cpu"
        ) from error


@contextmanager
def on_device(model: nn.Module, where: torch.device) -> Iterator[None]:
    """The model on a device and in eval mode; afterwards back, every module in the mode it had."""
    modes = {module: module.training for module in model.modules()}
    home = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), where)
    try:
        model.to(where).eval()
        yield
    finally:
        model.to(home)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def with_seed(seed: int, where: torch.device) -> Iterator[None]:
    """Every random generator set by `seed` inside, and as it was before afterwards."""
    python, array = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if where.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
