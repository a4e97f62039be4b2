"""ONNX Runtime: threads pinned to the target's number, no spinning, inputs and outputs bound
beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime

from autoprune import scratch
from autoprune.errors import InputError, ModelError
from autoprune.measuring.runtimes._feed import Array, as_float32, feed_by_name, require_dtype

if TYPE_CHECKING:
    from autoprune.target import Target
    from autoprune.task import Inputs

__all__ = ["OnnxRuntime"]

_ADVICE = {"bf16": "give fp32 or int8, or runtime openvino, eager or compiled for bf16"}


@dataclass(frozen=True)
class OnnxRuntime:
    """Runs ONNX bytes. Imports no torch, so that a fresh process is ready to measure in a fraction
    of a second.

    Spinning thread pools of two sessions fight for the cores: with them a ratio differs by 14 %
    between processes. fp16 and int8 are properties of the file (`quantization.convert`).
    """

    artefact: Literal["module", "onnx"] = "onnx"
    dtypes: tuple[str, ...] = ("fp32", "fp16", "int8")
    converts: tuple[str, ...] = ("fp16", "int8")

    def prepare(
        self, artefact: bytes | Path, inputs: Inputs | Sequence[Array], target: Target
    ) -> Callable[[], object]:
        """One call is one inference. `inputs` may be a list of arrays in the order of the graph's
        inputs.

        Raises InputError for a target that this runtime does not have, ModelError for a graph that
        it cannot run.
        """
        require_dtype("onnxruntime", target, self.dtypes, _ADVICE)
        session = _session(artefact, target)
        feed = feed_by_name([argument.name for argument in session.get_inputs()], inputs)
        try:
            return _bind_outputs(
                session, feed, "cuda" if target.device.startswith("cuda") else "cpu"
            )
        except Exception as error:  # onnxruntime's own kinds come straight from Exception
            raise ModelError(f"ONNX Runtime cannot run the graph: {error}") from error

    def outputs(
        self, artefact: bytes | Path, inputs: Any, target: Target
    ) -> Callable[[Any], list[Array]]:
        """A function from inputs shaped like `inputs` to the graph's outputs; raises as
        `prepare`."""
        require_dtype("onnxruntime", target, self.dtypes, _ADVICE)
        session = _session(artefact, target)
        names = [argument.name for argument in session.get_inputs()]
        return lambda given: [
            as_float32(np.asarray(output))
            for output in session.run(None, feed_by_name(names, given))
        ]

    def version(self) -> str:
        """As `onnxruntime 1.32.0`."""
        return f"onnxruntime {onnxruntime.__version__}"


def _session(artefact: bytes | Path, target: Target) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = target.threads
    # Operators run one after the other, so that `threads` is all that a call uses
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Fatal errors alone: what is wrong is raised
    options.log_severity_level = 4
    provider = (
        "CUDAExecutionProvider" if target.device.startswith("cuda") else "CPUExecutionProvider"
    )
    if provider not in onnxruntime.get_available_providers():
        raise InputError(
            f"target {target.name!r} has device {target.device!r}, which needs ONNX Runtime's "
            f"{provider}; "
            f"installed: {', '.join(onnxruntime.get_available_providers())}"
        )
    content = artefact.read_bytes() if isinstance(artefact, Path) else artefact
    if target.dtype == "int8" and b"QuantizeLinear" not in content:
        raise ModelError(
            "the target asks for int8 and the graph is not quantised; convert it with "
            "quantization.convert"
        )
    with scratch.folder() as folder:
        optimised = Path(folder) / "optimised.onnx"
        if target.dtype == "fp16":
            options.optimized_model_filepath = str(optimised)
        try:
            session = onnxruntime.InferenceSession(content, options, providers=[provider])
        except Exception as error:  # onnxruntime's own kinds come straight from Exception
            raise ModelError(f"ONNX Runtime cannot open the model: {error}") from error
        if target.dtype == "fp16":
            _require_half(optimised, target)
    return session


def _require_half(path: Path, target: Target) -> None:
    """Raise InputError where the weights of the graph that really runs are none of them fp16.

    Where a provider has no fp16 kernel, ONNX Runtime computes in fp32 between casts and does not
    say so.
    """
    import onnx

    kinds = {
        tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1
    }
    if onnx.TensorProto.FLOAT in kinds and onnx.TensorProto.FLOAT16 not in kinds:
        raise InputError(
            f"target {target.name!r} asks for fp16, which ONNX Runtime on device "
            f"{target.device!r} has no kernels for "
            "here: it would compute in fp32 in silence. Give fp32 or int8, or another runtime"
        )


def _bind_outputs(session: Any, feed: dict[str, Array], device: str) -> Callable[[], object]:
    """A call without copies or allocations: the outputs' memory has the shapes of one run made
    beforehand."""
    binding = session.io_binding()
    held = [onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0) for array in feed.values()]
    for name, ortvalue in zip(feed, held, strict=True):
        binding.bind_ortvalue_input(name, ortvalue)
    names = [argument.name for argument in session.get_outputs()]
    for name, array in zip(names, session.run(names, feed), strict=True):
        held.append(
            onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)
        )
        binding.bind_ortvalue_output(name, held[-1])

    def call(
        run: Callable[[Any], object] = session.run_with_iobinding, held: list[Any] = held
    ) -> object:
        return run(binding)  # `held` keeps the bound memory alive

    call()
    return call
