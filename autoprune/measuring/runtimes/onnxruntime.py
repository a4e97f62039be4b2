"""ONNX Runtime: threads pinned to the target's number, no spinning, inputs and outputs bound beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime

from autoprune.errors import InputError, ModelError

if TYPE_CHECKING:
    from autoprune.target import Target
    from autoprune.task import Inputs

__all__ = ["OnnxRuntime"]


@dataclass(frozen=True)
class OnnxRuntime:
    """Runs ONNX bytes. Imports no torch, so that a fresh process is ready to measure in a fraction of a second.

    Spinning thread pools of two sessions fight for the cores: with them a ratio differs by 14 % between processes.
    """

    artefact: Literal["module", "onnx"] = "onnx"

    def prepare(
        self, artefact: bytes | Path, inputs: Inputs | Sequence[np.ndarray[Any, Any]], target: Target
    ) -> Callable[[], object]:
        """One call is one inference. `inputs` may be a list of arrays in the order of the graph's inputs.

        Raises InputError for a target that this runtime does not have, ModelError for a graph that it cannot run.
        """
        if target.dtype != "fp32":
            raise InputError(f"runtime onnxruntime runs fp32 models; target {target.name!r} asks for {target.dtype}")
        arrays = _arrays(inputs)
        session = _session(artefact, target)
        names = [value.name for value in session.get_inputs()]
        if len(arrays) != len(names):
            raise ModelError(f"the graph takes {len(names)} tensors ({', '.join(names)}); got {len(arrays)}")
        feed = dict(zip(names, arrays, strict=True))
        try:
            return _bound(session, feed, "cuda" if target.device.startswith("cuda") else "cpu")
        except Exception as error:  # onnxruntime's own kinds come straight from Exception
            raise ModelError(f"ONNX Runtime cannot run the graph: {error}") from error

    def version(self) -> str:
        """As `onnxruntime 1.32.0`."""
        return f"onnxruntime {onnxruntime.__version__}"


def _arrays(inputs: Any) -> list[np.ndarray[Any, Any]]:
    if hasattr(inputs, "tensors"):
        inputs = [tensor.detach().cpu().numpy() for tensor in inputs.tensors()]
    return [np.ascontiguousarray(array) for array in inputs]


def _session(artefact: bytes | Path, target: Target) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 4
    provider = "CUDAExecutionProvider" if target.device.startswith("cuda") else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise InputError(
            f"target {target.name!r} has device {target.device!r}, which needs ONNX Runtime's {provider}; "
            f"installed: {', '.join(onnxruntime.get_available_providers())}"
        )
    content = artefact.read_bytes() if isinstance(artefact, Path) else artefact
    try:
        return onnxruntime.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # onnxruntime's own kinds come straight from Exception
        raise ModelError(f"ONNX Runtime cannot open the model: {error}") from error


def _bound(session: Any, feed: dict[str, np.ndarray[Any, Any]], device: str) -> Callable[[], object]:
    """A call without copies or allocations: the outputs' memory has the shapes of one run made beforehand."""
    binding = session.io_binding()
    held = [onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0) for array in feed.values()]
    for name, value in zip(feed, held, strict=True):
        binding.bind_ortvalue_input(name, value)
    names = [value.name for value in session.get_outputs()]
    for name, array in zip(names, session.run(names, feed), strict=True):
        held.append(onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0))
        binding.bind_ortvalue_output(name, held[-1])

    def call(run: Callable[[Any], object] = session.run_with_iobinding, held: list[Any] = held) -> object:
        return run(binding)  # `held` keeps the bound memory alive

    call()
    return call
