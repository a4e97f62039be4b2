"""PyTorch eager: the module as it is, in inference mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from autoprune.measuring.runtimes import _modules

__all__ = ["Eager"]


@dataclass(frozen=True)
class Eager(_modules.EagerModule):
    """Runs a copy of the module on the target's device, in eval mode; on CUDA a call waits for the
    device to finish.

    bf16 and fp16 cast the weights and the inputs.
    """

    artefact: Literal["module", "onnx"] = "module"
    dtypes: tuple[str, ...] = tuple(_modules.DTYPES)
    converts: tuple[str, ...] = ()
