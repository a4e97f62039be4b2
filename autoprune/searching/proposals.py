"""The plans worth trying first: the dense model, every single technique, and uniform narrowing to the budget."""

from __future__ import annotations

from autoprune.plan import Plan
from autoprune.score import NEED_A_RUN
from autoprune.searching.preparation import Prepared
from autoprune.space import uniform
from autoprune.study import Study

__all__ = ["proposals"]

_MARGIN = 0.95  # a plan pushed to the edge of the budget falls outside when measured again
_UNITS = ("structured", "neuron", "heads")


def proposals(study: Study, prepared: Prepared) -> list[Plan]:
    """Dense first; then one plan for each single technique, and uniform cuts of all units to the budget."""
    offered = [name for variable in prepared.variables for name in variable.options.techniques]
    plans = [Plan()]
    for technique in dict.fromkeys(offered):
        plans.append(_to_budget(study, prepared, (technique,)))
    if sum(technique in offered for technique in _UNITS) > 1:
        plans.append(_to_budget(study, prepared, _UNITS))
    return list(dict.fromkeys(plans))


def _to_budget(study: Study, prepared: Prepared, techniques: tuple[str, ...], steps: int = 6) -> Plan:
    """The least uniform ratio of `techniques` that keeps the budget, by bisection; the highest where none does."""

    timed = any(limit.quantity in NEED_A_RUN for limit in study.budget.limits)

    def violation(ratio: float) -> float:
        pruned = prepared.pruned(uniform(prepared.variables, techniques, ratio))
        score = prepared.costs.score(pruned)
        if timed:
            score = prepared.costs.latency(pruned, score)
        return max(study.budget.violations(score, prepared.dense, study.task.metric.goal).values(), default=0.0)

    low, high = 0.0, max(variable.options.ratio[1] for variable in prepared.variables)
    if violation(high) <= 0:
        for _ in range(steps):
            middle = (low + high) / 2
            if violation(middle) <= _MARGIN - 1:
                high = middle
            else:
                low = middle
    return uniform(prepared.variables, techniques, high)
