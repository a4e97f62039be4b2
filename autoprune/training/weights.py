"""Weights from a file into a model: strictly, and without running anything that the file holds."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from autoprune.errors import ModelError

__all__ = ["load_weights"]

_SHOWN = 10


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Load a .safetensors file, or a state dict that torch.save wrote, into `model` in place.

    A state dict may lie under "state_dict" or "model", and its names may start with "module.", as
    DataParallel writes. Raises ModelError that lists every key that is missing, not expected, or of
    another shape; nothing is loaded then.
    """
    state = _read(Path(path))
    wanted = model.state_dict()
    problems = {
        # torch itself fills in the counter that old checkpoints lack; it has no part in the outputs
        "missing": [
            name
            for name in wanted
            if name not in state and not name.endswith("num_batches_tracked")
        ],
        "not expected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} (file {tuple(tensor.shape)}, model {tuple(wanted[name].shape)})"
            for name, tensor in state.items()
            if name in wanted and tensor.shape != wanted[name].shape
        ],
        "not finite": [
            name
            for name, tensor in state.items()
            if tensor.is_floating_point() and not bool(tensor.isfinite().all())
        ],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{what}: {_list_names(names)}" for what, names in problems.items() if names
        )
        raise ModelError(
            f"the weights in {path} do not fit the model; {told}; give the weights of this very "
            "model"
        )
    model.load_state_dict(state | {name: wanted[name] for name in wanted if name not in state})


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
    ) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{path} holds no weights that can be read safely ({reason}); needed: a .safetensors "
            "file, or what "
            "torch.save(model.state_dict(), path) writes"
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(tensor, Tensor) for tensor in state.values())
    ):
        raise ModelError(f"{path} holds no state dict (names -> tensors); save model.state_dict()")
    strip = all(name.startswith("module.") for name in state)
    return {
        name.removeprefix("module.") if strip else name: tensor for name, tensor in state.items()
    }


def _list_names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
