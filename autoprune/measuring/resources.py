"""What a call needs beside time: peak memory and energy, in a fresh process; and what a file
compresses to.

Memory on a CPU: a process imports the runtime and the model's code, notes its resident memory, then
loads the model and calls it a few times; the figure is the peak from there on, less what was noted.
So it holds weights, activations and whatever the runtime allocates for them and for itself, some of
which no pruning makes smaller. One process is
enough: the figure repeats within 1 %. Linux alone tells the peak. On CUDA it is the peak of torch's
allocator, `torch.cuda.max_memory_allocated`.

Energy: the machine's own counter (RAPL for a CPU, NVML for a GPU, both read by the package zeus)
over a second of calls, divided by them. It counts the whole package or board, idle power and other
programs' work as well. Without a counter there is no figure: nothing is estimated.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pickle
import sys
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune import plugins, scratch
from autoprune.errors import AutopruneError, ModelError
from autoprune.measuring import energy
from autoprune.measuring.timing import child
from autoprune.target import Target

if TYPE_CHECKING:
    from torch import nn

    from autoprune.task import Inputs

__all__ = ["compressed_bytes", "measure_resources", "stored_file", "unavailable"]

_CALLS, _LIMIT_S = 10, 600.0
_PEAK, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FIGURES = {"memory": "memory_bytes", "energy": "energy_mj"}


def compressed_bytes(content: bytes) -> int:
    """Size of a file after zlib at level 6, as zip and HTTP compress."""
    return len(zlib.compress(content, 6))


def stored_file(artefact: bytes | nn.Module, model: nn.Module | None = None) -> bytes:
    """The file of an artefact: safetensors of a module, or ONNX, where `model`'s tensors take the
    place of its own.

    A graph that was cut out of the dense one has the dense model's values, and compresses as those
    do.
    """
    from autoprune.formats.safetensors import Safetensors

    if not isinstance(artefact, bytes):
        return Safetensors.dump(artefact)
    if model is None:
        return artefact
    import onnx

    proto = onnx.load_from_string(artefact)
    tensors = dict(model.named_buffers(remove_duplicate=False)) | dict(
        model.named_parameters(remove_duplicate=False)
    )
    for each in proto.graph.initializer:
        own = tensors.get(each.name)
        if own is not None and list(own.shape) == list(each.dims) and each.HasField("raw_data"):
            value = own.detach().cpu().numpy().tobytes()
            each.raw_data = value if len(value) == len(each.raw_data) else each.raw_data
    content: bytes = proto.SerializeToString()
    return content


def unavailable(quantity: str, target: Target) -> str | None:
    """Why memory or energy cannot be measured for a target on this machine, or None; no model is
    needed to tell."""
    if quantity == "energy":
        return energy.unavailable(target)
    if quantity != "memory":
        return None
    if target.device.startswith("cuda"):
        runtime = plugins.load("runtime", target.runtime)()
        takes_module = runtime.artefact == "module"
        return (
            None
            if takes_module
            else f"runtime {target.runtime} does not tell what it allocates on {target.device}"
        )
    if not _PEAK.exists() or "VmHWM" not in _PEAK.read_text() or not os.access(_RESET, os.W_OK):
        return (
            "this system does not tell the peak memory of a process (Linux does, in "
            "/proc/self/status)"
        )
    return None


def measure_resources(
    artefact: bytes | nn.Module, inputs: Inputs, target: Target, wanted: Collection[str]
) -> dict[str, Any]:
    """`memory_bytes` and `energy_mj` of an artefact (see `measure.artefact`), as far as they are
    `wanted`.

    Raises ModelError with the reason for what cannot be measured: no counter, a module that cannot
    be pickled, a process that fails.
    """
    asked = [quantity for quantity in _FIGURES if quantity in wanted]
    for quantity in asked:
        if (reason := unavailable(quantity, target)) is not None:
            raise ModelError(f"{quantity} cannot be measured: {reason}")
    if not asked:
        return {}
    with scratch.folder() as name:  # readable by this user alone
        folder = Path(name)
        _write_job(folder, artefact, inputs.rows(target.batch), target)
        answer = _process(folder, asked)
    return {_FIGURES[quantity]: answer[quantity] for quantity in asked}


def _write_job(folder: Path, artefact: Any, batch: Inputs, target: Target) -> None:
    runtime = plugins.load("runtime", target.runtime)()
    job: dict[str, Any] = {"target": target.to_json(), "modules": []}
    if isinstance(artefact, bytes):
        (folder / "model").write_bytes(artefact)
    if runtime.artefact == "onnx":
        np.savez(
            folder / "inputs.npz", *[tensor.detach().cpu().numpy() for tensor in batch.tensors()]
        )
    else:
        import torch

        job["modules"] = sorted({type(module).__module__ for module in artefact.modules()})
        try:
            if "__main__" in job["modules"]:
                raise pickle.PicklingError(
                    "it is defined in __main__, which a fresh process does not have"
                )
            torch.save(artefact, folder / "model")
            torch.save(batch, folder / "inputs")
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ModelError(
                f"the model cannot be handed to a fresh process, which measures it: {error}"
            ) from error
    (folder / "job.json").write_text(json.dumps(job))


def _process(folder: Path, wanted: list[str]) -> dict[str, Any]:
    what = f"a process that measures {' and '.join(wanted)}"
    child.run("autoprune.measuring.resources", [str(folder), *wanted], what, _LIMIT_S)
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return answer


def _main(folder: Path, wanted: Collection[str]) -> None:
    """Measure the job in `folder`, and write answer.json there; a process of its own."""
    job = json.loads((folder / "job.json").read_text())
    target = Target(**job["target"])
    runtime = plugins.load("runtime", target.runtime)()
    for name in job["modules"]:
        importlib.import_module(name)
    onnx = runtime.artefact == "onnx"
    inputs = _arrays(folder / "inputs.npz") if onnx else _unpickle(folder / "inputs")
    gc.collect()
    peak = _peak(target)
    call = runtime.prepare(
        folder / "model" if onnx else _handed_over(folder / "model"), inputs, target
    )
    for _ in range(_CALLS):
        call()
    answer: dict[str, Any] = {"memory": peak()} if "memory" in wanted else {}
    if "energy" in wanted:
        answer["energy"] = energy.of_call(call, energy.counter(target))
    (folder / "answer.json").write_text(json.dumps(answer))


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


def _arrays(path: Path) -> list[Any]:
    with np.load(path) as stored:
        return [stored[f"arr_{index}"] for index in range(len(stored.files))]


def _handed_over(path: Path) -> Any:
    """The module, which a runtime's deep copy gives back as it is: a copy beside it would count
    twice."""
    model = _unpickle(path)
    model.__deepcopy__ = lambda memo: model
    return model


def _unpickle(path: Path) -> Any:
    """What the parent process pickled into its private folder a moment ago; nothing else is ever
    unpickled."""
    import torch

    return torch.load(path, weights_only=False)


if __name__ == "__main__":
    child.bound_to_parent()
    try:
        _main(Path(sys.argv[1]), sys.argv[2:])
    except AutopruneError as error:
        sys.exit(str(error))
