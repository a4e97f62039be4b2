"""What every method of benchmarks/search is given: the dense net, the budget, training and
measuring that count."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autoprune.budget import Budget
from autoprune.measuring import measure
from autoprune.measuring.timing.latency import Latency
from autoprune.run import Run
from autoprune.searching.evaluating.preparation import Prepared, prepare
from autoprune.space import Options, Space
from autoprune.study import Settings, Study
from autoprune.target import Target
from autoprune.task import Inputs, Task
from autoprune.training.loop import evaluate, train
from scripts.benchmarks.search.tasks import WIDTHS, Case

TARGET = Target("cpu_onnxruntime", runtime="onnxruntime", threads=1, batch=1)
MARGIN = 0.98  # of the budget: what a measured ratio may be while a method chooses
SECONDS = 1.0  # at most, for a latency while a method chooses, on a machine that is not busy
STEPS, AROUND = 40, 8
CONFIRMED = 6  # models that fit are measured again in fresh processes, until one fits there too


class Refused(Exception):
    """A method cannot prune this net, or not to this budget."""


class Missing(Exception):
    """A method's package is not installed."""


@dataclass
class Spent:
    """Epochs of training and seconds by what they went into."""

    epochs: float = 0.0
    training: float = 0.0
    measuring: float = 0.0
    judging: float = 0.0  # plans untrained
    earlier: float = 0.0  # the whole of what was cut off, and went on

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.monotonic() - began)


def correct(model: nn.Module, task: Task, split: str = "test") -> np.ndarray:
    """Whether each example of a split is classified rightly."""
    found = []
    with torch.no_grad():
        for args, _, labels in task.batches(split):  # type: ignore[arg-type]
            found.append(model(*args).argmax(1) == labels)
    return torch.cat(found).numpy()


def space(case: Case, **options: object) -> Space:
    """Everything but the output layer, by techniques that make a net faster on the target."""
    return Space(Options(**options), {case.output: Options(techniques=())})  # type: ignore[arg-type]


@dataclass
class Dense:
    """The dense net of a (task, seed), what autoprune knows of it, and the figures that cells are
    compared with."""

    case: Case
    task: Task  # whose `given` is the dense net
    seed: int
    model: nn.Module
    prepared: Prepared
    error: float
    artefact: bytes | nn.Module

    @classmethod
    def of(cls, case: Case, seed: int, data: Path, out: Path) -> Dense:
        """Trained, or read, once; kept in `out`."""
        task, path = case.task(data), out / "dense" / f"{case.name}-{seed}"
        torch.manual_seed(seed)
        model = task.build()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.with_suffix(".pt").exists():
            model.load_state_dict(torch.load(path.with_suffix(".pt"), weights_only=True))
        elif case.weights is not None:
            stored = torch.load(data / case.weights, map_location="cpu", weights_only=True)[
                "state_dict"
            ]
            model.load_state_dict(
                {name.removeprefix("module."): each for name, each in stored.items()}, strict=False
            )
        else:
            print(
                f"{case.name}, seed {seed}: training the dense net, {task.training.epochs} epochs",
                flush=True,
            )
            train(model, task, task.training, seed=seed)
        model.eval()
        torch.save(model.state_dict(), path.with_suffix(".pt"))
        task = replace(task, given=model)
        study = Study(
            case.name,
            task,
            space(case, techniques=WIDTHS, ratio=(0.0, 0.95), criteria=("l1",)),
            TARGET,
            Budget(),
            Settings(seed=seed),
            case.recipe(case.trial),
        )
        prepared = prepare(study)
        right = correct(model, task)
        np.savez_compressed(path.with_suffix(".npz"), correct=right)
        error = 1 - float(right.mean())
        record: dict[str, float | None] = {
            "error": error,
            "validation": evaluate(model, task, "validation", "cpu").metric,
        }
        record |= {"ms": prepared.dense.latency.ms, "least": prepared.smallest.latency.ratio}
        record |= {"flops": prepared.dense.flops, "params": prepared.dense.params}
        Run.write_json(path.with_suffix(".json"), record)
        print(f"{case.name}, seed {seed}: {json.dumps(record)}", flush=True)
        return cls(
            case,
            task,
            seed,
            model,
            prepared,
            error,
            measure.artefact(model, prepared.inputs, TARGET),
        )

    @property
    def inputs(self) -> Inputs:
        return self.prepared.inputs.rows(1)


