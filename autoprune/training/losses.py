"""Losses by name or reference, and the distance to the dense model's outputs that distillation adds
to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoprune import faults, plugins
from autoprune.errors import InputError, ModelError, nearest
from autoprune.task import main_output

__all__ = ["BuiltinLoss", "at_temperatures", "distillation", "of_split", "place_loss", "resolve"]

Loss = Callable[[Any, Any], Tensor]

# The default of torch's ignore_index
_IGNORED = -100
# From 1/8 to 8, a quarter of an octave apart
_TEMPERATURES = tuple(2 ** (step / 4) for step in range(-12, 13))


@dataclass(frozen=True)
class BuiltinLoss:
    """A function of torch.nn.functional, given the model's main output (`task.main_output`) and the
    target."""

    function: Callable[..., Tensor]

    def __call__(self, output: Any, target: Any) -> Tensor:
        """The loss, a scalar."""
        return self.function(main_output(output), target)


def resolve(given: str | Loss, folders: Sequence[Path] = ()) -> Loss:
    """A loss from a name in torch.nn.functional, `package.module:function`, or a callable `(output,
    target) -> scalar`.

    torch's own functions and modules read the model's main output; anything else is called with the
    raw output. Raises InputError for a name that is not a loss.
    """
    if isinstance(given, str):
        if ":" in given:
            loss: Loss = plugins.import_reference(given, folders)
            if not callable(loss):
                raise InputError(
                    f"needs a function (output, target) -> loss, {given!r} is a "
                    f"{type(loss).__name__}"
                )
            return loss
        endings = ("_loss", "cross_entropy", "kl_div", "_with_logits")
        known = [
            name for name in dir(functional) if name.endswith(endings) and not name.startswith("_")
        ]
        if given not in known:
            raise InputError(
                f"unknown loss {given!r}{nearest(given, known)}; needed: a loss of "
                "torch.nn.functional "
                f"({', '.join(known)}), or my_module:function taking (output, target)"
            )
        return BuiltinLoss(getattr(functional, given))
    module = getattr(_bare(given), "__module__", "")
    return (
        BuiltinLoss(given)
        if module.startswith("torch.nn") and not isinstance(given, BuiltinLoss)
        else given
    )


def of_split(loss: Loss, output: Any, target: Any, split: str) -> Any:
    """The loss on a batch of a split; what it raises is told with the split, a label without a
    class as just that."""
    with faults.code(f"the loss on the {split} data"):
        try:
            number = loss(output, target)
        except Exception as error:
            if (wrong := _wrong_label(output, target)) is None:
                raise
            raise ModelError(f"the {split} data has {wrong}") from error
    if (isinstance(number, Tensor) and number.numel() == 1) or isinstance(number, (int, float)):
        return number
    came = (
        f"a tensor of shape {tuple(number.shape)}"
        if isinstance(number, Tensor)
        else f"a {type(number).__name__}"
    )
    raise ModelError(f"the loss must be one number, a tensor of one element; it is {came}")


def _wrong_label(output: Any, target: Any) -> str | None:
    """`the label 10, but ...` where a label names no class of the model's output (N, classes,
    ...)."""
    if not isinstance(target, Tensor) or target.is_floating_point() or not target.numel():
        return None
    scores = main_output(output)
    if scores.dim() < 2 or target.dim() >= scores.dim():
        return None
    classes = scores.shape[1]
    outside = target[(target >= classes) | ((target < 0) & (target != _IGNORED))]
    if not outside.numel():
        return None
    return (
        f"the label {int(outside[0])}, but the model's output has {classes} classes: labels "
        f"are 0 to {classes - 1}"
    )


def place_loss(loss: Loss, where: torch.device) -> None:
    """Move the tensors that a loss may hold (class weights) to a device, in place."""
    bare = _bare(loss)
    if isinstance(bare, nn.Module):
        bare.to(where)


def distillation(loss: Loss, temperature: float) -> Callable[[Any, Any], Tensor]:
    """The distance between outputs of the model and of its teacher, a scalar.

    Where `loss` is cross entropy, the outputs are logits (N, classes, ...): the Kullback-Leibler
    divergence from the teacher's softened classes to the model's, times the temperature squared
    (Hinton et al. 2015, arXiv:1503.02531). Elsewhere the outputs may be anything: their mean
    squared error.
    """

    def divergence(output: Any, teacher: Any) -> Tensor:
        student = functional.log_softmax(main_output(output) / temperature, dim=1)
        wanted = functional.log_softmax(main_output(teacher) / temperature, dim=1)
        pointwise = functional.kl_div(student, wanted, reduction="none", log_target=True)
        return pointwise.sum(dim=1).mean() * temperature**2

    def squared(output: Any, teacher: Any) -> Tensor:
        return functional.mse_loss(main_output(output), main_output(teacher))

    bare = _bare(loss)
    return (
        divergence
        if bare is functional.cross_entropy or isinstance(bare, nn.CrossEntropyLoss)
        else squared
    )


def at_temperatures(loss: Loss) -> list[Loss]:
    """Where `loss` is a cross entropy of logits, the same at temperatures from 1/8 to 8; elsewhere
    itself alone.

    The least of them says how well the classes are told apart, whatever the confidence (Guo et al.
    2017, arXiv:1706.04599), which training puts right at once.
    """
    bare = _bare(loss)
    known = bare in (functional.cross_entropy, functional.binary_cross_entropy_with_logits)
    if not known and type(bare) not in (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss):
        return [loss]  # a class derived from these may read anything of the output

    def at(temperature: float, output: Any, target: Any) -> Tensor:
        return loss(main_output(output) / temperature, target)

    return [partial(at, temperature) for temperature in _TEMPERATURES]


def _bare(loss: Any) -> Any:
    """The function under wrappers and partial arguments."""
    while isinstance(loss, (BuiltinLoss, partial)):
        loss = loss.function if isinstance(loss, BuiltinLoss) else loss.func
    return loss
