"""A runtime whose latency is known: a formula of the model's parameters, waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from autoprune.measuring.runtimes.eager import Eager
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["FakeRuntime"]


@dataclass(frozen=True)
class FakeRuntime(Eager):
    """Computes as `eager`, and takes `latency_s` for a call, whatever kernels would take.

    For tests of what rests on latency, in a target as `runtime: autoprune.testing:FakeRuntime`.
    """

    def prepare(self, artefact: nn.Module, inputs: Inputs, target: Target) -> Callable[[], object]:
        """One call waits for the latency of `artefact`."""
        whole = self.latency_s(artefact)

        def call() -> None:
            end = time.perf_counter() + whole
            while time.perf_counter() < end:
                pass

        super().prepare(artefact, inputs, target)  # raises what eager raises
        return call

    @staticmethod
    def latency_s(model: nn.Module) -> float:
        """50 microseconds, and one more for every hundred parameters."""
        return 50e-6 + 1e-8 * sum(parameter.numel() for parameter in model.parameters())

    def version(self) -> str:
        """As `fake 1`."""
        return "fake 1"
