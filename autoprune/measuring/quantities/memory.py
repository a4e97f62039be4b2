"""Peak memory of a process that runs the model.

On a CPU: a process imports the runtime and the model's code, notes its resident memory, then loads
the model and calls it a few times; the figure is the peak from there on, less what was noted. So it
holds weights, activations and whatever the runtime allocates for them and for itself, some of which
no pruning makes smaller. One process is enough: the figure repeats within 1 %. Linux alone tells
the peak. On CUDA it is the peak of torch's allocator, `torch.cuda.max_memory_allocated`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from autoprune import plugins
from autoprune.quantities import BYTES
from autoprune.target import Target

__all__ = ["Memory"]

_CALLS = 10
_PEAK, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, over what is held before the model is loaded."""

    units: ClassVar = BYTES
    example: ClassVar = "60% (of dense) or 20MB"
    title: ClassVar = "peak memory"
    # It repeats to 1 %; another session may have another allocator's arena
    tolerance: ClassVar = 0.1

    def unavailable(self, target: Target) -> str | None:
        """Why the peak cannot be told, or None."""
        if target.device.startswith("cuda"):
            runtime = plugins.load("runtime", target.runtime)()
            if runtime.artefact == "module":
                return None
            return f"runtime {target.runtime} does not tell what it allocates on {target.device}"
        readable = _PEAK.exists() and "VmHWM" in _PEAK.read_text() and os.access(_RESET, os.W_OK)
        if readable:
            return None
        return (
            "this system does not tell the peak memory of a process (Linux does, in "
            "/proc/self/status)"
        )

    def begin(self, target: Target) -> Callable[[Callable[[], object]], float]:
        """Note what is held now; then a few calls, and the peak."""
        # What is let go of and not yet freed would count as held
        gc.collect()
        peak = _peak(target)

        def measure(call: Callable[[], object]) -> float:
            for _ in range(_CALLS):
                call()
            return peak()

        return measure


def _peak(target: Target) -> Callable[[], int]:
    """A function that gives the bytes at the peak since now, over what is held now."""
    if target.device.startswith("cuda"):
        import torch

        # Before there is a context, nothing can be reset
        torch.empty(1, device=target.device)
        torch.cuda.reset_peak_memory_stats(target.device)
        return lambda: int(torch.cuda.max_memory_allocated(target.device))
    _RESET.write_text("5")  # the peak so far is forgotten: importing has one of its own
    before = _resident("VmRSS")
    return lambda: _resident("VmHWM") - before


def _resident(field: str) -> int:
    line = next(line for line in _PEAK.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
