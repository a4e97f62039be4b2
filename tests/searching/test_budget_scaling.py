"""Scaling to the budget: what is foreseen of a plan's cost, and where a scaled plan lies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_screening import narrowed, scaling, screening, searched, session, untouched
from small_search import Listens, quick, rows

from autoprune.decision import Decisions
from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Choice, Plan
from autoprune.score import Score
from autoprune.searching.evaluating.preparation import Prepared, prepare
from autoprune.searching.proposing.budget_scaling import BudgetScaling
from autoprune.space import NONE, uniform
from autoprune.target import Target

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

__all__ = ["quick"]  # a fixture that every test here uses


@pytest.mark.slow
def test_what_is_planned_under_another_budget_is_what_is_left_under_it(tmp_path: Path) -> None:
    class Planned(Listens):
        trials = 0

        def on_plan(self, seconds: float | None, trials: int) -> None:
            self.trials = trials

    first, again, tighter = Planned(), Planned(), Planned()
    searched(tmp_path, first)
    ended = len(rows(tmp_path))
    searched(tmp_path, again)
    searched(tmp_path, tighter, budget={"flops": "35%"})
    # with probes
    assert (first.trials, again.trials, tighter.trials) == (16, ended + 2, ended + 2 + 12 + 2)


def test_a_counted_limit_on_a_further_target_is_foreseen(
    prepared: Prepared, tmp_path: Path
) -> None:
    given = replace(
        screening({"size on cpu_onnxruntime": "50%"}), further=(Target("cpu_onnxruntime"),)
    )
    ready = prepare(given)
    found = BudgetScaling.of(session(given, ready, tmp_path))
    assert found.violations(Plan()) == {"size on cpu_onnxruntime": pytest.approx(1.0)}
    assert found.violation(uniform(ready.variables, ("structured",), 0.9)) < 0


@pytest.mark.parametrize("share", [1.0, 0.8])
@pytest.mark.parametrize("limit", ["60%", "35%"])
def test_any_plan_is_scaled_to_the_edge_of_the_budget(
    prepared: Prepared, tmp_path: Path, limit: str, share: float
) -> None:
    found = scaling(prepared, tmp_path, flops=limit)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        cut = []
        for decision in untouched(prepared).values():
            offered = "structured" in decision.variable.options.techniques
            ratio = 0.05 + 0.85 * float(torch.rand((), generator=generator))
            cut.append(decision.at(ratio, "structured" if offered else NONE))
        scaled = found.fit_to_budget(Decisions(cut), share)
        score = prepared.costs.score(prepared.cut_by_magnitude(scaled.plan))
        spent = (score.flops or 0) / (prepared.dense.flops or 1) / (float(limit[:-1]) / 100)
        assert share * 0.7 < spent <= share + 1e-9  # widths of 8 and 16 units come in coarse steps


def test_what_cannot_fit_is_cut_as_far_as_the_space_allows(
    prepared: Prepared, tmp_path: Path
) -> None:
    found = scaling(prepared, tmp_path, flops="1%")
    sample = narrowed(prepared, {"0:units": 0.1})
    assert found.fit_to_budget(sample)["0:units"].ratio == pytest.approx(0.9)


def test_latency_is_foreseen_and_corrected(prepared: Prepared, tmp_path: Path) -> None:
    found = scaling(prepared, tmp_path, latency="60%")
    plan = Plan({"0:units": Choice("structured", 0.5), "3:units": Choice("structured", 0.5)})
    before = found.latency(plan)
    assert before is not None and 0 < before < 1.5
    for _ in range(6):
        found.observe(
            plan,
            Score(latency=LatencyFigures(ms=1.0, ratio=0.2, ratio_low=0.199, ratio_high=0.201)),
        )
    after = found.latency(plan)
    assert after is not None and abs(after - 0.2) < abs(before - 0.2)
    kept = scaling(prepared, tmp_path, latency="60%")
    # the profile is kept, and nothing measured again
    assert kept.latency(plan) == pytest.approx(before)
