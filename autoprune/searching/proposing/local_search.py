"""Exchange moves: width given to one group and taken from another, at equal predicted cost, around
the best plans."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from autoprune.space import NONE, Parameters, Variable

__all__ = ["exchange", "fill", "narrow"]

_TRIES = 30
_STEPS = (1, 1, 2, 4)  # of width, that a group is given at once
_OTHERWISE = 0.2  # how often something else than a width is changed
_SHARE = 0.08  # the step of what has no width


def exchange(
    variables: Sequence[Variable],
    parents: Sequence[Parameters],
    fits: Callable[[Parameters], bool],
    seed: str,
) -> dict[str, Any] | None:
    """A neighbour of one of `parents` (best first) that `fits`, or None where none was found; the
    same for one `seed`.

    One group is widened; if the plan then no longer fits, another is narrowed until it does. Now
    and then a criterion or a technique is changed instead.
    """
    draw = random.Random(seed)
    for _ in range(_TRIES):
        parent = parents[min(draw.randrange(len(parents)), draw.randrange(len(parents)))]
        if (
            draw.random() < _OTHERWISE
            and (found := _change_choice(variables, parent, draw)) is not None
        ):
            found = found if fits(found) else _pay_for(variables, found, fits, draw, None)
        else:
            found = _widen(variables, parent, fits, draw)
        if found is not None:
            return found
    return None


def narrow(
    variables: Sequence[Variable],
    parameters: Parameters,
    fits: Callable[[Parameters], bool],
    seed: str,
) -> dict[str, Any]:
    """`parameters` with one group after another, drawn at random, narrowed until they fit; all,
    where they never do."""
    draw, found = random.Random(seed), dict(parameters)
    for variable in draw.sample(variables, len(variables)):
        if fits(found):
            break
        least = _move_ratio(variable, found, 1.0)
        found = (_pay_for([variable], found, fits, draw, None) if fits(least) else None) or least
    return found


def fill(
    variables: Sequence[Variable],
    parameters: Parameters,
    fits: Callable[[Parameters], bool],
    seed: str,
) -> dict[str, Any]:
    """`parameters` that fit, with units given back a step each in turn, in an order drawn at
    random, while they fit."""
    found = dict(parameters)
    given = [variable for variable in variables if variable.groups[0].level == "units"]
    wide = random.Random(seed).sample(given, len(given))
    while wide:
        for variable in tuple(wide):
            wider = _move_ratio(variable, found, -_least(variable))
            if _ratio(variable, wider) < _ratio(variable, found) and fits(wider):
                found = wider
            else:
                wide.remove(variable)
    return found


def _widen(
    variables: Sequence[Variable],
    parent: Parameters,
    fits: Callable[[Parameters], bool],
    draw: random.Random,
) -> dict[str, Any] | None:
    cut = [
        variable for variable in variables if _ratio(variable, parent) > variable.options.ratio[0]
    ]
    if not cut:
        return None
    wider = draw.choice(cut)
    found = _move_ratio(wider, parent, -_step(wider) * draw.choice(_STEPS))
    return found if fits(found) else _pay_for(variables, found, fits, draw, wider)


def _pay_for(
    variables: Sequence[Variable],
    given: Parameters,
    fits: Callable[[Parameters], bool],
    draw: random.Random,
    spared: Variable | None,
) -> dict[str, Any] | None:
    """`given` with one group narrowed until it fits."""
    payer = draw.choice([variable for variable in variables if variable is not spared] or [None])
    if payer is None:
        return None
    found = dict(given)
    while _ratio(payer, found) < payer.options.ratio[1] - 1e-9:
        found = _move_ratio(payer, found, _step(payer))
        if fits(found):
            return found
    return None


def _change_choice(
    variables: Sequence[Variable], parent: Parameters, draw: random.Random
) -> dict[str, Any] | None:
    """Another criterion or technique somewhere, at the same ratio."""
    places = [
        (
            f"{variable.name}.{key}",
            [other for other in offered if other != parent[f"{variable.name}.{key}"]],
        )
        for variable in variables
        for key, offered in (
            ("criterion", variable.options.criteria),
            ("technique", variable.options.techniques),
        )
        if parent[f"{variable.name}.technique"] != NONE
    ]
    places = [(name, others) for name, others in places if others]
    if not places:
        return None
    name, others = draw.choice(places)
    return {**parent, name: draw.choice(others)}


def _ratio(variable: Variable, parameters: Parameters) -> float:
    removed = parameters[f"{variable.name}.technique"] != NONE
    ratio = float(parameters[f"{variable.name}.ratio"]) if removed else 0.0
    return variable.round_ratio(variable.groups[0], ratio) if variable.whole else ratio


def _step(variable: Variable) -> float:
    """The share of a group that one step of width is; of a wide group no less than a sixteenth."""
    group = variable.groups[0]
    if variable.whole:
        return 1.0
    if group.level != "units":
        return _SHARE
    least = _least(variable)
    return least * max(1, round(1 / 16 / least))


def _least(variable: Variable) -> float:
    """The share of a group of units that the least step of width is."""
    return variable.step / variable.groups[0].size


def _move_ratio(variable: Variable, parameters: Parameters, by: float) -> dict[str, Any]:
    low, high = variable.options.ratio
    ratio = min(max(_ratio(variable, parameters) + by, low), high)
    technique = parameters[f"{variable.name}.technique"]
    if technique == NONE and ratio > 0:
        technique = variable.options.techniques[0]
    return {**parameters, f"{variable.name}.ratio": ratio, f"{variable.name}.technique": technique}
