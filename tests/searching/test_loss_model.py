"""The regression on untrained losses ranks plans that were never judged."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest
from scipy.stats import spearmanr
from small_screening import drawn, late_groups_matter, scaling, screening, session, wider
from small_search import quick

from autoprune.decision import Decisions
from autoprune.plan import Plan
from autoprune.score import Candidate
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.proposing.loss_model import Surrogate
from autoprune.searching.proposing.screening import Screening

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

__all__ = ["quick"]  # a fixture that every test here uses


def test_what_is_foreseen_of_quality_ranks_plans_that_were_never_judged(prepared: Prepared) -> None:
    draw, surrogate, order = random.Random(0), Surrogate(prepared.variables), list(range(30))
    unseen = [drawn(prepared, draw) for _ in order]
    assert surrogate.order(unseen) == order and not surrogate.ready  # nothing is known yet
    for _ in range(60):
        plan = drawn(prepared, draw)
        surrogate.observe(plan, late_groups_matter(plan))
    surrogate.observe(Plan(), math.inf)
    found = surrogate.order(unseen)
    assert sorted(found) == order and surrogate.ready
    assert spearmanr(order, [late_groups_matter(unseen[place]) for place in found]).statistic > 0.9


@pytest.mark.slow
def test_the_neighbour_that_is_judged_is_the_most_promising_of_many(
    prepared: Prepared, tmp_path: Path
) -> None:
    asked = screening({"flops": "55%"}, trials=50)
    loops = Screening(session(asked, prepared, tmp_path), bool)
    steered, draw = scaling(prepared, tmp_path), random.Random(1)
    loops.__dict__["scaling"] = steered
    given = [
        steered.fit_to_budget(Decisions.of_plan(prepared.variables, drawn(prepared, draw)))
        for _ in range(25)
    ]
    candidates = []
    for number, net in enumerate(given):
        plan = net.plan
        assert prepared.dense.flops is not None
        flops = round(0.55 * prepared.dense.flops * (1 + steered.violation(plan)))
        score = prepared.dense.evolve(loss=late_groups_matter(plan), flops=flops)
        candidates.append(Candidate(number, plan, score, False, "screened"))

    def tight(sample: Decisions) -> bool:
        """Whether the budget is spent: no group can be given a step of width back."""
        units = [one for one in sample.values() if one.variable.groups[0].level == "units"]
        cut = [one for one in units if one.acts and wider(one).ratio < one.ratio]
        return not any(steered.fits(sample.evolve(wider(one)).plan) for one in cut)

    def neighbours() -> list[float]:
        found = [loops.neighbour(candidates, given.__getitem__, str(each)) for each in range(10)]
        plans = [each.plan for each in found if each is not None]
        assert len(plans) == 10 and all(steered.fits(plan) for plan in plans)
        # others would come to nets judged before
        assert sum(tight(each) for each in found if each is not None) >= 8
        return [late_groups_matter(plan) for plan in plans]

    any_one = neighbours()
    loops.learn(candidates)
    promising = neighbours()
    assert statistics.median(promising) < statistics.median(any_one)