@dataclass
class Cell:
    """One (task, budget, seed) for one method; `epochs` is what it may spend, `work` a folder of
    its own."""

    dense: Dense
    budget: float  # of dense latency
    work: Path
    spent: Spent = field(default_factory=Spent)

    @property
    def case(self) -> Case:
        return self.dense.case

    @property
    def epochs(self) -> int:
        return self.case.epochs

    @property
    def limit(self) -> float:
        return self.budget * MARGIN

    def train(self, model: nn.Module, epochs: float) -> nn.Module:
        """Train `model` by the recovery, the dense net its teacher; part of an epoch is one on part
        of the data."""
        task, whole = self.dense.task, max(1, round(epochs))
        share = epochs / whole if epochs < 1 else 1.0
        if share < 1:
            data = task.data.train
            generator = torch.Generator().manual_seed(
                self.dense.seed + round(1e3 * self.spent.epochs)
            )
            part = torch.randperm(len(data), generator=generator)[
                : max(128, math.ceil(share * len(data)))
            ]
            share = len(part) / len(data)
            task = replace(
                task,
                data=replace(task.data, train=type(data)(*(each[part] for each in data.tensors))),
            )
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        with self.spent.on("training"):
            train(
                model, task, self.case.recipe(whole), seed=self.dense.seed, teacher=self.dense.model
            )
        self.spent.epochs += share * whole
        return model

    def validation(self, model: nn.Module) -> float:
        return evaluate(model, self.dense.task, "validation", "cpu").metric

    def latency(self, model: nn.Module, processes: int = 0) -> Latency:
        """Of any net, beside the dense one."""
        with self.spent.on("measuring"):
            artefact = measure.artefact(model.eval(), self.dense.inputs, TARGET)
            found = measure.time_artefact(
                artefact,
                self.dense.artefact,
                self.dense.inputs,
                TARGET,
                processes=processes,
                budget_s=SECONDS,
            )
        return found

    def ratio(self, model: nn.Module, processes: int = 0) -> float:
        found = self.latency(model, processes).ratio
        assert found is not None
        return found


def largest(cell: Cell, make: Callable[[float], nn.Module]) -> float:
    """The share, of widths or FLOPs to remove, of the largest of the nets `make(share)` that fits;
    in 40 steps.

    Latency does not fall evenly: the kernels like widths in eights. So after a bisection the
    gentler shares by up to `AROUND` steps are tried as well. Those that fit are measured again in
    fresh processes, largest first.
    """
    sizes: dict[int, int] = {}  # of the nets that fit
    seen: dict[tuple[tuple[int, ...], ...], float] = {}
    problem = "no share was tried"

    def fits(step: int) -> bool:
        nonlocal problem
        try:
            model = make(step / STEPS)
            shapes = tuple(tuple(each.shape) for each in model.parameters())
            seen[shapes] = seen[shapes] if shapes in seen else cell.ratio(model)
        except Exception as error:
            # a peer's failures are of every kind; at another share it may do
            problem = f"{type(error).__name__}: {error}"
            return False
        if seen[shapes] > cell.limit:
            problem = f"nothing fits: {min(seen.values()):.1%} at least"
            return False
        sizes[step] = sum(each.numel() for each in model.parameters())
        return True

    low, high = 0, STEPS - 1
    fits(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    if not sizes:
        raise Refused(problem)
    for step in range(max(1, high - AROUND), high):
        if step not in sizes:
            fits(step)
    for step in sorted(sizes, key=lambda each: -sizes[each])[:CONFIRMED]:
        if cell.ratio(make(step / STEPS), processes=3) <= cell.limit:
            return step / STEPS
    return max(sizes) / STEPS
