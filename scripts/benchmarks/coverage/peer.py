"""The Torch-Pruning side of benchmarks/coverage, in a process of its own, used as its own examples
use it.

Settings come from its repository at v1.6.1: examples/torchvision_models, timm_models, transformers
and LLMs.
"""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

from autoprune.pruning.surgery.forward import output_tensors, outputs_of
from autoprune.task import Inputs
from scripts.benchmarks.coverage.measure import (
    RATIO,
    Watch,
    deep_copy,
    effect,
    emit,
    error_of,
    interleaved,
    limit,
    output_names,
    parameters,
    peak_mb,
    prepared,
    reason,
    shapes_kept,
)
from scripts.benchmarks.coverage.models import Case
from scripts.benchmarks.coverage.peer_reference import Removed, reference
from scripts.benchmarks.coverage.peer_settings import prepare, settings, settle

RIGHT = 1e-4


@dataclass
class Variant:
    """One way of calling it; of those that are right, the one that removes most is taken."""

    name: str
    pruner: type
    summed: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    plain: bool = False  # without anything but the output layers named
    # nn.MultiheadAttention: heads as channel groups, as its torchvision example has it
    grouped: bool = False
    eager: bool = False  # Hugging Face: attention written out, as when its examples were written


def variants(model: nn.Module) -> list[Variant]:
    base, group = tp.pruner.MagnitudePruner, tp.pruner.GroupNormPruner
    heads = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": RATIO}
    found = [
        Variant("magnitude", base),
        Variant("group_norm", group),
        Variant("magnitude, summed", base, True),
    ]
    if settings(model, ())["num_heads"]:
        found.append(Variant("magnitude, heads", base, True, heads))
    if hasattr(model, "set_attn_implementation"):
        found.insert(0, Variant("magnitude, eager attention", base, True, eager=True))
        found.insert(1, Variant("magnitude, heads, eager attention", base, True, heads, eager=True))
    if any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        found.insert(0, Variant("magnitude, channel groups", base, grouped=True))
    return [*found, Variant("magnitude, no settings", base, plain=True)]


def build(model: nn.Module, inputs: Inputs, keep: Sequence[str], variant: Variant) -> Any:
    """Its constructor: traces the model and finds the groups."""

    def outputs(output: Any) -> Any:
        tensors = [tensor for tensor in output_tensors(output) if tensor.grad_fn is not None]
        return sum(tensor.sum() for tensor in tensors) if variant.summed else tensors

    example = inputs.rows(1)
    return variant.pruner(
        model,
        example.kwargs or example.args,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=RATIO,
        output_transform=outputs,
        **(settings(model, keep, variant.plain, variant.grouped) | variant.options),
    )


def prune(model: nn.Module, inputs: Inputs, keep: Sequence[str], variant: Variant) -> int:
    """Constructor and step on `model` itself, and the attributes that its examples set afterwards;
    groups pruned."""
    pruner = build(model, inputs, keep, variant)
    count = 0
    for group in pruner.step(interactive=True):
        group.prune()
        count += 1
    settle(model, pruner)
    return count


def measure(case: Case, seconds: float, timing: str | None) -> None:
    """Everything about one model; with the name of a variant as `timing`, that one's times
    alone."""
    warnings.simplefilter("ignore")
    model, inputs = prepared(case)
    model = prepare(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    keep = [*case.keep, *output_names(model, inputs)]
    emit(parameters=parameters(model), base_mb=peak_mb())
    if timing:
        variant = next(each for each in variants(model) if each.name == timing)
        times(with_attention(model, variant), inputs, keep, variant, seconds)
        return
    best = None
    problems: dict[str, str] = {}
    for variant in variants(model):
        found = attempt(case, model, inputs, keep, variant, problems, seconds)
        if found is not None and (best is None or merit(found) > merit(best[1])):
            best = variant, found
            emit(status="pruned", variant=variant.name, problems=problems, **found)
        if best is not None and best[1]["error"] <= RIGHT and best[1]["removed"] >= 0.7:
            # half of every width is about three quarters of the parameters: no other variant can do
            # better
            break
    if best is None:
        emit(
            status="failed",
            reason=next(iter(problems.values())),
            problems=problems,
            peak_mb=peak_mb(),
        )
        return
    times(with_attention(model, best[0]), inputs, keep, best[0], seconds)


def merit(found: dict[str, Any]) -> tuple[bool, float]:
    """Right first, then by the share removed; where none is right, by the error."""
    right = found["error"] <= RIGHT
    return right, found["removed"] if right else -found["error"]


def with_attention(model: nn.Module, variant: Variant) -> nn.Module:
    if variant.eager:
        model.set_attn_implementation("eager")  # type: ignore[operator]
    return model


def attempt(
    case: Case,
    model: nn.Module,
    inputs: Inputs,
    keep: Sequence[str],
    variant: Variant,
    problems: dict[str, str],
    seconds: float,
) -> dict[str, Any] | None:
    """What one variant gives, or None and the reason in `problems`."""
    smaller = with_attention(copy.deepcopy(model), variant)
    dense = copy.deepcopy(smaller)
    try:
        with limit(seconds / 4):
            start = time.perf_counter()
            with Removed() as removed:
                count = prune(smaller, inputs, keep, variant)
            taken = time.perf_counter() - start
            peak = peak_mb()
            share = 1 - parameters(smaller) / parameters(model)
            if share <= 0:
                problems[variant.name] = "nothing was pruned"
                return None
            outputs_of(smaller, inputs)
            figures = {"prunable": count, "removed": share, "first_s": taken, "peak_mb": peak}
            figures["shapes_kept"] = shapes_kept(model, smaller, inputs, case)
            figures["effect"] = effect(model, smaller, inputs)
            figures |= error_of(pair_of(case, dense, smaller, removed, inputs))
            return figures
    except Exception as problem:  # its failures are of every kind
        problems[variant.name] = reason(problem)
        return None
    finally:
        del smaller, dense
        gc.collect()


def pair_of(
    case: Case, dense: nn.Module, smaller: nn.Module, removed: Removed, inputs: Inputs
) -> Any:
    masked = reference(dense, smaller, removed)
    watches = Watch(masked, case.raw), Watch(smaller, case.raw)

    def pair(cast: Any, wide: Any) -> tuple[list[Tensor], list[Tensor]]:
        given = wide(inputs)
        cut = watches[1].run(lambda: outputs_of(cast(smaller), given))
        return cut, watches[0].run(lambda: outputs_of(cast(masked), given))

    return pair


def times(
    model: nn.Module, inputs: Inputs, keep: Sequence[str], variant: Variant, seconds: float
) -> None:
    """Constructor and step, without the deep copy that they need first, beside deep copies."""
    fresh: list[nn.Module] = []

    def copying() -> None:
        fresh[:] = [deep_copy(model)()]

    copied, pruned = interleaved(
        [copying, lambda: prune(fresh[0], inputs, keep, variant)], min(40.0, seconds / 4)
    )
    emit(copy_s=copied, apply_s=pruned)
