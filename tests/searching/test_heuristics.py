"""The first plans: a knapsack spares what is sensitive, a ranking of all units fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from small_screening import scaling
from small_search import quick

from autoprune.plan import Choice
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.proposing.heuristics import ranked_globally
from autoprune.searching.proposing.sensitivity import Sensitivity, knapsack
from autoprune.training.loop import Quality

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

__all__ = ["quick"]  # a fixture that every test here uses


def test_a_knapsack_spares_what_is_sensitive(prepared: Prepared, tmp_path: Path) -> None:
    found = scaling(prepared, tmp_path, flops="60%")
    dense = Quality(0.9, 0.1)

    def row(variable: str, ratio: float, loss: float) -> Sensitivity:
        return Sensitivity(variable, "structured", ratio, loss, 0.5, None)

    def solved(hurts: str, not_hurts: str) -> Mapping[str, Choice]:
        table = [row(hurts, ratio, 0.1 + 5 * ratio) for ratio in (0.25, 0.5, 0.75)]
        table += [row(not_hurts, ratio, 0.1 + 0.01 * ratio) for ratio in (0.25, 0.5, 0.75)]
        plan = knapsack(prepared.variables, table, dense, found, 1.0)
        assert found.fits(plan)
        return plan.choices

    for hurts, not_hurts in (("0:units", "3:units"), ("3:units", "0:units")):
        chosen = solved(hurts, not_hurts)
        spared = chosen[hurts].ratio if hurts in chosen else 0.0
        assert spared < chosen[not_hurts].ratio


def test_a_global_ranking_fits_and_cuts_the_least_important(
    prepared: Prepared, tmp_path: Path
) -> None:
    found = scaling(prepared, tmp_path, flops="60%")
    loose, tight = (ranked_globally(prepared, found, share) for share in (1.0, 0.6))
    assert found.fits(loose) and found.fits(tight, 0.6)
    for key, choice in loose:
        assert tight.choices[key].ratio >= choice.ratio
