"""Origin: where the dense model's weights come from, and whether it is trained before anything is
cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from autoprune.study import Study
from autoprune.task import Inputs, Task
from autoprune.training.batches import sample
from autoprune.training.chance import guesses

__all__ = ["Origin", "at_chance", "fewer", "origin"]

# Inputs of validation data: whether a model guesses is seen on far fewer than all of them
_JUDGED = 1000
_LARGE = 3 * 64 * 64  # elements of an input: of larger ones fewer are taken
_FEWEST = 64
_ALWAYS = "task.training: {baseline: always} trains it first"
_NEVER = "task.training: {baseline: never} takes it as it is"


@dataclass(frozen=True)
class Origin:
    """Whether the dense model is taken as it is, and in words what happens to it and how to have it
    otherwise."""

    ready: bool
    text: str


def origin(study: Study, model: nn.Module, inputs: Inputs) -> Origin:
    """What becomes of a dense model as it is given or built: asked for, or by whether it
    guesses."""
    task, epochs = study.task, study.task.training.epochs
    if task.baseline == "always":
        return Origin(
            False,
            f"the dense model is trained first, {epochs} epochs, as task.training.baseline says",
        )
    if task.baseline == "never":
        return Origin(True, "the dense model is taken as it is, as task.training.baseline says")
    if task.given is not None:
        return Origin(True, "the dense model is taken as it was given")
    if task.weights is not None:
        return Origin(
            True, f"the dense model is taken with the weights of {task.weights}; {_ALWAYS}"
        )
    if not at_chance(task, model, inputs):
        return Origin(
            True,
            "the dense model comes with weights that know the task and is taken as it is; "
            f"{_ALWAYS}",
        )
    return Origin(
        False, f"the dense model guesses as yet, so it is trained first, {epochs} epochs; {_NEVER}"
    )


def at_chance(task: Task, model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model guesses, on a part of the validation data; `inputs` are like those."""
    part = sample(task.data.validation, fewer(inputs, _JUDGED))
    return guesses(model, replace(task, data=replace(task.data, validation=part)))


def fewer(inputs: Inputs, count: int) -> int:
    """So many inputs, or fewer large ones."""
    size = sum(tensor.numel() for tensor in inputs.rows(1).tensors())
    return max(_FEWEST, min(count, count * _LARGE // max(1, size)))
