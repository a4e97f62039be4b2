"""The schema of a study: pydantic models that mirror its YAML; what is not in them is refused.

Nothing here looks at files or at the model; importing it does not import torch.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from autoprune.reading.values import (
    METRICS,
    Baseline,
    Device,
    Duration,
    Finalists,
    Loss,
    Momentum,
    Named,
    Names,
    Objectives,
    Optimizer,
    Positive,
    Precision,
    Ratio,
    Sampler,
    Schedule,
    Share,
    Some,
    TargetDevice,
    Url,
    one_of,
)

__all__ = ["Options", "Recovery", "StudySchema", "TargetSchema", "TaskSchema", "Training"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Reference(_Section):
    """`name`, or `{name: ..., args: {...}}`."""

    name: str = Field(min_length=1)
    args: dict[str, Any] = {}


class MetricSchema(_Section):
    """A built-in metric, or one of the user's own, with a function and a goal."""

    name: str = Field(min_length=1)
    function: str | None = None
    goal: Literal["maximize", "minimize"] | None = None

    @model_validator(mode="after")
    def _whole(self) -> MetricSchema:
        if self.function is None:
            one_of("metric", tuple(METRICS), self.name)
            if self.goal not in (None, METRICS[self.name]):
                raise ValueError(
                    f"the goal of {self.name} is to {METRICS[self.name]}; got {self.goal}"
                )
        elif self.goal is None:
            raise ValueError(
                f"the metric {self.name!r} has a function of its own and so needs its goal: "
                "maximize or minimize"
            )
        return self


class Training(_Section):
    """Whether and how the dense model is trained: `auto` where it guesses and no weights are
    named."""

    baseline: Baseline = "auto"
    epochs: int = Field(default=20, ge=0)
    batch_size: int = Field(default=64, ge=1)
    workers: int = Field(default=0, ge=0)
    device: Device = "auto"
    precision: Precision = "fp32"
    optimizer: Optimizer = "adamw"
    learning_rate: Positive = 0.001
    weight_decay: float = Field(default=0.01, ge=0)
    momentum: Momentum = 0.9
    schedule: Schedule = "cosine"
    warmup: Momentum = 0.05


class Recovery(_Section):
    """How a pruned model is trained; what is None is as in `training`."""

    epochs: int = Field(default=5, ge=0)
    batch_size: int | None = Field(default=None, ge=1)
    workers: int | None = Field(default=None, ge=0)
    device: Device | None = None
    precision: Precision | None = None
    optimizer: Optimizer = "adamw"
    learning_rate: Positive = 0.001
    weight_decay: float = Field(default=0.01, ge=0)
    momentum: Momentum = 0.9
    schedule: Schedule = "cosine"
    warmup: Momentum = 0.05
    distill: Share = 0.5
    temperature: Positive = 4.0
    repair: bool = True
    iterations: int = Field(default=1, ge=1)


class TaskSchema(_Section):
    """What is pruned and how it is judged."""

    model: Annotated[Reference, Named]
    weights: str | None = None
    data: Annotated[Reference, Named]
    loss: Loss = "cross_entropy"
    metric: Annotated[MetricSchema, Named] = MetricSchema(name="accuracy")
    adapter: str | None = None
    training: Training = Training()


class Options(_Section):
    """What may be chosen; None: as in `space.default`."""

    techniques: Names | None = None
    ratio: Ratio | None = None
    criteria: Some | None = None
    multiple_of: int | None = Field(default=None, ge=1)


class ShareSchema(_Section):
    """One decision for all groups whose names begin with the same `depth` parts."""

    depth: int = Field(ge=1)


class SpaceSchema(_Section):
    """Options by pattern on layer names."""

    default: Options = Options()
    layers: dict[str, Options] = {}
    share: Literal["stage"] | ShareSchema | None = None


class TargetSchema(_Section):
    """A device and the runtime on it; of the runtime `recorded`, `from` is the run that answers."""

    name: str | None = None
    device: TargetDevice = "cpu"
    runtime: str = "onnxruntime"
    threads: int = Field(default=1, ge=1)
    batch: int = Field(default=1, ge=1)
    dtype: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    multiple_of: int = Field(default=1, ge=1)
    source: str | None = Field(default=None, alias="from", min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> TargetSchema:
        if self.runtime == "recorded" and self.source is None:
            raise ValueError(
                "the runtime recorded needs the run that it answers from: {runtime: recorded, "
                "from: RUN}"
            )
        if self.runtime != "recorded" and self.source is not None:
            raise ValueError(
                f"from is of the runtime recorded alone; the runtime is {self.runtime}"
            )
        return self


class SearchSchema(_Section):
    """How the search goes."""

    trials: int = Field(default=200, ge=1)
    finalists: Finalists = 4
    seed: int = Field(default=0, ge=0)
    objectives: Objectives = ["metric", "latency"]
    timeout: Duration = None
    stall: Duration = None
    storage: Url = None
    sampler: Sampler = "tpe"
    executor: str = "inline"


class ExportSchema(_Section):
    """Which files are written of a candidate."""

    formats: Some = ["safetensors", "onnx", "program"]


class StudySchema(_Section):
    """A whole study; `task` may be missing only where model and data are given in Python."""

    version: Literal[1]
    name: str = Field(min_length=1)
    task: TaskSchema | None = None
    space: SpaceSchema = SpaceSchema()
    target: TargetSchema = TargetSchema()
    budget: dict[str, Any] = {}
    search: SearchSchema = SearchSchema()
    recovery: Recovery = Recovery()
    export: ExportSchema = ExportSchema()
    folder: str | None = None

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not re.fullmatch(r"[\w][\w.\- ]*", name):
            raise ValueError(
                "names the run's folder, so it needs letters, digits and . _ - only, no slash; "
                f"got {name!r}"
            )
        return name
