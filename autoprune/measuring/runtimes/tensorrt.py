"""TensorRT: an engine built from the ONNX bytes for the shapes of the inputs, its precisions those
of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tensorrt
import torch

from autoprune.errors import InputError, ModelError
from autoprune.measuring.runtimes._feed import Array, as_float32, feed_by_name, require_dtype

if TYPE_CHECKING:
    from autoprune.target import Target
    from autoprune.task import Inputs

__all__ = ["TensorRT"]

_ADVICE = {"bf16": "give fp16, or runtime eager or compiled for bf16"}
_LOGGER = tensorrt.Logger(tensorrt.Logger.ERROR)


@dataclass(frozen=True)
class TensorRT:
    """Runs ONNX bytes on a CUDA device; a call waits for the device to finish. Building takes
    seconds to minutes.

    Networks are strongly typed: fp16 and int8 are properties of the file (`quantization.convert`),
    int8 symmetric, and fp32 is fp32 (TF32 is off). `threads` says nothing here.
    """

    artefact: Literal["module", "onnx"] = "onnx"
    dtypes: tuple[str, ...] = ("fp32", "fp16", "int8")
    converts: tuple[str, ...] = ("fp16", "int8")
    symmetric: bool = True

    def prepare(
        self, artefact: bytes | Path, inputs: Inputs | Sequence[Array], target: Target
    ) -> Callable[[], object]:
        """One call is one inference. `inputs` may be a list of arrays in the order of the graph's
        inputs.

        Raises InputError for a target that this runtime does not have, ModelError for a graph that
        it cannot build.
        """
        engine = _Engine(artefact, inputs, target, self.dtypes)
        engine.run()
        return engine.run

    def outputs(
        self, artefact: bytes | Path, inputs: Any, target: Target
    ) -> Callable[[Any], list[Array]]:
        """A function from inputs shaped like `inputs` to the graph's outputs; raises as
        `prepare`."""
        engine = _Engine(artefact, inputs, target, self.dtypes)

        def run(given: Any) -> list[Array]:
            engine.fill(given)
            engine.run()
            return [as_float32(tensor.cpu().numpy()) for tensor in engine.outputs]

        return run

    def version(self) -> str:
        """As `tensorrt 10.13.3`."""
        return f"tensorrt {tensorrt.__version__}"


class _Engine:
    """An engine with its context, and its inputs and outputs in device memory."""

    def __init__(
        self, artefact: bytes | Path, inputs: Any, target: Target, dtypes: Sequence[str]
    ) -> None:
        require_dtype("tensorrt", target, dtypes, _ADVICE)
        if not target.device.startswith("cuda") or not torch.cuda.is_available():
            raise InputError(
                f"target {target.name!r} has device {target.device!r}; runtime tensorrt needs "
                "device cuda and an "
                "NVIDIA GPU: give runtime openvino or onnxruntime for a CPU"
            )
        self.device = torch.device(target.device)
        content = artefact.read_bytes() if isinstance(artefact, Path) else artefact
        with torch.cuda.device(self.device):
            plan, self.names, feed = _build_engine(content, inputs)
            self.runtime = tensorrt.Runtime(_LOGGER)
            self.engine = self.runtime.deserialize_cuda_engine(plan)
            self.context = self.engine.create_execution_context()
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self.inputs = {
                name: torch.from_numpy(array).to(self.device) for name, array in feed.items()
            }
            self.outputs = self._bind()

    def fill(self, given: Any) -> None:
        """Copy other inputs of the same shapes into the bound memory."""
        for name, array in feed_by_name(self.names, given).items():
            self.inputs[name].copy_(torch.from_numpy(array))
        torch.cuda.synchronize(self.device)

    def run(self) -> None:
        """One inference; returns when the device is done."""
        if not self.context.execute_async_v3(self.stream.cuda_stream):
            raise ModelError("TensorRT cannot run the engine; its log says why")
        self.stream.synchronize()

    def _bind(self) -> list[torch.Tensor]:
        outputs = []
        for name, tensor in self.inputs.items():
            self.context.set_input_shape(name, tuple(tensor.shape))
            self.context.set_tensor_address(name, tensor.data_ptr())
        for place in range(self.engine.num_io_tensors):
            name = self.engine.get_tensor_name(place)
            if self.engine.get_tensor_mode(name) == tensorrt.TensorIOMode.OUTPUT:
                dtype = getattr(
                    torch, str(tensorrt.nptype(self.engine.get_tensor_dtype(name)).__name__)
                )
                shape = tuple(self.context.get_tensor_shape(name))
                outputs.append(torch.empty(shape, dtype=dtype, device=self.device))
                self.context.set_tensor_address(name, outputs[-1].data_ptr())
        return outputs


def _build_engine(content: bytes, inputs: Any) -> tuple[Any, list[str], dict[str, Array]]:
    """The serialized engine, the names of its inputs, and array by name. Raises ModelError."""
    builder = tensorrt.Builder(_LOGGER)
    # Later versions know no other kind
    typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = tensorrt.OnnxParser(network, _LOGGER)
    if not parser.parse(content):
        reasons = "; ".join(
            str(parser.get_error(place).desc()) for place in range(parser.num_errors)
        )
        raise ModelError(f"TensorRT cannot read the graph: {' '.join(reasons.split())[:600]}")
    names = [network.get_input(place).name for place in range(network.num_inputs)]
    feed = feed_by_name(names, inputs)
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    for name, array in feed.items():
        profile.set_shape(name, array.shape, array.shape, array.shape)
    config.add_optimization_profile(profile)
    # By default fp32 would be computed in TF32, with 10 bits of mantissa
    config.clear_flag(tensorrt.BuilderFlag.TF32)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError("TensorRT cannot build an engine of the graph; its log says why")
    return plan, names, feed
