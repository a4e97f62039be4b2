"""The one loop that trains: the dense baseline, and the recovery of what was pruned; and how a
model is judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.utils._pytree import tree_map_only

from autoprune import faults
from autoprune.errors import ModelError, TrainingError
from autoprune.task import Inputs, Recipe, Task
from autoprune.training import losses, placement, schedule
from autoprune.training.batches import concatenate, move_to, standard_error, whole
from autoprune.training.placement import device, on_device, with_seed

__all__ = ["Quality", "device", "evaluate", "optimizer_of", "recalibrate", "train"]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
Split = Literal["train", "validation", "test"]


class Tightens(Protocol):
    """Masks that are set anew after each optimiser step."""

    def step(self, progress: float) -> None:
        """Set the masks for `progress` in [0, 1]."""


@dataclass(frozen=True)
class Quality:
    """How good a model is on a split: the task's metric over the whole, and the loss averaged over
    its samples.

    `error` is the metric's standard error, from parts of the split; None where it cannot be taken
    in parts.
    """

    metric: float
    loss: float
    error: float | None = None


def train(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    teacher: nn.Module | None = None,
    masks: Tightens | None = None,
    report: Callable[[float], None] | None = None,
) -> None:
    """Train `model` in place by `recipe`; it ends on the CPU, in eval mode.

    The learning rate follows `recipe.schedule` after `recipe.warmup` of the steps. With a teacher
    and `recipe.distill` = d the loss is (1 - d) loss + d distance to the teacher's outputs
    (`losses.distillation`). After each optimiser step `masks.step(progress)` and `report(progress)`
    are called, progress in (0, 1].

    The same seed gives the same weights on a CPU; the global random states are left as they were. A
    data loader brought by the user draws from the seeded global state, so it repeats too, unless it
    has a generator of its own. Raises TrainingError, naming epoch and step, where the loss is not
    finite; ModelError where nothing can be trained.
    """
    where = device(recipe.device)
    teacher = teacher if recipe.distill > 0 else None
    with (
        with_seed(seed, where),
        on_device(teacher, where) if teacher is not None else nullcontext(),
    ):
        try:
            model.to(where).train()
            run = _Session(model, replace(task, training=recipe), recipe, where, teacher)
            for progress in run.epochs(seed):
                if masks is not None:
                    masks.step(progress)
                if report is not None:
                    report(progress)
        finally:
            model.to("cpu").eval()
    broken = [
        name for name, parameter in model.named_parameters() if not bool(parameter.isfinite().all())
    ]
    if broken:
        raise TrainingError(
            f"training left weights that are not finite ({', '.join(broken[:3])}); lower the "
            "learning rate"
        )


def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    device: str = "auto",
    *,
    tempered: bool = False,
    error: bool = False,
) -> Quality:
    """Metric and loss of `model` over a whole split, in eval mode; the model's own mode and device
    are given back.

    With `error` the metric's standard error too, for which its function is called once more on each
    of some parts.

    The loss of logits is, where it is asked for `tempered`, that at their best temperature. Outputs
    and targets of all batches are concatenated (tensors, in any nesting; anything else, and tensors
    that do not fit together, are gathered in lists) and the metric's function is called on them
    once. Raises ModelError for an empty split, TrainingError where metric or loss is not finite.
    """
    where = placement.device(device)
    outputs: list[Any] = []
    targets: list[Any] = []
    criteria = losses.at_temperatures(task.loss) if tempered else [task.loss]
    totals, count = [0.0] * len(criteria), 0
    losses.place_loss(task.loss, where)
    # not inference_mode: a tensor that a model caches there could not be trained with afterwards
    with on_device(model, where), with_seed(0, where), torch.no_grad():
        for batch in task.batches(split):
            args, kwargs, target = move_to(batch, where)
            with faults.code(f"the model's forward, on the {split} data,"):
                output = model(*args, **kwargs)
            size = Inputs(args, kwargs).batch_size
            batch_losses = (
                float(losses.of_split(criterion, output, target, split)) for criterion in criteria
            )
            totals = [total + loss * size for total, loss in zip(totals, batch_losses, strict=True)]
            count += size
            outputs.append(move_to(output, "cpu"))
            targets.append(move_to(target, "cpu"))
        if not count:
            raise ModelError(f"the {split} data is empty; give at least one batch")
        given = concatenate(outputs), concatenate(targets)
        with faults.code(f"the metric {task.metric.name!r} on the {split} data"):
            value = task.metric.function(*given)
            spread = standard_error(task.metric.function, *given) if error else None
        metric = _number(value, task.metric.name)
    loss = min(totals) / count
    for name, value in ((task.metric.name, metric), ("loss", loss)):
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} on the {split} data is {value}: the model's outputs have broken down"
            )
    return Quality(metric, loss, spread)


def recalibrate(model: nn.Module, task: Task, batches: int = 32, device: str = "auto") -> None:
    """Take the running statistics of every batch norm anew, as the plain average over some shuffled
    training batches.

    Weights, modes and everything else stay as they are; a model without batch norm is left alone.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        return
    where = placement.device(device)
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    with on_device(model, where), with_seed(0, where), torch.no_grad():
        try:
            for norm in norms:
                norm.num_batches_tracked = torch.zeros((), dtype=torch.long, device=where)
                # None is torch's word for a plain average, for which it counts the batches
                norm.momentum = None
                norm.train()
            for number, (args, kwargs, _) in enumerate(whole(task.batches("train", seed=0))):
                if number == batches:
                    break
                model(*move_to(args, where), **move_to(kwargs, where))
        finally:
            for norm, (momentum, tracked) in zip(norms, kept, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, tracked


@dataclass
class _Session:
    """What one call of `train` holds on to."""

    model: nn.Module
    task: Task
    recipe: Recipe
    device: torch.device
    teacher: nn.Module | None
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = optimizer_of(self.model, self.recipe)
        losses.place_loss(self.task.loss, self.device)
        half = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.recipe.precision]
        self.half = half
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half is torch.float16)
        self.distance = losses.distillation(self.task.loss, self.recipe.temperature)

    def epochs(self, seed: int) -> Iterator[float]:
        """Train; gives the progress after each step."""
        steps = self.task.steps("train")
        if steps == 0:
            raise ModelError("the training data is empty; give at least one batch")
        total, done = steps * self.recipe.epochs, 0
        has_norm = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        for epoch in range(self.recipe.epochs):
            # A prime, so that epochs of one seed are not those of the next
            batches = self.task.batches("train", seed=(seed * 100_003 + epoch) % 2**63)
            for step, batch in enumerate(whole(batches) if has_norm else batches):
                # In the middle of the step: at its ends the first or last rate would be 0
                self._learning_rate((done + 0.5) / total)
                loss = self._loss(*move_to(batch, self.device))
                if not math.isfinite(number := float(loss.detach())):
                    raise TrainingError(
                        f"the loss is {number} in epoch {epoch + 1}, step {step + 1}; lower the "
                        "learning rate"
                    )
                self._update(loss)
                done = min(done + 1, total)
                yield done / total
            # Batches that are left out are steps of the schedule too
            done = steps * (epoch + 1)

    def _loss(self, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> Tensor:
        output = self._forward(self.model, args, kwargs)
        loss: Any = losses.of_split(self.task.loss, output, target, "train")
        if not isinstance(loss, Tensor):
            raise ModelError(
                "the loss must be a tensor of one element, to be trained by; it is a "
                f"{type(loss).__name__}"
            )
        if self.teacher is None:
            return loss
        with torch.no_grad():
            wanted = self._forward(self.teacher, args, kwargs)
        return (1 - self.recipe.distill) * loss + self.recipe.distill * self.distance(
            output, wanted
        )

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with faults.code("the backward pass, in training,"):
            torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs in fp32, computed in the recipe's precision."""
        with faults.code("the model's forward, in training,"):
            if self.half is None:
                return model(*args, **kwargs)
            with torch.autocast(self.device.type, self.half):
                output = model(*args, **kwargs)
        return tree_map_only(
            Tensor, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, output
        )

    def _learning_rate(self, progress: float) -> None:
        factor = schedule.learning_rate(progress, self.recipe.schedule, self.recipe.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.recipe.learning_rate


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Weight decay acts on weights alone: not on biases, nor on the scales of normalisations."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ModelError(
            "the model has no parameter that can be trained (requires_grad is False on all of them)"
        )
    scales = {
        id(p)
        for module in model.modules()
        if isinstance(module, _NORMS)
        for p in module.parameters()
    }
    decayed = [p for p in trained if p.dim() > 1 and id(p) not in scales]
    others = [p for p in trained if p.dim() <= 1 or id(p) in scales]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, recipe.weight_decay), (others, 0.0))
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
        )
    kind: type[torch.optim.Adam] = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[
        recipe.optimizer
    ]
    # The fused form takes floating-point parameters alone, and not every device has it
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in trained)
    return kind(groups, recipe.learning_rate, betas=(recipe.momentum, 0.999), fused=fused)


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the metric {name!r} must return one number, it returned a {type(value).__name__}"
        ) from error
