"""Sensitivity: what each decision costs in quality when it alone is taken, and what it saves;
computed once a study.

The map of FastNAS (ModelOpt), but judged after a repair, without which wide cuts all look alike,
and by the loss. Solved for a budget as a knapsack, it proposes a plan (Shen et al. 2022,
arXiv:2110.10811).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from autoprune.decision import Decision, Decisions
from autoprune.errors import TrainingError
from autoprune.plan import Plan
from autoprune.searching.failures import Failures
from autoprune.searching.proposing.budget_scaling import BudgetScaling
from autoprune.searching.session import Session
from autoprune.space import NONE, Variable
from autoprune.training.loop import Quality

__all__ = ["RATIOS", "Sensitivity", "knapsack", "sensitivities"]

# Three points of a curve that begins at 0; it is taken as straight between and beyond them
RATIOS = (0.25, 0.5, 0.75)
_VERSION = 2  # of what is kept
_LEVELS = 9  # of ratio that a knapsack chooses from, from 0 to the highest
# Of what is spent of the budget, in losses: cost decides nothing at the one end, alone at the
# other; bisected on a logarithmic scale
_STEPS, _PRICES = 30, (1e-6, 1e6)


@dataclass(frozen=True)
class Sensitivity:
    """One decision taken alone: the share `ratio` of a variable's groups removed by `technique`.

    `loss` and `metric` are those of the repaired model, `latency` the ratio to dense that is
    predicted; None where the budget says nothing of latency.
    """

    variable: str
    technique: str
    ratio: float
    loss: float
    metric: float
    latency: float | None


def sensitivities(
    session: Session,
    scaling: BudgetScaling,
    *,
    ratios: Sequence[float] = RATIOS,
    late: Callable[[], bool] = lambda: False,
) -> list[Sensitivity]:
    """Every technique of every variable at some ratios, by its first criterion; kept in the run,
    none is judged twice.

    Ratios are moved into each variable's range; a block has one, 1. None where it is `late()`
    before all are judged; what breaks the model's outputs down has no row, nor what raises anything
    else, which the listener is told.
    """
    rows: list[Sensitivity] = []
    run, listener, failures = session.run, session.listener, Failures(session.run)
    alone = [
        (variable, technique)
        for variable in session.prepared.variables
        for technique in variable.options.techniques
    ]
    for place, (variable, technique) in enumerate(alone):
        low, high = variable.options.ratio
        asked = (
            [1.0]
            if variable.whole
            else dict.fromkeys(min(max(ratio, low), high) for ratio in ratios)
        )
        plans = {
            Plan(variable.choices(technique, ratio, variable.options.criteria[0])): ratio
            for ratio in asked
        }
        for plan, ratio in plans.items():
            kept = run.recall("sensitivity", key := f"{_VERSION}-{session.cache_key}-{plan.digest}")
            if kept is None:
                if late():
                    return []
                try:
                    kept = asdict(session.evaluator.judge_untrained(plan))
                except TrainingError:  # outputs that have broken down say enough
                    continue
                except BaseException as error:
                    reason = failures.add(error, run.folder)
                    listener.note(
                        f"{variable.name} by {technique} alone cannot be evaluated: {reason}"
                    )
                    failures.check()
                    continue
                failures.clear()
                run.cache("sensitivity", key, kept)
            quality, latency = Quality(**kept), scaling.latency(plan)
            rows.append(
                Sensitivity(variable.name, technique, ratio, quality.loss, quality.metric, latency)
            )
        listener.progress((place + 1) / len(alone))
    return rows


def knapsack(
    variables: Sequence[Variable],
    rows: Sequence[Sensitivity],
    dense: Quality,
    scaling: BudgetScaling,
    share: float,
) -> Plan:
    """The plan that loses least, if losses add up, among those that fit: each variable at the ratio
    that pays.

    A price is put on what the budget is spent on, and bisected until the plan as a whole fits.
    """
    by_name = {variable.name: variable for variable in variables}
    start = Decisions.of_plan(variables, Plan())
    before = scaling.violation(Plan())
    options: dict[str, list[tuple[Decision, float, float]]] = {}
    for (name, technique), losses in _curves(rows, dense).items():
        variable = by_name[name]
        for level in range(0, _LEVELS, _LEVELS - 1 if variable.whole else 1):
            ratio = variable.options.ratio[1] * level / (_LEVELS - 1)
            whole = ratio < max(variable.options.ratio[0], 1e-9)
            chosen = start[name].at(ratio, NONE if whole else technique)
            saved = before - scaling.violation(start.evolve(chosen).plan)
            options.setdefault(name, []).append((chosen, _between(losses, ratio), saved))

    def at(price: float) -> Plan:
        def cost(option: tuple[Decision, float, float]) -> float:
            return option[1] - price * option[2]

        return start.evolve(*(min(offered, key=cost)[0] for offered in options.values())).plan

    low, high = _PRICES
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if scaling.fits(at(middle), share) else (middle, high)
    return at(high)


def _curves(
    rows: Sequence[Sensitivity], dense: Quality
) -> Mapping[tuple[str, str], list[tuple[float, float]]]:
    """(ratio, loss added) by variable and technique, rising."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in sorted(rows, key=lambda row: row.ratio):
        curve = curves.setdefault((row.variable, row.technique), [(0.0, 0.0)])
        curve.append((row.ratio, max(curve[-1][1], row.loss - dense.loss)))
    return curves


def _between(curve: Sequence[tuple[float, float]], ratio: float) -> float:
    """On the line through the points; beyond the last, on that through the last two."""
    for (a, low), (b, high) in itertools.pairwise(curve):
        if ratio <= b or (b, high) == curve[-1]:
            return low + (high - low) * (ratio - a) / (b - a) if b > a else high
    return curve[-1][1]
