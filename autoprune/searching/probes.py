"""Probes: a technique that, measured, moves no figure that the study limits or optimises leaves the space."""

from __future__ import annotations

from dataclasses import replace

from autoprune.score import Score, direction
from autoprune.searching.failures import ends_the_search, reason_of
from autoprune.searching.listener import Listener
from autoprune.searching.preparation import Prepared
from autoprune.space import highest_ratio, uniform
from autoprune.study import Study

__all__ = ["useful"]

_MOVED = 0.02  # of dense, at least: less is noise


def useful(study: Study, prepared: Prepared, listener: Listener) -> tuple[Prepared, list[str]]:
    """`prepared` without the decisions that change nothing, and a line for each technique that is of no use.

    Each technique is measured alone, everywhere at its highest ratio. A decision goes where all its techniques are of
    no use; where only one is left at all, everything stays.
    """
    offered = dict.fromkeys(name for variable in prepared.variables for name in variable.options.techniques)
    highest = {name: highest_ratio(prepared.variables, (name,)) for name in offered}
    wanted = dict.fromkeys(
        [limit.quantity for limit in study.budget.limits if limit.quantity != "metric_drop" and not limit.target]
        + [name for name in study.search.objectives if name not in ("metric", "loss")]
    )
    if not wanted or any(limit.target for limit in study.budget.limits):
        return prepared, []
    listener.started(0, f"measuring each technique alone on {study.target.name}")
    alone: dict[str, Score] = {}
    for name in offered:
        try:
            alone[name] = prepared.cost(uniform(prepared.variables, (name,), highest[name]))
        except Exception as error:  # says something of one extreme plan alone: the technique stays
            if ends_the_search(error):
                raise
            listener.note(f"{name} cannot be measured alone at a ratio of {highest[name]:g}: {reason_of(error)}")
    shown = {name: _moves(score, prepared.dense, list(wanted), study) for name, score in alone.items()}
    idle = [name for name, moved in shown.items() if not any(change for change, _ in moved.values())]
    kept = [each for each in prepared.variables if not set(each.options.techniques) <= set(idle)]
    if not idle or not kept:
        return prepared, []
    notes = [
        f"{name}: no gain on {study.target.name} at a ratio of {highest[name]:g} everywhere "
        f"({', '.join(f'{quantity} {text}' for quantity, (_, text) in shown[name].items())}), so it is not searched"
        for name in idle
        if not any(name in each.options.techniques for each in kept)
    ]
    return replace(prepared, variables=kept), notes


def _moves(score: Score, dense: Score, wanted: list[str], study: Study) -> dict[str, tuple[bool, str]]:
    """Whether each quantity is better than dense by more than noise, and its share of dense."""
    found = {}
    for name in wanted:
        value, of = score.objective(name), 1.0 if name in ("latency", "throughput") else dense.objective(name)
        share = value / of if of else 1.0
        better = share > 1 + _MOVED if direction(name, study.task.metric.goal) == "maximize" else share < 1 - _MOVED
        found[name] = (better, f"{share:.1%} of dense")
    return found
