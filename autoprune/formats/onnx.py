"""ONNX, one file, for every runtime that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.files import read_plain
from autoprune.formats._tracing import onnx_model
from autoprune.task import Inputs

__all__ = ["Onnx"]

# Operators of ONNX and of ONNX Runtime; one of another library would load that library
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

# Bytes; protobuf's own
LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Onnx:
    """The dynamo exporter's graph with a dynamic batch; parameters keep their names and every
    bit."""

    filename = "model.onnx"

    def save(self, model: nn.Module, inputs: Inputs, path: Path) -> None:
        """Write one file. Raises ModelError where the model cannot be exported, or is over 2
        GiB."""
        proto = onnx_model(model, inputs)
        size = proto.ByteSize()
        if size > LIMIT:
            raise ModelError(
                f"the ONNX model has {size / 2**30:.1f} GiB; one ONNX file holds at most 2 GiB"
            )
        path.write_bytes(proto.SerializeToString())

    def load(
        self, path: Path, template: Callable[[], nn.Module] | None = None
    ) -> Callable[[Inputs], list[Tensor]]:
        """The model on ONNX Runtime's CPU provider. Raises ModelError for a file that is no ONNX
        model of its own."""
        import onnxruntime

        content = self.content(path)

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # onnxruntime raises kinds of its own, all straight from Exception
            raise ModelError(
                f"{path} is no ONNX model that ONNX Runtime can open: {error}"
            ) from error
        names = [argument.name for argument in session.get_inputs()]

        def run(inputs: Inputs) -> list[Tensor]:
            arrays = [tensor.detach().cpu().numpy() for tensor in inputs.tensors()]
            if len(arrays) != len(names):
                raise ModelError(
                    f"{path} takes {len(names)} tensors ({', '.join(names)}); got {len(arrays)}"
                )
            return [
                torch.from_numpy(array)
                for array in session.run(None, dict(zip(names, arrays, strict=True)))
            ]

        return run

    @staticmethod
    def content(path: Path) -> bytes:
        """The bytes of an ONNX model that names no other file and no operator of another library.

        Raises ModelError for anything else.
        """
        import onnx

        try:
            content = read_plain(path, LIMIT)
            proto = onnx.load_model_from_string(content)
        except Exception as error:  # protobuf's kinds differ from release to release
            raise ModelError(
                f"{path} is no ONNX model that can be read: {str(error)[:200]}"
            ) from error
        own = _DOMAINS | {function.domain for function in proto.functions}
        for message in _messages(proto):
            kind = message.DESCRIPTOR.name
            if kind == "TensorProto" and (message.data_location or message.external_data):
                raise ModelError(
                    f"{path} keeps {message.name[:80]!r} in another file, which is not opened"
                )
            if kind == "NodeProto" and (
                message.domain not in own or message.op_type == "EPContext"
            ):
                known = f"{message.domain}:{message.op_type}"[:80]
                raise ModelError(
                    f"{path} has the operator {known!r}, which is none of ONNX or ONNX Runtime"
                )
        return content


def _messages(message: Any) -> Iterator[Any]:
    """A protobuf message and all that are in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(inner)
