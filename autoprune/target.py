"""Target: where the model will run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Target"]


@dataclass(frozen=True)
class Target:
    """A device and the runtime on it. `batch` is the number of inputs in one call, `threads` what
    the runtime may use.

    `dtype` (fp32, bf16, fp16, int8) is what the model ships in: latency, size and metric are those
    in it, of candidates and of the dense model alike. Training is a matter of its own. Widths are
    rounded to a multiple of `multiple_of`, which the device's kernels like; 1 leaves them as the
    ratio says. `recorded`, the folder of a run, says that nothing is measured: its figures are the
    answer.
    """

    name: str = "cpu_onnxruntime"
    device: str = "cpu"
    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    dtype: str = "fp32"
    multiple_of: int = 1
    recorded: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field, without `recorded` where figures are measured."""
        return {key: value for key, value in asdict(self).items() if key != "recorded" or value}

    def in_study(self) -> dict[str, Any]:
        """As a study has it: of a recorded target where the figures come from."""
        given = asdict(self)
        recorded = given.pop("recorded")
        return given | ({"runtime": "recorded", "from": recorded} if recorded else {})
