"""Whether a model knows its task, or guesses: that decides whether a dense baseline has to be
trained."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from autoprune import faults
from autoprune.errors import ModelError, TrainingError
from autoprune.task import Task
from autoprune.training import losses, placement
from autoprune.training.batches import concatenate, move_to
from autoprune.training.loop import evaluate
from autoprune.training.placement import on_device, with_seed

__all__ = ["guesses"]

# Copies with shuffled weights, and orders in which the targets are dealt to other inputs
_COPIES, _DEALS = 4, 20
# Share of the loss by which a model that has learnt stands clear of its copies
_CLEAR = 0.1
# Of deviations over deals: a saving below is noise. Relative: losses of deals differ by more, or
# the targets make no difference
_NOISE, _SAME = 3.0, 1e-9
# Where targets cannot be dealt: the loss of a model that has learnt, of the best copy's
_BETTER = 0.9


def guesses(model: nn.Module, task: Task) -> bool:
    """Whether `model` does no better on the validation data of `task` than copies of it with their
    weights shuffled.

    What counts is the share of its loss that comes with targets dealt to other inputs and goes with
    the right ones: so neither the scale of the loss nor how often a class occurs matters, and any
    task has it. A net as it is drawn has as much of it as its shuffled copies, by chance; one that
    has learnt stands clear of them. Where the targets cannot be dealt (a loss that a model computes
    itself), the losses are compared. `model` is left as it was.
    """
    copies = [_shuffle_parameters(model, seed) for seed in range(_COPIES)]
    try:
        with faults.code("the loss, over all of the validation data,"):
            own, *others = (_skill(judged, task) for judged in (model, *copies))
    except Exception:
        # the user's own loss need not take several batches as one; a real fault shows again below
        own, others = None, []
    if own is None or None in others:
        return not _loss(model, task) < _BETTER * min(_loss(copy_, task) for copy_ in copies)
    known = [other for other in others if other is not None]
    return own <= max(*known, 0.0) + max(known) - min(known) + _CLEAR


def _skill(model: nn.Module, task: Task) -> float | None:
    """The share of the loss that the right targets save; None where these make no difference, 0
    where that is noise."""
    where = placement.device(task.training.device)
    outputs: list[Any] = []
    targets: list[Any] = []
    with on_device(model, where), with_seed(0, where), torch.no_grad():
        for batch in task.batches("validation"):
            args, kwargs, target = move_to(batch, where)
            outputs.append(move_to(model(*args, **kwargs), "cpu"))
            targets.append(move_to(target, "cpu"))
        losses.place_loss(task.loss, torch.device("cpu"))
        output, target = concatenate(outputs), concatenate(targets)
        loss = float(task.loss(output, target))
        dealt = [float(task.loss(output, _dealt(target, seed))) for seed in range(_DEALS)]
    if not all(math.isfinite(figure) for figure in (loss, *dealt)):
        return 0.0
    usual, spread = statistics.mean(dealt), statistics.stdev(dealt)
    if spread <= _SAME * abs(usual):
        return None
    return (usual - loss) / abs(usual) if usual - loss > _NOISE * spread else 0.0


def _dealt(target: Any, seed: int) -> Any:
    """The targets in another order. Raises ModelError where they have none."""
    leaves = [leaf for leaf in tree_leaves(target) if isinstance(leaf, Tensor)]
    count = len(leaves[0]) if leaves and leaves[0].dim() else 0
    if count < 2 or any(leaf.dim() == 0 or len(leaf) != count for leaf in leaves):
        raise ModelError("these targets have no order")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    take: Callable[[Tensor], Tensor] = lambda tensor: tensor[order]  # noqa: E731
    return tree_map_only(Tensor, take, target)


def _shuffle_parameters(model: nn.Module, seed: int) -> nn.Module:
    """A copy with the entries of every parameter in another order: of the same scale, and nothing
    learnt."""
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            flat = parameter.flatten()
            order = torch.randperm(flat.numel(), generator=generator).to(flat.device)
            parameter.copy_(flat[order].view_as(parameter))
    return made


def _loss(model: nn.Module, task: Task) -> float:
    try:
        return evaluate(model, task, "validation", task.training.device).loss
    except TrainingError:
        return math.inf
