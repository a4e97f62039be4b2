"""A model's cost layer by layer: which share of the latency, how many FLOPs and parameters each
module has itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from autoprune.measuring import flops, measure
from autoprune.measuring.profiling.profilers import PROFILERS, Times
from autoprune.measuring.sparse_kernels.layers import densify
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["OTHER", "Breakdown", "Layer", "breakdown"]

# Work of the runtime that belongs to no module
OTHER = "(no module)"


@dataclass(frozen=True)
class Layer:
    """What a module does itself, its children left out. `latency_ms` is of a profiled call, `share`
    of all of it."""

    name: str
    kind: str
    latency_ms: float | None
    share: float | None
    flops: int
    params: int


@dataclass(frozen=True)
class Breakdown:
    """Every module that costs something, in the model's order; `note` says why there is no latency,
    where so."""

    layers: tuple[Layer, ...]
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field."""
        return {"layers": [asdict(layer) for layer in self.layers], "note": self.note}


def breakdown(model: nn.Module, inputs: Inputs, target: Target) -> Breakdown:
    """Cost by layer for one call of the target's batch; shares of the latency sum to 1. `model` is
    left as it was.

    Raises ModelError for a model that cannot be traced or exported, InputError for a target that is
    not here.
    """
    batch, plain = inputs.rows(target.batch), densify(model)
    profiler, threads = PROFILERS.get(target.runtime), torch.get_num_threads()
    if profiler is None:
        known = ", ".join(PROFILERS)
        note = f"runtime {target.runtime} does not tell what time each layer takes; {known} do"
        return Breakdown(_layers(plain, batch, None), note)
    try:
        times = profiler(plain, measure.artefact(plain, batch, target), batch, target)
    finally:
        torch.set_num_threads(threads)
    return Breakdown(_layers(plain, batch, times))


def _layers(model: nn.Module, inputs: Inputs, times: Times | None) -> tuple[Layer, ...]:
    modules, counted = dict(model.named_modules()), flops.count(model, inputs).by_module
    params = _own_parameters(modules)
    spent = dict(times or {})
    other = spent.pop(None, 0.0) + sum(spent.pop(name) for name in set(spent) - set(modules))
    total = sum(spent.values()) + other
    layers = []
    for name, module in modules.items():
        own = counted.get(name, 0) - sum(
            counted.get(_join_names(name, child), 0) for child, _ in module.named_children()
        )
        ms = spent.get(name, 0.0) if times is not None else None
        if ms or own or params[name]:
            share = None if ms is None else ms / total if total else 0.0
            layers.append(Layer(name, type(module).__name__, ms, share, max(own, 0), params[name]))
    if other:
        layers.append(Layer(OTHER, "", other, other / total, 0, 0))
    return tuple(layers)


def _own_parameters(modules: dict[str, nn.Module]) -> dict[str, int]:
    """Elements of the parameters that each module holds itself; tied ones count where they come
    first."""
    seen: set[int] = set()
    counts = {}
    for name, module in modules.items():
        own = [
            parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen
        ]
        seen |= {id(parameter) for parameter in own}
        counts[name] = sum(parameter.numel() for parameter in own)
    return counts


def _join_names(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child
