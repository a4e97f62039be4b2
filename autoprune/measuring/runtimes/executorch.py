"""ExecuTorch: the module lowered to XNNPACK, run through the Python bindings of its C++ runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime as _Runtime
from executorch.version import __version__ as _version
from torch import nn

from autoprune.errors import InputError, ModelError
from autoprune.formats._tracing import quiet
from autoprune.measuring.runtimes import _modules
from autoprune.measuring.runtimes._feed import Array, require_dtype
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["ExecuTorch"]

_ADVICE = {
    "int8": "for int8 on a CPU give runtime onnxruntime or openvino",
    "bf16": "give runtime eager or compiled",
}


@dataclass(frozen=True)
class ExecuTorch:
    """Runs the program that a phone would run, on this machine's CPU; operators XNNPACK lacks run
    on portable kernels.

    The thread pool belongs to the process: candidate and dense model must be measured with the same
    `threads`.
    """

    artefact: Literal["module", "onnx"] = "module"
    dtypes: tuple[str, ...] = ("fp32", "fp16")
    converts: tuple[str, ...] = ()

    def prepare(self, artefact: nn.Module, inputs: Inputs, target: Target) -> Callable[[], object]:
        """One call is one inference, its inputs set beforehand where the program does not plan
        their memory.

        Raises InputError for a device or dtype that is not here, ModelError for a module that
        cannot be lowered.
        """
        method, moved = _load_method(artefact, inputs, target)
        tensors = [tensor.contiguous() for tensor in moved.tensors()]

        def call() -> object:
            return method.execute(tensors)

        _execute(call)
        return call

    def outputs(
        self, artefact: nn.Module, inputs: Inputs, target: Target
    ) -> Callable[[Inputs], list[Array]]:
        """A function from inputs shaped like `inputs` to the module's output tensors; raises as
        `prepare`."""
        method, _ = _load_method(artefact, inputs, target)

        def run(given: Inputs) -> list[Array]:
            tensors = [tensor.contiguous() for tensor in _modules.cast(given, target).tensors()]
            return _modules.as_arrays(_execute(lambda: method.execute(tensors)))

        return run

    def version(self) -> str:
        """As `executorch 1.5.1`."""
        return f"executorch {_version.partition('+')[0]}"


@dataclass(frozen=True)
class _Method:
    """The program's memory must outlive the method, which does not keep it."""

    program: Any
    method: Any

    def execute(self, tensors: list[torch.Tensor]) -> Any:
        return self.method.execute(tensors)


def _load_method(artefact: nn.Module, inputs: Inputs, target: Target) -> tuple[_Method, Inputs]:
    """The loaded method `forward`, and the inputs as it takes them."""
    require_dtype("executorch", target, ("fp32", "fp16"), _ADVICE)
    if target.device != "cpu":
        raise InputError(
            f"target {target.name!r} has device {target.device!r}; runtime executorch runs on the "
            "CPU: give device cpu"
        )
    model, moved = _modules.prepare_module("executorch", artefact, inputs, target)
    if portable_lib._threadpool_get_thread_count() != target.threads:
        portable_lib._unsafe_reset_threadpool(target.threads)
    with quiet(), torch.no_grad():
        try:
            program = torch.export.export(model, moved.args, moved.kwargs, strict=False)
            lowered = to_edge_transform_and_lower(
                program, partitioner=[XnnpackPartitioner()]
            ).to_executorch()
            loaded = _Runtime.get().load_program(lowered.buffer)
            return _Method(loaded, loaded.load_method("forward")), moved
        except Exception as error:
            # torch.export and the lowering raise kinds of their own, without end
            raise ModelError(
                f"ExecuTorch cannot lower the model: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:600]}"
            ) from error


def _execute(execute: Callable[[], Any]) -> Any:
    try:
        return execute()
    except RuntimeError as error:
        raise ModelError(
            f"ExecuTorch cannot run the program: {' '.join(str(error).split())[:600]}"
        ) from error
