"""A small search, in this process: its task, its study, who listens."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from autoprune.budget import Budget
from autoprune.run import Run
from autoprune.score import Candidate
from autoprune.searching import commands
from autoprune.searching.search import Result
from autoprune.searching.search import search as run_search
from autoprune.space import Options, Space
from autoprune.study import Settings, Study
from autoprune.target import Target
from autoprune.task import Data, Metric, Recipe, Task


def images(count: int, seed: int) -> TensorDataset:
    patterns = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return TensorDataset(
        patterns[labels] + 2.0 * torch.randn(count, 1, 8, 8, generator=generator), labels
    )


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3),
    )  # fmt: skip


def accuracy(outputs: Any, targets: Any) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


TASK = Task(
    build=build,
    data=Data(images(150, 0), images(90, 1), images(90, 2)),
    loss=nn.functional.cross_entropy,
    metric=Metric("accuracy", accuracy),
    training=Recipe(epochs=3, batch_size=25, learning_rate=0.01),
    description={"model": "tests"},
)


def study(
    budget: dict[str, Any] | None = None,
    *,
    recovery: Recipe | None = None,
    task: Task = TASK,
    **settings: Any,
) -> Study:
    settings = {"trials": 6, "finalists": None, "objectives": ("metric", "flops"), **settings}
    return Study(
        "small",
        task,
        Space(
            Options(("structured", "weight"), (0.0, 0.9), ("l1",)),
            {"6": Options((), (0.0, 0.9), ())},
        ),
        Target("cpu_eager", runtime="eager"),
        Budget.parse({"flops": "55%"} if budget is None else budget),
        Settings(**settings),
        recovery or Recipe(epochs=2, batch_size=25, learning_rate=0.01, distill=0.5),
        ("safetensors",),
        resolved={"name": "small", "task": {"model": "python"}},
    )


@dataclass
class Listens:
    """Notes what it hears; `at` is called at every step that begins."""

    at: Callable[[int, str], None] = lambda trial, what: None
    notes: list[str] = field(default_factory=list)
    began: list[tuple[int, str]] = field(default_factory=list)  # after the preparation
    ended: list[Candidate] = field(default_factory=list)

    def on_plan(self, seconds: float | None, trials: int) -> None:
        assert seconds is not None and seconds > 0

    def on_step(self, trial: int, what: str) -> None:
        if not what.startswith(
            ("verifying the groups", "measuring the dense")
        ):  # what every start begins with
            self.began.append((trial, what))
        self.at(trial, what)

    def progress(self, share: float) -> None:
        assert 0 <= share <= 1

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        self.ended.append(candidate)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def trained(self) -> list[int]:
        return [trial for trial, what in self.began if what.startswith("training")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fresh processes, and short measurements: figures of latency are not what is tested here."""
    quicker(monkeypatch)


def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    from autoprune.measuring import measure

    timed = measure.time_artefact
    monkeypatch.setattr(
        measure,
        "time_artefact",
        lambda *args, **options: timed(*args, **{**options, "processes": 0, "budget_s": 0.01}),
    )

    def passed(folder: Path, task: Task | None = None) -> dict[str, Any]:
        result = {"version": 1, "passed": True, "open": [], "checks": []}
        Run.write_json(folder / "verification.json", result)
        return result

    monkeypatch.setitem(
        vars(sys.modules["autoprune.searching.winner"]), "verify_in_fresh_process", passed
    )
    monkeypatch.setattr(commands, "verify_in_fresh_process", passed)


def searched(folder: Path, listener: Listens | None = None, **options: Any) -> Result:
    return run_search(study(**options), Run(folder), listener)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "trials.csv") as file:
        return list(csv.DictReader(file))


def figures(result: Result) -> list[tuple[Any, ...]]:
    return [
        (each.plan, each.score.metric, each.score.flops, each.feasible) for each in result.front
    ]


def crash_at(number: int, what: str) -> Callable[[int, str], None]:
    def at(trial: int, step: str) -> None:
        if trial == number and step.startswith(what):
            raise GeneratorExit("killed")  # as a kill would: nothing is told, nothing put in order

    return at
