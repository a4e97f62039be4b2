"""torch.export's program: runs in Python and in C++ without the model's source."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.files import read_plain
from autoprune.formats._archive import rewritten
from autoprune.formats._tracing import outputs_of, program, quiet
from autoprune.task import Inputs

__all__ = ["Program"]

# Bytes: the file is read, checked and written anew in memory, which holds it twice
_LIMIT = 2**36


@dataclass(frozen=True)
class Program:
    """An exported program (.pt2) with a dynamic batch."""

    filename = "model.pt2"

    def save(self, model: nn.Module, inputs: Inputs, path: Path) -> None:
        """Write one file. Raises ModelError where the model cannot be traced, or would not be
        loaded again."""
        exported = program(model, inputs)
        for node in exported.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        with quiet():
            buffer = io.BytesIO()
            torch.export.save(exported, buffer)
        rewritten(buffer.getvalue())
        path.write_bytes(buffer.getvalue())

    def load(
        self, path: Path, template: Callable[[], nn.Module] | None = None
    ) -> Callable[[Inputs], list[Tensor]]:
        """The program as a function. Raises ModelError for a file that is none, or that would run
        code when loaded."""
        try:
            data = rewritten(read_plain(path, _LIMIT))
            with quiet():
                # the guards of a program are Python source, which would be run
                module = torch.export.load(io.BytesIO(data)).module(check_guards=False)
        except ModelError as error:
            raise ModelError(f"{path} is not loaded: {error}") from error
        except Exception as error:  # a damaged archive fails anywhere: zip, JSON, pickle, schema
            raise ModelError(
                f"{path} is no exported program that can be read: {repr(error)[:300]}"
            ) from error

        def run(inputs: Inputs) -> list[Tensor]:
            with torch.inference_mode(), quiet():
                return outputs_of(inputs.call(module))

        return run
