"""How good a model is as it ships: in the target's precision, on the target's runtime, where that
is not fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from autoprune.measuring import measure
from autoprune.measuring.runtime_module import Deployed
from autoprune.target import Target
from autoprune.task import Inputs, Task
from autoprune.training.loop import Quality, evaluate
from autoprune.training.placement import with_seed

__all__ = ["as_shipped", "calibration", "judge"]

# Of training data, to take the ranges of activations from
_BATCHES, _ROWS = 8, 64


def judge(
    model: nn.Module,
    task: Task,
    target: Target,
    split: Literal["validation", "test"],
    device: str = "auto",
    artefact: bytes | Path | nn.Module | None = None,
) -> Quality:
    """Metric, its standard error and the loss of a finished model over a split, in the precision it
    ships in.

    fp32 is judged by torch on `device`; any other dtype by the target's runtime on what it runs:
    `artefact` where it is there already (see `as_shipped`). Raises as `training.loop.evaluate` and
    as the runtime does.
    """
    if target.dtype == "fp32":
        return evaluate(model, task, split, device, error=True)
    shipped = as_shipped(model, task, target) if artefact is None else artefact
    return evaluate(Deployed(shipped, model, target), task, split, "cpu", error=True)


def as_shipped(model: nn.Module, task: Task, target: Target) -> bytes | nn.Module:
    """What the target runs of a finished model, calibrated on training data: ONNX bytes, or the
    module itself."""
    return measure.artefact(model, task.calibration(2), target, calibration=calibration(task))


def calibration(task: Task) -> list[Inputs]:
    """The first rows of a few shuffled training batches, the same ones each time: 8 of at most 64
    inputs."""
    batches: list[Inputs] = []
    with with_seed(0, torch.device("cpu")):
        for args, kwargs, _ in task.batches("train", seed=0):
            batch = Inputs(args, kwargs).to("cpu")
            batches.append(batch.rows(min(batch.batch_size, _ROWS)))
            if len(batches) == _BATCHES:
                break
    return batches
