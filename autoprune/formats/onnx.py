"""ONNX, one file, for every runtime that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.formats._tracing import onnx_model
from autoprune.task import Inputs

__all__ = ["Onnx"]

LIMIT = 2**31 - 1  # bytes; protobuf's own


@dataclass(frozen=True)
class Onnx:
    """The dynamo exporter's graph with a dynamic batch; parameters keep their names and every bit."""

    filename = "model.onnx"

    def save(self, model: nn.Module, inputs: Inputs, path: Path) -> None:
        """Write one file. Raises ModelError where the model cannot be exported, or is over 2 GiB."""
        proto = onnx_model(model, inputs)
        size = proto.ByteSize()
        if size > LIMIT:
            raise ModelError(f"the ONNX model has {size / 2**30:.1f} GiB; one ONNX file holds at most 2 GiB")
        path.write_bytes(proto.SerializeToString())

    def load(self, path: Path, template: Callable[[], nn.Module] | None = None) -> Callable[[Inputs], list[Tensor]]:
        """The model on ONNX Runtime's CPU provider. Raises ModelError for a file that is no ONNX model."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises kinds of its own, all straight from Exception
            raise ModelError(f"{path} is no ONNX model that ONNX Runtime can open: {error}") from error
        names = [value.name for value in session.get_inputs()]

        def run(inputs: Inputs) -> list[Tensor]:
            arrays = [tensor.detach().cpu().numpy() for tensor in inputs.tensors()]
            if len(arrays) != len(names):
                raise ModelError(f"{path} takes {len(names)} tensors ({', '.join(names)}); got {len(arrays)}")
            return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

        return run
