"""Built-in metrics: `name(outputs, targets) -> float` over a whole split; `GOALS` says which way
each one is better."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional

from autoprune.errors import ModelError
from autoprune.task import main_output

__all__ = ["GOALS", "accuracy", "f1", "mae", "mse", "top5_accuracy"]

GOALS: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "top5_accuracy": "maximize",
    "f1": "maximize",
    "mse": "minimize",
    "mae": "minimize",
    # The task's own loss over the whole split: whoever knows the loss supplies it
    "loss": "minimize",
}


def accuracy(outputs: Any, targets: Any) -> float:
    """Share of targets (N, ...) that is the class of the largest logit (N, classes, ...); one logit
    goes by sign."""
    logits, labels = _logits(outputs, targets, "accuracy")
    return float((_predict_classes(logits, labels) == labels).double().mean())


def top5_accuracy(outputs: Any, targets: Any) -> float:
    """Share of targets (N, ...) among the five largest logits (N, classes, ...); of fewer classes,
    all count."""
    logits, labels = _logits(outputs, targets, "top5_accuracy")
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return float((best == labels.unsqueeze(1)).any(dim=1).double().mean())


def f1(outputs: Any, targets: Any) -> float:
    """The F1 score of each class that occurs in targets or predictions, averaged over classes
    (macro)."""
    logits, labels = _logits(outputs, targets, "f1")
    predicted = _predict_classes(logits, labels)
    scores = []
    for label in sorted({*labels.flatten().tolist(), *predicted.flatten().tolist()}):
        hits = float(((predicted == label) & (labels == label)).sum())
        scores.append(2 * hits / float((predicted == label).sum() + (labels == label).sum()))
    return sum(scores) / len(scores)


def mse(outputs: Any, targets: Any) -> float:
    """Mean squared error between the output and targets of its shape."""
    output, target = _values(outputs, targets, "mse")
    return float(functional.mse_loss(output, target))


def mae(outputs: Any, targets: Any) -> float:
    """Mean absolute error between the output and targets of its shape."""
    output, target = _values(outputs, targets, "mae")
    return float(functional.l1_loss(output, target))


def _logits(outputs: Any, targets: Any, name: str) -> tuple[Tensor, Tensor]:
    """Logits (N, classes, ...) and class indices (N, ...); targets given as probabilities become
    their largest."""
    logits, labels = main_output(outputs), main_output(targets)
    if (
        labels.is_floating_point()
        and labels.shape == logits.shape
        and logits.dim() > 1
        and logits.shape[1] > 1
    ):
        labels = labels.argmax(dim=1)
    # One logit for each target, as binary cross entropy takes them
    if logits.dim() == labels.dim():
        logits = logits.unsqueeze(1)
    if logits.shape[:1] + logits.shape[2:] != labels.shape:
        raise ModelError(
            f"{name} needs outputs (N, classes, ...) and targets (N, ...); got "
            f"{tuple(main_output(outputs).shape)} and "
            f"{tuple(labels.shape)}; give a metric function of your own, or an adapter"
        )
    return logits, labels


def _predict_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """Class indices (N, ...) from logits (N, classes, ...)."""
    return logits.argmax(dim=1) if logits.shape[1] > 1 else (logits[:, 0] > 0).to(labels.dtype)


def _values(outputs: Any, targets: Any, name: str) -> tuple[Tensor, Tensor]:
    output, target = main_output(outputs).double(), main_output(targets).double()
    if output.shape != target.shape:
        raise ModelError(
            f"{name} needs outputs and targets of one shape; got {tuple(output.shape)} and "
            f"{tuple(target.shape)}; "
            "give a metric function of your own, or an adapter"
        )
    return output, target
