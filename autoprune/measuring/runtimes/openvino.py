"""OpenVINO: the CPU plug-in on the same ONNX bytes, one stream, the target's threads, a precision
that is checked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import openvino

from autoprune.errors import InputError, ModelError
from autoprune.measuring.runtimes._feed import Array, as_float32, feed_by_name, require_dtype

if TYPE_CHECKING:
    from autoprune.target import Target
    from autoprune.task import Inputs

__all__ = ["OpenVino"]

# fp32 is asked for by name: by default OpenVINO takes bf16 where the CPU has it. The rest of an
# int8 graph is fp32.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
# What the layers with weights must have run in: the hint alone is no proof of it
_KERNELS = {"fp32": {"f32"}, "bf16": {"bf16"}, "fp16": {"f16"}, "int8": {"u8", "i8"}}
_WEIGHTED = {"Convolution", "FullyConnected", "MatMul", "Deconvolution", "RNNSeq", "RNNCell"}


@dataclass(frozen=True)
class OpenVino:
    """Runs ONNX bytes with inputs in memory of its own, reshaped to them. Imports no torch.

    bf16 and fp16 are how OpenVINO computes a fp32 file; int8 is a property of the file
    (`quantization.convert`).
    """

    artefact: Literal["module", "onnx"] = "onnx"
    dtypes: tuple[str, ...] = ("fp32", "bf16", "fp16", "int8")
    converts: tuple[str, ...] = ("int8",)

    def prepare(
        self, artefact: bytes | Path, inputs: Inputs | Sequence[Array], target: Target
    ) -> Callable[[], object]:
        """One call is one inference. `inputs` may be a list of arrays in the order of the graph's
        inputs.

        Raises InputError for a target that this runtime does not have, or a precision that the CPU
        would silently replace; ModelError for a graph that it cannot run.
        """
        compiled, feed = _compile(artefact, inputs, target, self.dtypes)
        request = compiled.create_infer_request()
        for place, array in enumerate(feed.values()):
            request.set_input_tensor(place, openvino.Tensor(array))
        infer = functools.partial(request.infer, share_outputs=True)
        _infer(infer)
        return infer

    def outputs(
        self, artefact: bytes | Path, inputs: Any, target: Target
    ) -> Callable[[Any], list[Array]]:
        """A function from inputs shaped like `inputs` to the graph's outputs; raises as
        `prepare`."""
        compiled, feed = _compile(artefact, inputs, target, self.dtypes)
        request, names = compiled.create_infer_request(), list(feed)

        def run(given: Any) -> list[Array]:
            outputs = _infer(
                lambda: request.infer(dict(enumerate(feed_by_name(names, given).values())))
            )
            return [
                as_float32(np.asarray(outputs[place])) for place in range(len(compiled.outputs))
            ]

        return run

    def version(self) -> str:
        """As `openvino 2026.4.1`."""
        return f"openvino {openvino.__version__.partition('-')[0]}"


@functools.cache
def _core() -> Any:
    return openvino.Core()


def _compile(
    artefact: bytes | Path, inputs: Any, target: Target, dtypes: Sequence[str]
) -> tuple[Any, dict[str, Array]]:
    """The model compiled for the shapes of `inputs`, and array by input name."""
    require_dtype("openvino", target, dtypes, {})
    if target.device != "cpu":
        raise InputError(
            f"target {target.name!r} has device {target.device!r}; runtime openvino runs on the "
            "CPU: give device cpu, "
            "or runtime tensorrt for a CUDA device"
        )
    content = artefact.read_bytes() if isinstance(artefact, Path) else artefact
    try:
        model = _core().read_model(content)
    except Exception as error:  # OpenVINO raises plain RuntimeErrors and kinds of its own
        raise ModelError(f"OpenVINO cannot open the model: {_brief(error)}") from error
    feed = feed_by_name([port.any_name for port in model.inputs], inputs)
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _HINTS[target.dtype],
        "INFERENCE_NUM_THREADS": target.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        # Else the number of threads is cut to that of physical cores
        "ENABLE_HYPER_THREADING": True,
    }
    try:
        model.reshape({place: list(array.shape) for place, array in enumerate(feed.values())})
        compiled = _core().compile_model(model, "CPU", config)
    except Exception as error:
        raise ModelError(f"OpenVINO cannot compile the model: {_brief(error)}") from error
    _check(compiled, target)
    return compiled, feed


def _check(compiled: Any, target: Target) -> None:
    """Raise InputError where the threads or the precision are not those that were asked for."""
    threads = compiled.get_property("INFERENCE_NUM_THREADS")
    if threads != target.threads:
        raise InputError(
            f"target {target.name!r} asks for {target.threads} threads, OpenVINO takes {threads} "
            "on this machine; "
            f"give threads: {threads} or fewer"
        )
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = {
        str(info["runtimePrecision"].value)
        for info in nodes
        if info["layerType"].value in _WEIGHTED
    }
    if target.dtype == "int8" and not kinds & _KERNELS["int8"]:
        raise ModelError(
            "the target asks for int8 and OpenVINO computes the graph in "
            f"{', '.join(sorted(kinds)) or hint}: it is "
            "not quantised (quantization.convert does that), or none of its layers can be"
        )
    if hint != _HINTS[target.dtype] or (kinds and not kinds & _KERNELS[target.dtype]):
        raise InputError(
            f"target {target.name!r} asks for {target.dtype}, and on this CPU OpenVINO would "
            "compute in "
            f"{', '.join(sorted(kinds)) or hint} without saying so; give a dtype that the CPU has: "
            f"{', '.join(_core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'))}"
        )


def _infer(infer: Callable[[], Any]) -> Any:
    try:
        return infer()
    except Exception as error:
        raise ModelError(f"OpenVINO cannot run the graph: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:600]
