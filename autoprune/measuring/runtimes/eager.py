"""PyTorch eager: the module as it is, in inference mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from autoprune.measuring.runtimes import _modules
from autoprune.measuring.runtimes._feed import Array
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["Eager"]


@dataclass(frozen=True)
class Eager:
    """Runs a copy of the module on the target's device, in eval mode; on CUDA a call waits for the
    device to finish.

    bf16 and fp16 cast the weights and the inputs.
    """

    artefact: Literal["module", "onnx"] = "module"
    dtypes: tuple[str, ...] = tuple(_modules.DTYPES)
    converts: tuple[str, ...] = ()

    def prepare(self, artefact: nn.Module, inputs: Inputs, target: Target) -> Callable[[], object]:
        """One call is one inference. A call sets torch's number of threads to the target's where it
        is another.

        The number of threads is the process's own: whoever times the calls puts it back
        (`measure.time_artefact` does). Raises InputError for a device or dtype that is not here.
        """
        model, moved = _modules.prepare_module("eager", artefact, inputs, target)
        return _modules.timed_call(model, moved, target)

    def outputs(
        self, artefact: nn.Module, inputs: Inputs, target: Target
    ) -> Callable[[Inputs], list[Array]]:
        """A function from inputs shaped like `inputs` to the module's output tensors; raises as
        `prepare`."""
        model, _ = _modules.prepare_module("eager", artefact, inputs, target)

        @torch.inference_mode()
        def run(given: Inputs) -> list[Array]:
            return _modules.as_arrays(_modules.cast(given, target).call(model))

        return run

    def version(self) -> str:
        """As `torch 2.14.1`."""
        return f"torch {torch.__version__}"
