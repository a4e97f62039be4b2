"""What a call needs beside time, measured in a fresh process; and what a file compresses to.

How each quantity is measured stands in its file in `measuring/quantities/`.
"""

from __future__ import annotations

import importlib
import json
import pickle
import sys
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune import plugins, quantities, scratch
from autoprune.errors import AutopruneError, ModelError
from autoprune.measuring.timing import child
from autoprune.target import Target

if TYPE_CHECKING:
    from torch import nn

    from autoprune.task import Inputs

__all__ = ["compressed_bytes", "measure_resources", "stored_file", "unavailable"]

# A process that takes longer hangs
_LIMIT_S = 600.0


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
    for initializer in proto.graph.initializer:
        own = tensors.get(initializer.name)
        if (
            own is not None
            and list(own.shape) == list(initializer.dims)
            and initializer.HasField("raw_data")
        ):
            raw = own.detach().cpu().numpy().tobytes()
            initializer.raw_data = (
                raw if len(raw) == len(initializer.raw_data) else initializer.raw_data
            )
    content: bytes = proto.SerializeToString()
    return content


def unavailable(quantity: str, target: Target) -> str | None:
    """Why a quantity cannot be measured for a target on this machine, or None; no model is needed
    to tell."""
    if not quantities.is_resource(quantity):
        return None
    return quantities.of_call(quantity).unavailable(target)


def measure_resources(
    artefact: bytes | nn.Module, inputs: Inputs, target: Target, wanted: Collection[str]
) -> dict[str, float]:
    """The quantities of a call of an artefact (see `measure.artefact`) that are `wanted`, by name.

    Raises ModelError with the reason for what cannot be measured: no counter, a module that cannot
    be pickled, a process that fails.
    """
    asked = [quantity for quantity in wanted if quantities.is_resource(quantity)]
    for quantity in asked:
        if (reason := unavailable(quantity, target)) is not None:
            raise ModelError(f"{quantity} cannot be measured: {reason}")
    if not asked:
        return {}
    with scratch.folder() as name:  # readable by this user alone
        folder = Path(name)
        _write_job(folder, artefact, inputs.rows(target.batch), target)
        return _process(folder, asked)


def _write_job(folder: Path, artefact: Any, batch: Inputs, target: Target) -> None:
    runtime = plugins.load("runtime", target.runtime)()
    job: dict[str, Any] = {"target": target.to_json(), "modules": [], "path": sys.path}
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


def _process(folder: Path, wanted: list[str]) -> dict[str, float]:
    what = f"a process that measures {' and '.join(wanted)}"
    child.run("autoprune.measuring.resources", [str(folder), *wanted], what, _LIMIT_S)
    answer: dict[str, float] = json.loads((folder / "answer.json").read_text())
    return answer


def _main(folder: Path, wanted: Collection[str]) -> None:
    """Measure the job in `folder`, and write answer.json there; a process of its own."""
    job = json.loads((folder / "job.json").read_text())
    target = Target(**job["target"])
    # A quantity, or a module, of the user's own lies in the study's folder
    sys.path += [folder for folder in job["path"] if folder not in sys.path]
    runtime = plugins.load("runtime", target.runtime)()
    for name in job["modules"]:
        importlib.import_module(name)
    onnx = runtime.artefact == "onnx"
    inputs = _arrays(folder / "inputs.npz") if onnx else _unpickle(folder / "inputs")
    measures = {name: quantities.of_call(name).begin(target) for name in wanted}
    call = runtime.prepare(
        folder / "model" if onnx else _handed_over(folder / "model"), inputs, target
    )
    answer = {name: measure(call) for name, measure in measures.items()}
    (folder / "answer.json").write_text(json.dumps(answer))


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
