"""Energy of a call, from the machine's own counter: RAPL for a CPU, NVML (or AMD's SMI) for a GPU,
read by the package zeus.

It is what the counter moves by over a second of calls, divided by them. It counts the whole package
or board, idle power and other programs' work as well. Without a counter there is no figure: nothing
is estimated.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from autoprune.errors import ModelError
from autoprune.target import Target

__all__ = ["Energy"]

# A counter moves in steps (RAPL's about every millisecond), so it is read over many calls
_SECONDS, _FEWEST = 1.0, 10


@dataclass(frozen=True)
class Energy:
    """Millijoules of a call."""

    units: ClassVar = {"uJ": 1e-3, "mJ": 1.0, "J": 1e3}
    example: ClassVar = "50% (of dense) or 3mJ, of one call"
    title: ClassVar = "energy of a call"
    # The counter hears other programs
    tolerance: ClassVar = 0.4

    def unavailable(self, target: Target) -> str | None:
        """Why this machine has no counter that may be read, or None."""
        try:
            counter(target)()
        except ModelError as error:
            return str(error)
        return None

    def begin(self, target: Target) -> Callable[[Callable[[], object]], float]:
        """Read the counter only when the model is loaded."""
        return lambda call: of_call(call, counter(target))


def counter(target: Target) -> Callable[[], float]:
    """A function that gives the millijoules that the target's device has used since some moment.

    All CPU packages with their memory, or the one GPU. Raises ModelError where there is no counter.
    """
    if importlib.util.find_spec("zeus") is None:
        raise ModelError(
            "reading a counter of energy needs the package zeus: pip install 'autoprune[energy]'"
        )
    from zeus.exception import ZeusBaseError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _gpu(target) if target.device.startswith("cuda") else read_cpus()
    except (ZeusBaseError, OSError) as error:
        kind = "GPU" if target.device.startswith("cuda") else "CPU"
        raise ModelError(
            f"this machine has no counter of its {kind}'s energy that may be read: {error}"
        ) from error


def of_call(
    call: Callable[[], object], counter: Callable[[], float], seconds: float = _SECONDS
) -> float:
    """Millijoules of one call: what the counter moves by over `seconds` of calls, at least ten, a
    call each.

    Raises ModelError where the counter does not move: zero would be wrong.
    """
    calls, start = 0, counter()
    begin = time.perf_counter()
    while calls < _FEWEST or time.perf_counter() - begin < seconds:
        call()
        calls += 1
    used = counter() - start
    if used <= 0:
        raise ModelError(
            f"the counter of energy did not move over {calls} calls, so it cannot be trusted"
        )
    return used / calls


def read_cpus() -> Callable[[], float]:
    """Reads the counters of all CPU packages and their memory, in mJ."""
    from zeus.device import get_cpus

    packages = get_cpus()

    def read() -> float:
        readings = [packages.get_total_energy_consumption(index) for index in range(len(packages))]
        return float(sum(reading.cpu_mj + (reading.dram_mj or 0.0) for reading in readings))

    return read


def _gpu(target: Target) -> Callable[[], float]:
    from zeus.device import get_gpus

    boards, index = get_gpus(), int(target.device.partition(":")[2] or 0)
    if not boards.supports_get_total_energy_consumption(index):
        raise ModelError(f"the GPU {target.device} has no counter of its energy")
    return lambda: float(boards.get_total_energy_consumption(index))
