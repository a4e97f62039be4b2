"""What the runtimes that take a module share: a copy of it on the target's device, in the target's
precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autoprune.errors import InputError
from autoprune.formats._tracing import outputs_of
from autoprune.measuring.runtimes._feed import Array, require_dtype

if TYPE_CHECKING:
    from autoprune.target import Target
    from autoprune.task import Inputs

__all__ = [
    "DTYPES",
    "EagerModule",
    "as_arrays",
    "cast",
    "device_of",
    "prepare_module",
    "set_threads",
    "timed_call",
]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ADVICE = {"int8": "for int8 give runtime onnxruntime, openvino or tensorrt, or another dtype"}


def prepare_module(
    runtime: str, artefact: nn.Module, inputs: Inputs, target: Target
) -> tuple[nn.Module, Inputs]:
    """A copy of the module, in eval mode, and the inputs, both on the target's device in its dtype.

    Raises InputError for a device or dtype that is not here.
    """
    require_dtype(runtime, target, tuple(DTYPES), _ADVICE)
    model = copy.deepcopy(artefact).to(device_of(target)).eval()
    if target.dtype != "fp32":
        model = model.to(DTYPES[target.dtype])
    return model, cast(inputs, target)


def cast(inputs: Inputs, target: Target) -> Inputs:
    """The inputs on the target's device, the floats among them in its dtype."""
    dtype = DTYPES[target.dtype]
    moved = inputs.to(device_of(target))
    return (
        moved
        if target.dtype == "fp32"
        else moved.map(lambda t: t.to(dtype) if t.is_floating_point() else t)
    )


def timed_call(run: Callable[..., object], inputs: Inputs, target: Target) -> Callable[[], object]:
    """One call of `run`, with the target's number of threads; on CUDA it waits for the device to
    finish."""
    args, kwargs, threads, device = inputs.args, inputs.kwargs, target.threads, device_of(target)

    @torch.inference_mode()
    def call() -> object:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        output = run(*args, **kwargs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return output

    return call


def as_arrays(output: Any) -> list[Array]:
    """Every tensor of a model's output as an array of its own, in float32 where it is a shorter
    float."""

    def whole(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

    return [whole(tensor.detach()).cpu().numpy().copy() for tensor in outputs_of(output)]


def set_threads(count: int) -> None:
    """torch's number of threads; it is the process's own, and whoever times calls puts it back."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def device_of(target: Target) -> torch.device:
    """The target's device. Raises InputError where torch cannot use it here."""
    try:
        device = torch.device(target.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"target {target.name!r} has device {target.device!r}, which torch cannot use here: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return device


class EagerModule:
    """What runs a module call by call, as PyTorch does."""

    def prepare(self, artefact: nn.Module, inputs: Inputs, target: Target) -> Callable[[], object]:
        """One call is one inference. A call sets torch's number of threads to the target's where it
        is another.

        The number of threads is the process's own: whoever times the calls puts it back
        (`measure.time_artefact` does). Raises InputError for a device or dtype that is not here.
        """
        model, moved = prepare_module(target.runtime, artefact, inputs, target)
        return timed_call(model, moved, target)

    def outputs(
        self, artefact: nn.Module, inputs: Inputs, target: Target
    ) -> Callable[[Inputs], list[Array]]:
        """A function from inputs shaped like `inputs` to the module's output tensors; raises as
        `prepare`."""
        model, _ = prepare_module(target.runtime, artefact, inputs, target)

        @torch.inference_mode()
        def run(given: Inputs) -> list[Array]:
            return as_arrays(cast(given, target).call(model))

        return run

    def version(self) -> str:
        """As `torch 2.14.1`."""
        return f"torch {torch.__version__}"
