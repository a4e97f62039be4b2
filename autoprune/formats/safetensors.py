"""safetensors: the values alone; loading needs the module they belong to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.files import check_safetensors
from autoprune.formats._tracing import outputs_of
from autoprune.task import Inputs

__all__ = ["Safetensors"]


@dataclass(frozen=True)
class Safetensors:
    """The state dict; tied tensors are stored once, under the first of their names in the state
    dict."""

    filename = "model.safetensors"

    def save(self, model: nn.Module, inputs: Inputs | None, path: Path) -> None:
        """Write the state dict; `inputs` are not needed."""
        path.write_bytes(self.dump(model))

    def load(
        self, path: Path, template: Callable[[], nn.Module] | None = None
    ) -> Callable[[Inputs], list[Tensor]]:
        """The module of `template` with these values. Raises ModelError where names or shapes do
        not match."""
        if template is None:
            raise ModelError(
                f"{path} holds values only; loading it needs a template that builds the module"
            )
        model = template()
        self.fill(model, path)
        model.eval()

        def run(inputs: Inputs) -> list[Tensor]:
            with torch.inference_mode():
                return [tensor.clone() for tensor in outputs_of(inputs.call(model))]

        return run

    @staticmethod
    def dump(model: nn.Module) -> bytes:
        """The file's bytes."""
        from safetensors.torch import save

        return save(
            {
                name: tensor.detach().cpu().contiguous()
                for name, tensor in _once(model.state_dict()).items()
            }
        )

    @staticmethod
    def fill(model: nn.Module, path: Path) -> None:
        """Load `path` into `model` strictly. Raises ModelError that lists missing, unknown and
        misshapen tensors."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            check_safetensors(path)
            stored = load_file(path)
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
            said = str(error).splitlines()[0][:200]
            raise ModelError(f"{path} is no safetensors file that can be read: {said}") from error
        state = model.state_dict()
        needed = _once(state)
        wrong = [f"missing {name}" for name in needed if name not in stored]
        wrong += [f"unknown {name}" for name in stored if name not in needed]
        wrong += [
            f"{name} has shape {_kind(stored[name])}, needs {_kind(tensor)}"
            for name, tensor in needed.items()
            if name in stored and _kind(stored[name]) != _kind(tensor)
        ]
        if wrong:
            more = f" and {len(wrong) - 12} more" if len(wrong) > 12 else ""
            raise ModelError(f"{path} does not fit the model: {'; '.join(wrong[:12])}{more}")
        with torch.no_grad():
            for name, tensor in needed.items():
                tensor.copy_(stored[name])


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def _once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each storage once: of tensors that are the same memory and shape, the first by name order in
    the state dict."""
    seen: set[tuple[object, ...]] = set()
    kept = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor
    return kept
