"""PyTorch eager with sparse kernels: a layer whose weight has zeros runs on the kernel measured
fastest for it.

Which kernel that is, is chosen by `measuring.sparse_kernels` before the module comes here; what
comes is run call by call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from autoprune.errors import InputError
from autoprune.measuring.runtimes import _modules
from autoprune.measuring.runtimes._feed import Array
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["EagerSparse"]


@dataclass(frozen=True)
class EagerSparse(_modules.EagerModule):
    """As `eager`; on a CPU in fp32 alone, which is what torch's sparse kernels compute there."""

    artefact: Literal["module", "onnx"] = "module"
    dtypes: tuple[str, ...] = tuple(_modules.DTYPES)
    converts: tuple[str, ...] = ()

    def prepare(self, artefact: nn.Module, inputs: Inputs, target: Target) -> Callable[[], object]:
        """As `eager`; raises InputError also for another dtype than fp32 on a CPU."""
        _require_kernels(target)
        return super().prepare(artefact, inputs, target)

    def outputs(
        self, artefact: nn.Module, inputs: Inputs, target: Target
    ) -> Callable[[Inputs], list[Array]]:
        """As `eager`; raises as `prepare`."""
        _require_kernels(target)
        return super().outputs(artefact, inputs, target)


def _require_kernels(target: Target) -> None:
    if target.device == "cpu" and target.dtype != "fp32":
        raise InputError(
            f"target {target.name!r} asks for {target.dtype}, but the runtime eager_sparse "
            "computes fp32 on a CPU; give dtype fp32, or runtime eager"
        )
