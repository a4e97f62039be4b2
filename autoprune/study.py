"""Study: everything one search needs, resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoprune.budget import Budget, Feasibility
from autoprune.score import Score
from autoprune.space import Space
from autoprune.target import Target
from autoprune.task import Recipe, Task

__all__ = ["Settings", "Study"]


@dataclass(frozen=True)
class Settings:
    """How the search goes: trials (the dense model is trial 0), seed, objectives, time limit,
    storage, sampler.

    A trial is measured and judged untrained; the best are then trained, as trials of their own,
    `finalists` of them.
    None: every trial inside the budget is trained at once, and nothing is judged before.
    """

    trials: int = 200
    finalists: int | None = 4
    seed: int = 0
    objectives: tuple[str, ...] = ("metric", "latency")
    timeout_s: float | None = None
    stall_s: float | None = None  # a step in which nothing moves for so long is ended
    # An Optuna storage URL; None: the journal file in the run's folder
    storage: str | None = None
    sampler: str = "tpe"
    executor: str = "inline"


@dataclass(frozen=True)
class Study:
    """The nouns of one search, and `resolved`: the same as the YAML mapping with every default
    filled in.

    `folder` is where the study's own modules are looked for. `further` are the targets beside the
    first that limits of the budget name, as in `latency on cpu_eager`.
    """

    name: str
    task: Task
    space: Space
    target: Target
    budget: Budget
    search: Settings
    recovery: Recipe
    formats: tuple[str, ...] = ("safetensors", "onnx", "program")
    folder: Path = Path()
    further: tuple[Target, ...] = ()
    resolved: Mapping[str, Any] = field(default_factory=dict)

    def feasibility(self, dense: Score) -> Feasibility:
        """The budget, held against scores beside that of the dense model."""
        return Feasibility(self.budget, dense, self.task.metric.goal)
