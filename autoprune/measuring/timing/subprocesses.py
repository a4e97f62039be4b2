"""Measure in fresh processes: what differs from process to process is not seen from inside one.

`python -m autoprune.measuring.timing.subprocesses JOB` is the process. For ONNX Runtime it imports
no torch, so that it starts in a fraction of a second.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import pickle
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune import plugins, scratch
from autoprune.errors import AutopruneError
from autoprune.measuring.timing import child, latency
from autoprune.measuring.timing.latency import Latency
from autoprune.target import Target

if TYPE_CHECKING:
    from torch import nn

    from autoprune.task import Inputs

    Artefact = Path | bytes | nn.Module

__all__ = ["fresh", "machine", "measure_once"]

# Of the processes, beyond those asked for, where some find no quiet
_MORE = 0.5
# A process that takes longer than this, beside its time budget, hangs
_LIMIT_S = 600.0


def fresh(
    candidate: Artefact,
    dense: Artefact | None,
    inputs: Inputs,
    target: Target,
    processes: int = 5,
    budget_s: float = 0.4,
) -> Latency:
    """Latency of `candidate`, interleaved with `dense`, merged over fresh processes that run one
    after the other.

    The ratio's interval makes room for its drift over minutes (`Latency.at_any_time`).

    An artefact is what the target's runtime takes: an ONNX file (path or bytes), or a module. A
    module that cannot be pickled is measured in this process, and a warning says so. `inputs` are
    cut or repeated to the target's batch. Raises ModelError where a process fails, crashes or
    hangs; all of them end with this one.
    """
    runtime = plugins.load("runtime", target.runtime)()
    batch = inputs.rows(target.batch)
    with scratch.folder() as name:  # readable by this user alone
        folder = Path(name)
        job: dict[str, Any] = {
            "target": target.to_json(),
            "budget_s": budget_s,
            "candidate": None,
            "dense": None,
        }
        try:
            if runtime.artefact == "onnx":
                np.savez(
                    folder / "inputs.npz",
                    *[tensor.detach().cpu().numpy() for tensor in batch.tensors()],
                )
            else:
                _pickle(batch, folder / "inputs")
            for role, artefact in (("candidate", candidate), ("dense", dense)):
                if artefact is not None:
                    job[role] = str(_store_artefact(artefact, folder / role))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            return _here(runtime, candidate, dense, batch, target, processes, budget_s, error)
        (folder / "job.json").write_text(json.dumps(job))
        return _merge_processes(lambda: measure_once(folder), processes)


def machine() -> str:
    """What tells this machine from others: virtual ones often have one name and different
    processors."""
    return f"{platform.node()} {platform.machine()} {_processor()}, {os.cpu_count()} cores"


@functools.cache
def _processor() -> str:
    # platform.processor() is empty on most Linux systems
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _merge_processes(measured: Callable[[], Latency], processes: int) -> Latency:
    """The latency over so many processes; those that found no quiet are made up for by half as many
    more, at most.

    They are set aside where half of what was asked for is left without them: two threads on two
    cores, one of them busy, come to another ratio altogether.
    """
    latencies: list[Latency] = []
    quiet: list[Latency] = []
    while len(quiet) < processes and len(latencies) < processes + math.ceil(processes * _MORE):
        latencies.append(measured())
        quiet += [figure for figure in latencies[-1:] if not figure.crowded]
    # One alone has no interval between processes
    if len(quiet) < max(min(processes, 2), processes / 2):
        return Latency.merge(latencies).at_any_time()
    merged, aside = (
        Latency.merge(quiet),
        sum(figure.calls + figure.set_aside for figure in latencies if figure.crowded),
    )
    return replace(merged, set_aside=merged.set_aside + aside).at_any_time()


def _store_artefact(artefact: Artefact, path: Path) -> Path:
    if isinstance(artefact, Path):
        return artefact.resolve()
    if isinstance(artefact, bytes):
        path.write_bytes(artefact)
    else:
        _pickle(artefact, path)
    return path


def _pickle(value: object, path: Path) -> None:
    """Pickle, after a look whether a fresh process can import what is pickled: not what `__main__`
    defines."""
    import torch

    modules = value.modules() if isinstance(value, torch.nn.Module) else ()
    if any(type(module).__module__ == "__main__" for module in modules):
        raise pickle.PicklingError("it is defined in __main__, which a fresh process does not have")
    torch.save(value, path)


def _here(
    runtime: Any,
    candidate: Artefact,
    dense: Artefact | None,
    inputs: Inputs,
    target: Target,
    processes: int,
    budget_s: float,
    error: Exception,
) -> Latency:
    """The same number of measurements in this process."""
    logging.getLogger("autoprune").warning(
        "the model cannot be handed to a fresh process (%s); its latency is measured in this one",
        error,
    )
    artefacts = [artefact for artefact in (candidate, dense) if artefact is not None]

    def prepare() -> list[Any]:
        return [runtime.prepare(artefact, inputs, target) for artefact in artefacts]

    return _merge_processes(
        lambda: latency.compare_anew(prepare, budget_s=budget_s, threads=target.threads), processes
    )


def measure_once(folder: Path) -> Latency:
    """What one fresh process measures of the job in `folder`."""
    job = json.loads((folder / "job.json").read_text())
    limit = _LIMIT_S + 20 * job["budget_s"]
    module, what = "autoprune.measuring.timing.subprocesses", "a process that measures the latency"
    child.run(module, [str(folder / "job.json")], what, limit)
    answer = folder / "answer.json"
    figures = json.loads(answer.read_text())
    answer.unlink()
    return Latency(**figures)


def _main(path: Path) -> None:
    """Measure what `path`, a job file, says, and write answer.json beside it."""
    folder, job = path.parent, json.loads(path.read_text())
    target = Target(**job["target"])
    runtime = plugins.load("runtime", target.runtime)()
    inputs: Any
    if runtime.artefact == "onnx":
        with np.load(folder / "inputs.npz") as arrays:
            inputs = [arrays[f"arr_{index}"] for index in range(len(arrays.files))]
    else:
        inputs = _unpickle(folder / "inputs")
    stored = [Path(job[role]) for role in ("candidate", "dense") if job[role] is not None]
    artefacts = stored if runtime.artefact == "onnx" else [_unpickle(path) for path in stored]
    result = latency.compare_anew(
        lambda: [runtime.prepare(artefact, inputs, target) for artefact in artefacts],
        budget_s=job["budget_s"],
        threads=target.threads,
    )
    (folder / "answer.json").write_text(json.dumps(result.to_json()))


def _unpickle(path: Path) -> Any:
    """What the parent process pickled into its private folder a moment ago; nothing else is ever
    unpickled."""
    import torch

    return torch.load(path, weights_only=False)


if __name__ == "__main__":
    child.bound_to_parent()
    try:
        _main(Path(sys.argv[1]))
    except AutopruneError as error:
        sys.exit(str(error))
