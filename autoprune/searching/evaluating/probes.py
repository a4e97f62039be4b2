"""Probes: a technique that, measured, moves no figure that the study limits or optimises leaves the
space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from autoprune.plan import Plan
from autoprune.score import Score, direction
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.failures import ends_the_search, reason_of
from autoprune.space import highest_ratio, uniform
from autoprune.study import Study

__all__ = ["Probe", "probe_techniques"]

# Of dense, at least, at the highest ratio everywhere: less is the noise of a shared machine
_MOVED = 0.02


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


def probe_techniques(
    study: Study, prepared: Prepared, listener: Listener
) -> tuple[Prepared, list[Probe]]:
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
    alone = _measure(prepared, plans, highest, listener)
    moves = {
        name: _moves(score, prepared.dense, list(wanted), study) for name, score in alone.items()
    }
    idle = {name for name, moved in moves.items() if not any(gain for gain, _ in moved.values())}
    kept = [
        variable for variable in prepared.variables if not set(variable.options.techniques) <= idle
    ]
    kept = kept or prepared.variables
    searched = {name for variable in kept for name in variable.options.techniques}

    def verdict(name: str) -> str:
        figures = ", ".join(f"{quantity} {text}" for quantity, (_, text) in moves[name].items())
        where = f"on {study.target.name} at a ratio of {highest[name]:g} everywhere ({figures})"
        if name not in idle:
            return f"{name}: a gain {where}"
        if name not in searched:
            return f"{name}: no gain {where}, so it is not searched"
        alone_left = searched <= idle
        only = "where nothing else would be left" if alone_left else "beside others of its groups"
        return f"{name}: no gain {where}, searched {only}"

    probes = [
        Probe(name, plans[name], alone[name], verdict(name), name not in searched) for name in alone
    ]
    return replace(prepared, variables=kept), probes


def _measure(
    prepared: Prepared,
    plans: Mapping[str, Plan],
    highest: Mapping[str, float],
    listener: Listener,
) -> dict[str, Score]:
    """What the plan of each technique costs. One that cannot be measured says something of an
    extreme plan alone: it has no figures, and the technique stays."""
    alone: dict[str, Score] = {}
    for name, plan in plans.items():
        try:
            alone[name] = prepared.cost(plan)
        except Exception as error:
            if ends_the_search(error):
                raise
            listener.note(
                f"{name} cannot be measured alone at a ratio of {highest[name]:g}: "
                f"{reason_of(error)}"
            )
    return alone


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
