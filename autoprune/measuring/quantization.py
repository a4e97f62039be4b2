"""An ONNX file in the precision that it ships in: fp16 by casting, int8 by post-training static
quantisation.

int8 is the QDQ form: pairs of QuantizeLinear and DequantizeLinear around each operator, which ONNX
Runtime, OpenVINO and TensorRT fuse into integer kernels. Weights are signed, a scale for each
output channel (Krishnamoorthi 2018, arXiv:1806.08342); activations unsigned, a scale and a zero
point for each tensor, because ONNX Runtime's fast kernels on x86 take unsigned times signed: with
both signed they are no faster than fp32. `symmetric` makes activations signed around zero, as
TensorRT needs them. Batch norms are folded into the convolutions before.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune import scratch
from autoprune.errors import InputError, ModelError
from autoprune.measuring.runtimes._feed import Array, arrays

if TYPE_CHECKING:
    from autoprune.target import Target
    from autoprune.task import Inputs

__all__ = ["TOLERANCES", "convert", "fit_to_dtype", "outputs_for"]

# How far outputs computed on another machine may be from the recorded ones, relative to the
# largest; and the metric.
TOLERANCES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2, "int8": 5e-2}


def fit_to_dtype(
    content: bytes, runtime: Any, target: Target, calibration: Sequence[Inputs]
) -> bytes:
    """The file that the target runs: `content` itself where its runtime computes a fp32 file in the
    target's dtype.

    `calibration`: batches of inputs. Raises as `convert`.
    """
    if target.dtype not in getattr(runtime, "converts", ()):
        return content
    batches = [arrays(batch) for batch in calibration]
    return convert(content, target.dtype, batches, symmetric=getattr(runtime, "symmetric", False))


def convert(
    content: bytes, dtype: str, calibration: Sequence[Sequence[Array]], *, symmetric: bool = False
) -> bytes:
    """The fp32 ONNX file in fp16 or int8; its inputs and outputs stay as they are. fp32 gives
    `content` back.

    int8 takes the range of every activation from the batches of `calibration`: of one batch its
    extremes (a tenth of a second on a small net, enough to measure latency), of several the mean of
    the batches' extremes, which no single outlier sets. Raises InputError for another dtype, or
    int8 without a batch; ModelError for a graph that cannot be converted.
    """
    if dtype == "fp32":
        return content
    if dtype not in ("fp16", "int8"):
        raise InputError(f"an ONNX file is converted to fp16 or int8; got {dtype!r}")
    if dtype == "int8" and not calibration:
        raise InputError("int8 needs at least one batch of inputs to calibrate with; got none")
    try:
        with _quiet(), scratch.folder() as folder:
            return (
                _half(content)
                if dtype == "fp16"
                else _quantise(content, calibration, symmetric, Path(folder))
            )
    except Exception as error:
        # onnx, protobuf and onnxruntime raise kinds of their own, without end
        raise ModelError(
            f"the ONNX graph cannot be converted to {dtype}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:600]}"
        ) from error


def outputs_for(runtime: Any, target: Target) -> Any:
    """The runtime's `outputs`. Raises InputError where a runtime of the user's has none, which the
    dtype needs."""
    outputs = getattr(runtime, "outputs", None)
    if outputs is None:
        raise InputError(
            f"runtime {target.runtime!r} has no method outputs(artefact, inputs, target), which a "
            "target of dtype "
            f"{target.dtype} needs: the metric is that of the outputs in that precision. Give "
            "dtype fp32, or the method"
        )
    return outputs


def _half(content: bytes) -> bytes:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True)
    result: bytes = model.SerializeToString()
    return result


def _quantise(
    content: bytes, batches: Sequence[Sequence[Array]], symmetric: bool, folder: Path
) -> bytes:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model, names = _fold_constants(content, folder)
    quantised = folder / "quantised.onnx"
    quantize_static(
        model,
        quantised,
        _Reader(names, batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=_saturates() and not symmetric,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={"ActivationSymmetric": symmetric, "CalibMovingAverage": len(batches) > 1},
    )
    return quantised.read_bytes()


def _fold_constants(content: bytes, folder: Path) -> tuple[Any, list[str]]:
    """The graph with batch norms and constants folded, in standard operators, and the names of its
    inputs."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "folded.onnx")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "folded.onnx"), [argument.name for argument in session.get_inputs()]


class _Reader:
    """The batches as `onnxruntime.quantization` reads them: one after the other, then None."""

    def __init__(self, names: Sequence[str], batches: Sequence[Sequence[Array]]) -> None:
        self._left = iter([dict(zip(names, batch, strict=True)) for batch in batches])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._left, None)


def _saturates() -> bool:
    """Whether the CPU is x86 without VNNI: there sums of unsigned times signed overflow 16 bits,
    and weights get 7."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True  # no way to know: 7 bits are right everywhere


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the hints that the quantiser logs, which are followed already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
