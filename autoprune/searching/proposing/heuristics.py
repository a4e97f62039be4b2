"""The plans worth trying first, so that the result is never worse than a heuristic's: each scaled
to the budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from autoprune import plugins
from autoprune.decision import Decisions
from autoprune.plan import Plan
from autoprune.pruning.thresholds import Threshold
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.proposing.budget_scaling import BudgetScaling
from autoprune.searching.proposing.nets import Nets
from autoprune.space import (
    NONE,
    Variable,
    highest_ratio,
    uniform,
    unit_techniques,
)

__all__ = ["by_importance", "proposals", "ranked_globally", "shallower", "thresholds"]

# Of the global threshold: steps of 2.5 %, of which a bisection looks at six
_LEVELS = 40
# Of all blocks, that go beside uniform widths: how depth and width share the budget is seen only
# by judging
_DEPTHS = (0.25, 0.5, 0.75)


def proposals(
    prepared: Prepared, scaling: BudgetScaling, solved: Sequence[Callable[[float], Plan]] = ()
) -> list[Plan]:
    """Dense first; then one plan for each single technique, and uniform cuts of all units.

    That of a technique which takes blocks takes the least important ones. With `solved`, functions
    of the share of the budget to spend, their plans and the uniform ones for several shares.
    """
    variables = prepared.variables
    offered = [name for variable in variables for name in variable.options.techniques]
    plans, shares = [Plan()], scaling.shares()
    for technique in dict.fromkeys(offered):
        plans.append(_to_budget(variables, scaling, (technique,), shares[0]))
    for share in shares if solved else shares[:1]:
        plans += [
            _to_budget(variables, scaling, unit_techniques(variables), share),
            *(solve(share) for solve in solved),
        ]
    known, different = Nets(scaling.pruner), list[Plan]()
    for plan in plans:
        if plan not in known:
            known.add(plan)
            different.append(plan)
    return different


def _to_budget(
    variables: Sequence[Variable], scaling: BudgetScaling, techniques: Sequence[str], share: float
) -> Plan:
    """The least uniform ratio of `techniques` that keeps a share of the budget; the highest where
    none does."""
    highest = highest_ratio(variables, techniques)
    # Nothing is known beforehand of what is limited: at several ratios
    if not scaling.budget.limits:
        highest *= share
    start, order = _uniform(variables, techniques, highest), by_importance(variables, scaling)
    # Scaled, they go one after the other
    blocks = (
        start[block.name].at(highest * (1 - place / len(order)))
        for place, block in enumerate(order)
    )
    return scaling.fit_to_budget(start.evolve(*blocks), share).plan


def _uniform(variables: Sequence[Variable], techniques: Sequence[str], ratio: float) -> Decisions:
    return Decisions.of_plan(variables, uniform(variables, techniques, ratio))


def by_importance(variables: Sequence[Variable], scaling: BudgetScaling) -> list[Variable]:
    """The blocks, the least important by its first criterion first."""

    def importance(block: Variable) -> float:
        return float(scaling.pruner.importance.blocks(block.groups[0], block.options.criteria[0]))

    return sorted((variable for variable in variables if variable.whole), key=importance)


def shallower(
    variables: Sequence[Variable], scaling: BudgetScaling, order: Sequence[Variable]
) -> list[Callable[[float], Plan]]:
    """Plans of a share of the budget, in which some of the blocks go, in `order`, and all widths
    are cut alike."""

    def solve(count: int, share: float) -> Plan:
        techniques = unit_techniques(variables)
        start = _uniform(variables, techniques, highest_ratio(variables, techniques))
        gone = (start[block.name].at(1.0, block.options.techniques[0]) for block in order[:count])
        return scaling.fit_to_budget(start.evolve(*gone), share).plan

    counts = sorted({math.ceil(share * len(order)) for share in _DEPTHS} - {0})
    return [functools.partial(solve, count) for count in counts]


def ranked_globally(prepared: Prepared, scaling: BudgetScaling, share: float) -> Plan:
    """All units ranked together by their group's first criterion, the least important gone, as few
    as the budget asks.

    Groups compare as `Importance.units` makes them. A group keeps the share that its own range of
    ratios allows.
    """
    shares = _importances(prepared, scaling)
    pooled = torch.cat(list(shares.values())).sort().values if shares else torch.zeros(1)

    untouched = Decisions.of_plan(prepared.variables, Plan())

    def at(level: int) -> Plan:
        threshold = pooled[min(len(pooled) - 1, round(level / _LEVELS * (len(pooled) - 1)))]
        cut = []
        for name, importance in shares.items():
            gone = float((importance < threshold).float().mean())
            technique = untouched[name].variable.options.techniques[0]
            cut.append(untouched[name].at(gone, technique if gone > 0 else NONE))
        return untouched.evolve(*cut).plan

    return at(_least(lambda level: scaling.fits(at(level), share)))


def thresholds(prepared: Prepared, scaling: BudgetScaling) -> list[Callable[[float], Plan]]:
    """Plans of a share of the budget in which weights alone go, by one threshold over those of all
    layers.

    For `weight` and `sparse` where they are offered, by magnitude and, among the criteria that rank
    alike, by LAMP.
    """
    offered = {name for variable in prepared.variables for name in variable.options.techniques}
    return [
        functools.partial(_under_threshold, prepared, scaling, technique, criterion)
        for technique in sorted(offered)
        if _is_unstructured(technique)
        for criterion in ("l1", "lamp")
    ]


def _is_unstructured(technique: str) -> bool:
    """Whether single weights go, any number of them."""
    plugin = plugins.create("technique", technique)
    return (
        plugin.level == "weights"
        and getattr(plugin, "elementwise", False)
        and not hasattr(plugin, "steps")
    )


def _under_threshold(
    prepared: Prepared, scaling: BudgetScaling, technique: str, criterion: str, share: float
) -> Plan:
    """Of all weights as few go as the budget asks. A layer keeps the share that its own range of
    ratios allows."""
    variables = [
        variable for variable in prepared.variables if technique in variable.options.techniques
    ]
    scores = {
        variable.name: torch.cat(
            [
                scaling.pruner.importance.weights(group, criterion).flatten()
                for group in variable.groups
            ]
        )
        for variable in variables
    }
    ranked, untouched = Threshold(scores), Decisions.of_plan(prepared.variables, Plan())

    def at(level: int) -> Plan:
        cut = (untouched[name].at(ratio, technique) for name, ratio in ratios[level].items())
        return untouched.evolve(*cut).plan

    ratios = [ranked.ratios(level / _LEVELS) for level in range(_LEVELS + 1)]
    return at(_least(lambda level: scaling.fits(at(level), share)))


def _least(fits: Callable[[int], bool]) -> int:
    """The least of the levels that fits, the highest where none does."""
    low, high = 0, _LEVELS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _importances(prepared: Prepared, scaling: BudgetScaling) -> Mapping[str, torch.Tensor]:
    """Importance of the units of each variable that can be narrowed."""
    by_variable = {}
    for variable in prepared.variables:
        if variable.groups[0].level == "units" and variable.options.techniques:
            criterion = variable.options.criteria[0]
            units = [
                scaling.pruner.importance.units(group, criterion).flatten()
                for group in variable.groups
            ]
            by_variable[variable.name] = torch.cat(units)
    return by_variable
