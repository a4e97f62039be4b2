"""Probes: a technique that, measured, moves no figure that the study limits or optimises leaves the
space."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autoprune.plan import Plan
from autoprune.score import Score, direction
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.failures import ends_the_search, reason_of
from autoprune.space import highest_ratio, uniform
from autoprune.study import Study

__all__ = ["Probe", "useful"]

_MOVED = 0.02  # of dense, at least: less is noise


@dataclass(frozen=True)
class Probe:
    """A technique measured alone, everywhere at its highest ratio; `verdict` says what came of it,
    `left` whether it left the space.
    """

    technique: str
    plan: Plan
    score: Score
    verdict: str
    left: bool


def useful(study: Study, prepared: Prepared, listener: Listener) -> tuple[Prepared, list[Probe]]:
    """`prepared` without the decisions that change nothing, and the probe of each technique that is
    offered.

    A decision goes where all its techniques are of no use; where none would be left at all,
    everything stays.
    """
    offered = dict.fromkeys(
        name for variable in prepared.variables for name in variable.options.techniques
    )
    wanted = dict.fromkeys(
        [
            limit.quantity
            for limit in study.budget.limits
            if limit.quantity != "metric_drop" and not limit.target
        ]
        + [name for name in study.search.objectives if name not in ("metric", "loss")]
    )
    if not wanted or any(limit.target for limit in study.budget.limits):
        return prepared, []
    listener.on_step(0, f"measuring each technique alone on {study.target.name}")
    highest = {name: highest_ratio(prepared.variables, (name,)) for name in offered}
    plans = {name: uniform(prepared.variables, (name,), highest[name]) for name in offered}
    alone: dict[str, Score] = {}
    for name, plan in plans.items():
        try:
            alone[name] = prepared.cost(plan)
        except Exception as error:  # says something of one extreme plan alone: the technique stays
            if ends_the_search(error):
                raise
            listener.note(
                f"{name} cannot be measured alone at a ratio of {highest[name]:g}: "
                f"{reason_of(error)}"
            )
    shown = {
        name: _moves(score, prepared.dense, list(wanted), study) for name, score in alone.items()
    }
    idle = {
        name for name, moved in shown.items() if not any(change for change, _ in moved.values())
    }
    kept = [
        variable for variable in prepared.variables if not set(variable.options.techniques) <= idle
    ]
    kept = kept or prepared.variables
    searched = {name for variable in kept for name in variable.options.techniques}

    def verdict(name: str) -> str:
        figures = ", ".join(f"{quantity} {text}" for quantity, (_, text) in shown[name].items())
        where = f"on {study.target.name} at a ratio of {highest[name]:g} everywhere ({figures})"
        if name not in idle:
            return f"{name}: a gain {where}"
        only = (
            "where nothing else would be left"
            if searched <= idle
            else "beside others of its groups"
        )
        return f"{name}: no gain {where}, " + (
            f"searched {only}" if name in searched else "so it is not searched"
        )

    probes = [
        Probe(name, plans[name], alone[name], verdict(name), name not in searched) for name in alone
    ]
    return replace(prepared, variables=kept), probes


def _moves(
    score: Score, dense: Score, wanted: list[str], study: Study
) -> dict[str, tuple[bool, str]]:
    """Whether each quantity is better than dense by more than noise, and its share of dense."""
    moves = {}
    for name in wanted:
        value, of = (
            score.objective(name),
            1.0 if name in ("latency", "throughput") else dense.objective(name),
        )
        share = value / of if of else 1.0
        better = (
            share > 1 + _MOVED
            if direction(name, study.task.metric.goal) == "maximize"
            else share < 1 - _MOVED
        )
        moves[name] = (better, f"{share:.1%} of dense")
    return moves
