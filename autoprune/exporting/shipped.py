"""What the target runs where its dtype is not fp32: the converted file, and the outputs of the
target's runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoprune.errors import brief
from autoprune.exporting.artefact import REFERENCE as _REFERENCE
from autoprune.exporting.artefact import output_tensors, read_reference
from autoprune.files import check_safetensors
from autoprune.measuring.runtime_module import Deployed
from autoprune.study import Study
from autoprune.training.judging import as_shipped

__all__ = ["OUTPUTS", "read", "write"]

# Of the reference inputs, by the target's runtime in the target's dtype
OUTPUTS = "target_outputs.safetensors"


def write(folder: Path, filename: str, model: nn.Module, study: Study) -> str:
    """Write both for `study`'s target; gives the name of the file that it runs, `filename` itself
    where that is fp32.

    Raises ModelError where the model cannot be converted, InputError where the runtime is not here.
    """
    target = study.target
    if target.dtype == "fp32":
        return filename
    artefact = as_shipped(model, study.task, target)
    inputs, _ = read_reference(folder / _REFERENCE)
    with torch.no_grad():
        outputs = output_tensors(inputs.call(Deployed(artefact, model, target)))
    held = {f"output.{index}": tensor.contiguous().clone() for index, tensor in enumerate(outputs)}
    save_file(held, folder / OUTPUTS)
    if not isinstance(artefact, bytes):
        return filename
    converted = f"{Path(filename).stem}.{target.dtype}{Path(filename).suffix}"
    if artefact != (folder / filename).read_bytes():
        (folder / converted).write_bytes(artefact)
        return converted
    return filename


def read(folder: Path) -> list[Tensor]:
    """The outputs that `write` recorded. Raises ValueError where they cannot be read."""
    try:
        check_safetensors(folder / OUTPUTS)
        held = load_file(folder / OUTPUTS)
    except Exception as problem:
        # safetensors raises a kind of its own for each way a file can be broken
        raise ValueError(
            f"{OUTPUTS} cannot be read: {type(problem).__name__}: {brief(problem)}"
        ) from problem
    return [held[f"output.{index}"] for index in range(len(held))]
