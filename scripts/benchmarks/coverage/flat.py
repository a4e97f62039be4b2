"""Memory over 200 candidates in one process: plans drawn at random, each pruned model dropped at
once."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch_pruning as tp
from torch import nn

from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.task import Inputs
from scripts.benchmarks.coverage.measure import emit, output_names, prepared, rss_mb
from scripts.benchmarks.coverage.models import case
from scripts.benchmarks.coverage.ours import technique

CANDIDATES, EVERY = 200, 20
BAR = 0.05


def run(tool: str, name: str) -> None:
    """Resident memory after every 20th candidate; flat is within 5 % of what it was after the first
    20."""
    warnings.simplefilter("ignore")
    model, inputs = prepared(case(name))
    candidate = {"autoprune": ours, "torch_pruning": theirs}[tool](model, inputs)
    random.seed(0)
    seen = []
    for number in range(1, CANDIDATES + 1):
        candidate()
        if number % EVERY == 0:
            seen.append(round(rss_mb(), 1))
            emit(rss_mb=seen)
    drift = max(abs(rss / seen[0] - 1) for rss in seen)
    emit(status="flat" if drift <= BAR else "not flat", drift=drift)


def ours(model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    coupling = discover(model, inputs)
    importance = Importance(model, coupling)
    groups = {
        group.key: technique(group) for group in coupling.prunable() if group.level == "units"
    }

    def candidate() -> None:
        plan = {key: Choice(name, random.uniform(0, 0.9)) for key, name in groups.items() if name}
        Pruner(model, coupling, importance).apply(Plan(plan)).finish()

    return candidate


def theirs(model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    """As in its README, without dictionaries of its caller's own."""
    names = list(output_names(model, inputs))
    for parameter in model.parameters():
        parameter.requires_grad_(True)

    def candidate() -> None:
        smaller = copy.deepcopy(model)
        keep = [smaller.get_submodule(name) for name in names]
        ratios = {m: random.uniform(0, 0.9) for m in smaller.modules() if isinstance(m, nn.Conv2d)}
        importance = tp.importance.MagnitudeImportance(p=1)
        example = inputs.rows(1).args
        tp.pruner.MagnitudePruner(
            smaller,
            example,
            importance,
            pruning_ratio=0.5,
            pruning_ratio_dict=ratios,
            ignored_layers=keep,
        ).step()

    return candidate
