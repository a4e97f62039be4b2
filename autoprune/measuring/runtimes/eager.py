"""PyTorch eager: the module as it is, in inference mode."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from autoprune.errors import InputError
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["Eager"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Eager:
    """Runs a copy of the module on the target's device, in eval mode; on CUDA a call waits for the device to finish."""

    artefact: Literal["module", "onnx"] = "module"

    def prepare(self, artefact: nn.Module, inputs: Inputs, target: Target) -> Callable[[], object]:
        """One call is one inference. A call sets torch's number of threads to the target's where it is another.

        The number of threads is the process's own: whoever times the calls puts it back (`measure.timed` does).
        Raises InputError for a device or dtype that is not here.
        """
        if target.dtype not in _DTYPES:
            raise InputError(f"runtime eager knows the dtypes {', '.join(_DTYPES)}; got {target.dtype!r}")
        device, dtype = _device(target), _DTYPES[target.dtype]
        model = copy.deepcopy(artefact).to(device).eval()
        moved = inputs.to(device)
        if dtype != torch.float32:
            model, moved = model.to(dtype), moved.map(lambda t: t.to(dtype) if t.is_floating_point() else t)
        args, kwargs, threads = moved.args, moved.kwargs, target.threads

        @torch.inference_mode()
        def call() -> object:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            output = model(*args, **kwargs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return output

        return call

    def version(self) -> str:
        """As `torch 2.14.1`."""
        return f"torch {torch.__version__}"


def _device(target: Target) -> torch.device:
    try:
        device = torch.device(target.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"target {target.name!r} has device {target.device!r}, which torch cannot use here: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return device
