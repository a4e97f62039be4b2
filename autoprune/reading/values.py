"""The kinds of single values in a study: closed sets, ratios, times, devices; what is wrong raises
ValueError."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from autoprune import quantities
from autoprune.errors import nearest

__all__ = [
    "LOSSES",
    "METRICS",
    "Baseline",
    "Device",
    "Duration",
    "Loss",
    "Momentum",
    "Named",
    "Names",
    "Objectives",
    "Optimizer",
    "Positive",
    "Precision",
    "Ratio",
    "Sampler",
    "Schedule",
    "Share",
    "Some",
    "TargetDevice",
    "Url",
    "duration",
    "one_of",
]

# The built-in ones, and which way each is better
METRICS: dict[str, Literal["maximize", "minimize"]] = {
    "accuracy": "maximize",
    "top5_accuracy": "maximize",
    "f1": "maximize",
    "mse": "minimize",
    "mae": "minimize",
    "loss": "minimize",
}
LOSSES = (  # those of torch.nn.functional that take (output, target)
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
)
SAMPLERS = ("tpe", "nsga2", "gp", "random")
_LONGEST = 40  # characters of a time
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(given: object) -> float:
    """Seconds of `90s`, `10m`, `1h` or `1h30m`. Raises ValueError, also for a bare number."""
    # The pattern's time grows with the cube of it
    plain = isinstance(given, str) and len(given) <= _LONGEST
    parts = re.findall(r"([0-9]*\.?[0-9]+)\s*(ms|[smhd])", str(given)) if plain else []
    if not parts or re.sub(r"\s", "", str(given)) != "".join(
        number + unit for number, unit in parts
    ):
        raise ValueError(f"needs a time with its unit, as in 90s, 10m or 1h30m; got {given!r}")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds < _SECONDS["d"] * 36_500:
        raise ValueError(f"needs a time of more than zero and less than a century, got {given!r}")
    return seconds


def one_of(kind: str, known: tuple[str, ...], value: str) -> str:
    """`value`, which must be among `known`."""
    if value not in known:
        raise ValueError(
            f"unknown {kind} {value!r}{nearest(value, known)}; known: {', '.join(known)}"
        )
    return value


def _check_objective(value: str) -> str:
    known = ("metric", "loss", *(name for name in quantities.names() if name != "metric_drop"))
    return _reference_or("objective", known, value)


def _reference_or(kind: str, known: tuple[str, ...], value: str) -> str:
    if ":" not in value and value not in known:
        raise ValueError(
            f"unknown {kind} {value!r}{nearest(value, known)}; known: {', '.join(known)}; or "
            "my_module:function"
        )
    return value


def _device(known: tuple[str, ...], value: str) -> str:
    if value not in known and not re.fullmatch(r"cuda:\d+", value):
        raise ValueError(
            f"unknown device {value!r}{nearest(value, known)}; known: {', '.join(known)}, cuda:1, "
            "..."
        )
    return value


def _once(value: list[str]) -> list[str]:
    for name in value:
        if value.count(name) > 1:
            raise ValueError(f"{name!r} is listed twice")
    return value


def _range(value: list[float]) -> list[float]:
    if len(value) != 2:
        raise ValueError(f"needs two numbers, [lowest, highest], as in [0.0, 0.9]; got {value}")
    low, high = value
    for number in value:
        if not 0 <= number < 1:
            raise ValueError(
                f"a ratio is the share removed, at least 0 and less than 1; got {number:g}"
            )
    if low > high:
        raise ValueError(
            f"the lowest ratio {low:g} is over the highest {high:g}; write [{high:g}, {low:g}]"
        )
    return value


def _as_mapping(value: object) -> object:
    """`name` as it is short for `{name: name}`."""
    return {"name": value} if isinstance(value, str) else value


def _check_time(value: object) -> object:
    if value is not None:
        duration(value)
    return value


def _url(value: str | None) -> str | None:
    if value is not None and not re.match(r"[a-z][a-z0-9+]*://", value):
        raise ValueError(f"needs an Optuna storage URL, as in sqlite:///study.db; got {value!r}")
    return value


def _finalists(value: object) -> object:
    if value != "all" and (type(value) is not int or value < 1):
        raise ValueError(
            f"needs how many of the best plans are trained, at least 1, or all; got {value!r}"
        )
    return value


Finalists = Annotated[int | str, BeforeValidator(_finalists)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Names = Annotated[list[str], AfterValidator(_once)]
Some = Annotated[list[str], Field(min_length=1), AfterValidator(_once)]
Device = Annotated[str, AfterValidator(partial(_device, ("auto", "cpu", "cuda", "mps")))]
Precision = Annotated[str, AfterValidator(partial(one_of, "precision", ("fp32", "bf16", "fp16")))]
Schedule = Annotated[
    str, AfterValidator(partial(one_of, "schedule", ("cosine", "linear", "constant")))
]
Baseline = Annotated[str, AfterValidator(partial(one_of, "baseline", ("auto", "always", "never")))]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Optimizer = Annotated[str, AfterValidator(partial(one_of, "optimizer", ("adamw", "adam", "sgd")))]
Loss = Annotated[str, AfterValidator(partial(_reference_or, "loss", LOSSES))]
Sampler = Annotated[str, AfterValidator(partial(one_of, "sampler", SAMPLERS))]
TargetDevice = Annotated[str, AfterValidator(partial(_device, ("cpu", "cuda")))]
Ratio = Annotated[list[float], AfterValidator(_range)]
Duration = Annotated[str | None, BeforeValidator(_check_time)]
Url = Annotated[str | None, AfterValidator(_url)]
Objective = Annotated[str, AfterValidator(_check_objective)]
Objectives = Annotated[list[Objective], Field(min_length=1), AfterValidator(_once)]
Named = BeforeValidator(_as_mapping)
