"""Exchange moves: width given to one group and taken from another, at equal predicted cost, around
the best plans."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from autoprune.decision import Decision, Decisions
from autoprune.space import Variable

__all__ = ["Fits", "exchange", "fill", "narrow"]

# Where so many neighbours in a row do not fit, the parents are in a corner of the space
_TRIES = 30
# Of width, that a group is given at once: one step most of the time, a larger one out of a local
# optimum
_STEPS = (1, 1, 2, 4)
# How often something else than a width is changed: widths are what most of the budget is spent by
_OTHERWISE = 0.2
# The step of what has no width: a share of single weights has no least step of its own
_SHARE = 0.08


Fits = Callable[[Decisions], bool]


def exchange(parents: Sequence[Decisions], fits: Fits, seed: str) -> Decisions | None:
    """A neighbour of one of `parents` (best first) that `fits`, or None where none is; the same for
    one `seed`.

    One group is widened; if the plan then no longer fits, another is narrowed until it does. Now
    and then a criterion or a technique is changed instead.
    """
    draw = random.Random(seed)
    for _ in range(_TRIES):
        parent = parents[min(draw.randrange(len(parents)), draw.randrange(len(parents)))]
        if draw.random() < _OTHERWISE and (neighbour := _change_choice(parent, draw)) is not None:
            neighbour = neighbour if fits(neighbour) else _pay_for(neighbour, fits, draw, None)
        else:
            neighbour = _widen(parent, fits, draw)
        if neighbour is not None:
            return neighbour
    return None


def narrow(sample: Decisions, fits: Fits, seed: str) -> Decisions:
    """The sample with one group after another, drawn at random, narrowed until it fits; all, where
    it never does."""
    draw = random.Random(seed)
    for name in draw.sample([*sample], len(sample)):
        if fits(sample):
            break
        least = sample.evolve(_move_ratio(sample[name], 1.0))
        sample = (_narrow_until(sample, name, fits) if fits(least) else None) or least
    return sample


def fill(sample: Decisions, fits: Fits, seed: str) -> Decisions:
    """A sample that fits, with units given back a step each in turn, in an order drawn at random,
    while it fits."""
    units = [name for name, one in sample.items() if one.variable.groups[0].level == "units"]
    wide = random.Random(seed).sample(units, len(units))
    while wide:
        for name in tuple(wide):
            step = _least(sample[name].variable)
            wider = sample.evolve(_move_ratio(sample[name], -step))
            if wider[name].removed < sample[name].removed and fits(wider):
                sample = wider
            else:
                wide.remove(name)
    return sample


def _widen(parent: Decisions, fits: Fits, draw: random.Random) -> Decisions | None:
    cut = [
        decision
        for decision in parent.values()
        if decision.removed > decision.variable.options.ratio[0]
    ]
    if not cut:
        return None
    wider = draw.choice(cut)
    steps = draw.choice(_STEPS)
    neighbour = parent.evolve(_move_ratio(wider, -_step(wider.variable) * steps))
    return neighbour if fits(neighbour) else _pay_for(neighbour, fits, draw, wider.variable.name)


def _pay_for(
    sample: Decisions, fits: Fits, draw: random.Random, spared: str | None
) -> Decisions | None:
    """The sample with one group, not the one that is spared, narrowed until it fits."""
    payer = draw.choice([name for name in sample if name != spared] or [None])
    return None if payer is None else _narrow_until(sample, payer, fits)


def _narrow_until(sample: Decisions, name: str, fits: Fits) -> Decisions | None:
    variable = sample[name].variable
    while sample[name].removed < variable.options.ratio[1] - 1e-9:
        sample = sample.evolve(_move_ratio(sample[name], _step(variable)))
        if fits(sample):
            return sample
    return None


def _change_choice(parent: Decisions, draw: random.Random) -> Decisions | None:
    """Another criterion or technique somewhere, at the same ratio."""
    places: list[list[Decision]] = []
    for decision in parent.values():
        if decision.acts:
            options = decision.variable.options
            by_criterion = [replace(decision, criterion=name) for name in options.criteria]
            by_technique = [replace(decision, technique=name) for name in options.techniques]
            places += [
                [other for other in others if other != decision]
                for others in (by_criterion, by_technique)
            ]
    places = [others for others in places if others]
    if not places:
        return None
    return parent.evolve(draw.choice(draw.choice(places)))


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


def _move_ratio(decision: Decision, by: float) -> Decision:
    """The decision with a higher or a lower ratio; what begins to be cut is so by its first
    technique."""
    wanted = decision.at(decision.removed + by)
    if not wanted.acts and wanted.ratio > 0:
        return wanted.at(wanted.ratio, wanted.variable.options.techniques[0])
    return wanted
