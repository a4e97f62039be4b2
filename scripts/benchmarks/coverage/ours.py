"""The autoprune side of benchmarks/coverage, in a process of its own."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.errors import AutopruneError
from autoprune.group import Group
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.coupling.masked_reference import masked_outputs
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.space import fits
from autoprune.task import Inputs
from scripts.benchmarks.coverage.measure import (
    RATIO,
    Watch,
    deep_copy,
    effect,
    emit,
    error_of,
    interleaved,
    parameters,
    peak_mb,
    prepared,
    reason,
    shapes_kept,
)
from scripts.benchmarks.coverage.models import Case

TECHNIQUES = ("structured", "neuron", "heads")


def technique(group: Group) -> str | None:
    """The first technique that fits a units group."""
    for name in TECHNIQUES:
        try:
            if fits(name, group) is None:
                return name
        except AutopruneError:  # not every release has each of them
            continue
    return None


def plan(coupling: Coupling, ratio: float = RATIO) -> Plan:
    """`ratio` of every prunable units group, as `autoprune.prune(model, inputs, ratio)` does."""
    groups = [(group, technique(group)) for group in coupling.prunable() if group.level == "units"]
    return Plan({group.key: Choice(name, ratio) for group, name in groups if name is not None})


def measure(case: Case, seconds: float, timing: bool) -> None:
    """Everything about one model; with `timing`, times alone."""
    model, inputs = prepared(case)
    emit(parameters=parameters(model), base_mb=peak_mb())
    start = time.perf_counter()
    try:
        coupling = discover(model, inputs)
    except Exception as problem:
        emit(status="failed", reason=f"discovery: {reason(problem)}")
        return
    emit(discovery_s=time.perf_counter() - start, **groups(coupling))
    chosen = plan(coupling)
    if not len(chosen):
        emit(status="refused", reason=refusals(coupling), peak_mb=peak_mb())
        return
    try:
        times(model, coupling, chosen, seconds)
        if not timing:
            check(case, model, inputs, coupling, chosen)
    except Exception as problem:
        emit(status="failed", reason=reason(problem))


def groups(coupling: Coupling) -> dict[str, Any]:
    units = [group for group in coupling.groups if group.level == "units"]
    refused = [group for group in units if group.refusal]
    return {
        "prunable": len(units) - len(refused),
        "refused": len(refused),
        "refusals": [f"{group.name}: {group.refusal}"[:240] for group in refused][:40],
    }


def refusals(coupling: Coupling) -> str:
    reasons = [f"{group.name}: {group.refusal}" for group in coupling.groups if group.refusal]
    return reasons[0][:200] if reasons else "no units group found"


def times(model: nn.Module, coupling: Coupling, chosen: Plan, seconds: float) -> None:
    """Applying a plan, with the importance known (as in a search) and with the ranking included,
    beside deep copies."""
    known = Importance(model, coupling)
    Pruner(model, coupling, known).apply(chosen)
    copied, applied, ranked = interleaved(
        [
            deep_copy(model),
            lambda: Pruner(model, coupling, known).apply(chosen),
            lambda: Pruner(model, coupling, Importance(model, coupling)).apply(chosen),
        ],
        min(20.0, seconds / 6),
    )
    emit(copy_s=copied, apply_s=applied, apply_ranked_s=ranked, peak_mb=peak_mb())


def check(case: Case, model: nn.Module, inputs: Inputs, coupling: Coupling, chosen: Plan) -> None:
    """What was removed, and whether the cut model computes what the masked one does."""
    importance = Importance(model, coupling)
    pruned = Pruner(model, coupling, importance).apply(chosen)
    smaller = pruned.model
    touched = {cut.tensor for cut in pruned.cuts}
    total = parameters(model)
    inside = sum(tensor.numel() for name, tensor in model.named_parameters() if name in touched)
    emit(removed=1 - parameters(smaller) / total, prunable_share=inside / total)
    emit(
        shapes_kept=shapes_kept(model, smaller, inputs, case), effect=effect(model, smaller, inputs)
    )
    keep = kept(coupling, chosen, importance)
    watches = Watch(model, case.raw), Watch(smaller, case.raw)

    def pair(cast: Any, wide: Any) -> tuple[list[Tensor], list[Tensor]]:
        given = wide(inputs)
        cut = watches[1].run(lambda: outputs_of(cast(smaller), given))
        return cut, watches[0].run(lambda: masked_outputs(cast(model), given, coupling, keep))

    emit(**error_of(pair))
    emit(status="pruned")


def kept(coupling: Coupling, chosen: Plan, importance: Importance) -> dict[str, Tensor]:
    """The units that stay, group by group."""
    keep: dict[str, Tensor] = {}
    for key, choice in chosen:
        rule = plugins.load("technique", choice.technique)()
        cells = importance.units(coupling.group(key), choice.criterion)
        keep[key] = torch.stack([rule.keep(cell, choice.ratio) for cell in cells]).flatten()
    return keep
