"""Residual blocks in a search: each is a decision of its own, taken or not, beside the widths."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_search import TASK, Listens, quick, quicker, study
from torch import Tensor, nn

from autoprune.decision import Decisions
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.verify import discover
from autoprune.run import Run
from autoprune.searching.callback import Quiet
from autoprune.searching.evaluating.costs import Costs
from autoprune.searching.evaluating.evaluator import Evaluator
from autoprune.searching.evaluating.preparation import Prepared, prepare
from autoprune.searching.proposing.budget_scaling import BudgetScaling
from autoprune.searching.proposing.heuristics import by_importance, proposals, shallower
from autoprune.searching.proposing.local_search import exchange, narrow
from autoprune.searching.proposing.loss_model import Surrogate
from autoprune.searching.proposing.screening import Screening
from autoprune.searching.proposing.sensitivity import knapsack, sensitivities
from autoprune.searching.search import search as run_search
from autoprune.searching.session import Session
from autoprune.space import Options, Space
from autoprune.study import Study
from autoprune.task import Inputs
from autoprune.training.loop import Quality, evaluate

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
__all__ = ["quick"]  # a fixture that every test here uses


class Block(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.outer.weight.data.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).relu())


def build() -> nn.Module:
    """Four blocks, the second the weakest, then the last, the first, the third."""
    blocks = (Block(scale) for scale in (0.5, 0.1, 1.0, 0.2))
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


BLOCKS = ["2:blocks", "3:blocks", "4:blocks", "5:blocks"]
WEAKEST = ["3:blocks", "5:blocks", "2:blocks", "4:blocks"]


def deep(budget: Mapping[str, Any] | None = None, **settings: Any) -> Study:
    given = study(dict(budget or {"flops": "55%"}), **{"trials": 40, "finalists": 1, **settings})
    space = Space(
        Options(("structured", "depth"), (0.0, 0.9), ("l1",)), {"8": Options((), (0.0, 0.9), ())}
    )
    return replace(given, task=replace(TASK, build=build), space=space)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    with pytest.MonkeyPatch.context() as patch:
        quicker(patch)
        return prepare(deep())


def evaluator(given: Study, prepared: Prepared) -> Evaluator:
    return Evaluator(
        given,
        prepared,
        prepared.dense,
        prepared.pruner(given),
        Quiet(),
    )


def scaling(prepared: Prepared, folder: Path, **budget: str) -> BudgetScaling:
    return BudgetScaling.of(Session(Run(folder), evaluator(deep(budget), prepared)))


def gone(plan: Plan) -> set[str]:
    return {key for key, _ in plan if key.endswith(":blocks")}


def widths(plan: Plan) -> set[str]:
    return {key for key, _ in plan if key.endswith(":units")}


def test_the_weakest_blocks_go_first(prepared: Prepared, tmp_path: Path) -> None:
    found = scaling(prepared, tmp_path, flops="60%")
    assert [each.name for each in by_importance(prepared.variables, found)] == WEAKEST
    alone = next(plan for plan in proposals(prepared, found) if gone(plan))
    assert not widths(alone) and found.fits(alone)
    count = len(gone(alone))
    assert gone(alone) == set(WEAKEST[:count]) and 1 <= count < 4
    fewer = Plan({key: Choice("depth", 1.0) for key in WEAKEST[: count - 1]})
    assert not found.fits(fewer)  # no more of them than the budget asks


def test_some_blocks_go_beside_even_widths(prepared: Prepared, tmp_path: Path) -> None:
    found = scaling(prepared, tmp_path, flops="40%")
    order = by_importance(prepared.variables, found)
    plans = [solve(1.0) for solve in shallower(prepared.variables, found, order)]
    assert [gone(plan) for plan in plans] == [set(WEAKEST[:count]) for count in (1, 2, 3)]
    assert all(found.fits(plan) for plan in plans)
    assert shallower(prepared.variables, found, []) == []


def with_blocks_at(prepared: Prepared, ratio: float) -> Decisions:
    whole = Decisions.of_plan(prepared.variables, Plan())
    return whole.evolve(*(whole[key].at(ratio, "depth") for key in BLOCKS))


def test_scaling_leaves_blocks_as_they_are_unless_there_is_nothing_else(
    prepared: Prepared, tmp_path: Path
) -> None:
    found = scaling(prepared, tmp_path, flops="50%")
    plan = Plan({"2:blocks": Choice("depth", 1.0), "0:units": Choice("structured", 0.1)})
    scaled = found.fit_to_budget(Decisions.of_plan(prepared.variables, plan))
    assert scaled["2:blocks"].ratio == 1.0 and scaled["0:units"].ratio != 0.1
    alone = found.fit_to_budget(with_blocks_at(prepared, 0.2)).plan
    assert gone(alone) == set(BLOCKS) and not widths(alone)


def test_a_block_is_exchanged_whole(prepared: Prepared, tmp_path: Path) -> None:
    found = scaling(prepared, tmp_path, flops="60%")

    def fits(sample: Decisions) -> bool:
        return found.fits(sample.plan)

    start = Decisions.of_plan(prepared.variables, Plan())
    blocks = Decisions([one for one in start.values() if one.variable.whole])
    parent = start.evolve(*narrow(blocks, fits, "0").values())
    taken = gone(parent.plan)
    assert fits(parent) and 1 <= len(taken) < 4
    children = [exchange([parent], fits, str(draw)) for draw in range(40)]
    plans = [child.plan for child in children if child is not None]
    assert len(plans) > 30 and all(found.fits(plan) for plan in plans)
    # one for another
    assert any(len(gone(plan)) == len(taken) and gone(plan) != taken for plan in plans)
    # one for some widths
    assert any(len(gone(plan)) < len(taken) and widths(plan) for plan in plans)
    # there is nothing to give back
    assert exchange([with_blocks_at(prepared, 0.3)], lambda sample: True, "0") is None


def test_a_knapsack_takes_the_block_that_costs_least(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scaling(prepared, tmp_path, flops="80%")
    cheap, seen = "4:blocks", list[Plan]()

    def judge(_: Evaluator, plan: Plan) -> Quality:
        seen.append(plan)
        return Quality(0.9, 0.0 if not plan else 0.01 if set(plan.choices) == {cheap} else 1.0)

    monkeypatch.setattr(Evaluator, "judge_untrained", judge)
    own = Session(Run(tmp_path), evaluator(deep(), prepared))
    rows = sensitivities(own, found)
    of_blocks = [row for row in rows if row.variable in BLOCKS]
    assert [(row.variable, row.ratio) for row in of_blocks] == [(key, 1.0) for key in BLOCKS]
    # each judged once
    assert sum(len(plan) == 1 and gone(plan) != set() for plan in seen) == len(BLOCKS)
    solved = knapsack(prepared.variables, rows, Quality(0.9, 0.0), found, 1.0)
    assert cheap in gone(solved) and found.fits(solved)


def test_what_a_block_costs_is_foreseen(prepared: Prepared) -> None:
    surrogate = Surrogate(prepared.variables)
    losses = dict(zip(BLOCKS, (0.5, 0.1, 2.0, 0.2), strict=True))
    subsets = [
        [key for place, key in enumerate(BLOCKS) if number >> place & 1] for number in range(16)
    ]
    for width in (0.2, 0.4):
        for taken in subsets:
            choices = {key: Choice("depth", 1.0) for key in taken} | {
                "0:units": Choice("structured", width)
            }
            surrogate.observe(Plan(choices), sum(losses[key] for key in taken) + width)
    singles = [
        Plan({key: Choice("depth", 1.0), "0:units": Choice("structured", 0.3)}) for key in BLOCKS
    ]
    assert [BLOCKS[place] for place in surrogate.order(singles)] == WEAKEST


def test_of_a_stage_what_its_blocks_that_stay_lose_is_seen() -> None:
    stage = nn.Sequential(*(Block(1.0) for _ in range(3)))
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    groups = discover(model, Inputs.of(torch.randn(2, 1, 8, 8))).groups
    variables = Space(Options(("structured", "depth"), (0.0, 0.9), ("l1",)), share="stage").resolve(
        groups
    )
    surrogate, first = Surrogate(variables), {"1.0:blocks": Choice("depth", 1.0)}
    kept = [f"1.{place}.inner:units" for place in (1, 2)]
    for number in range(30):
        ratio = 0.1 + 0.02 * number
        surrogate.observe(Plan(first | dict.fromkeys(kept, Choice("structured", ratio))), ratio)
    wide, narrow = (
        Plan(first | dict.fromkeys(kept, Choice("structured", ratio))) for ratio in (0.2, 0.6)
    )
    assert surrogate.order([narrow, wide]) == [1, 0]


def test_what_lies_in_a_block_that_goes_is_not_counted_again(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, counted, count = scaling(prepared, tmp_path, flops="60%"), list[Any](), Costs.score
    monkeypatch.setattr(
        Costs, "score", lambda *given, **how: counted.append(given) or count(*given, **how)
    )
    for ratio in (0.2, 0.4, 0.6, 0.8):
        found.violation(
            Plan({"2:blocks": Choice("depth", 1.0), "2.inner:units": Choice("structured", ratio)})
        )
    assert len(counted) == 1


def test_where_all_blocks_go_and_nothing_else_learns_nothing_is_trained(prepared: Prepared) -> None:
    model = copy.deepcopy(prepared.model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in "2345")
    judged = evaluator(deep({"flops": "100%"}), replace(prepared, model=model))
    plan = Plan(dict.fromkeys(BLOCKS, Choice("depth", 1.0)))
    found = judged(plan, 1)
    assert found.candidate.stage == "trained" and found.candidate.score.metric is not None
    assert found.model is not None and not any(
        name[0] in "2345" for name, _ in found.model.named_parameters()
    )


def test_a_sample_that_keeps_too_much_is_steered_inside(prepared: Prepared, tmp_path: Path) -> None:
    found = Screening(
        Session(Run(tmp_path), evaluator(deep({"flops": "20%"}), prepared)), lambda: False
    )
    sample = Decisions.of_plan(prepared.variables, Plan({"2:blocks": Choice("depth", 1.0)}))
    nets = [found.scale_sample(str(draw))(sample) for draw in range(5)]
    assert all(found.scaling.fits(net.plan) for net in nets)
    assert all(net["2:blocks"].ratio == 1.0 for net in nets) and nets[0] != nets[1]


def test_how_confident_a_model_is_does_not_count_untrained(prepared: Prepared) -> None:
    given, confident = deep(), copy.deepcopy(prepared.model)
    confident[8].weight.data.mul_(100)
    judged = evaluator(given, replace(prepared, model=confident)).judge_untrained(Plan())
    assert judged.loss < 0.7 * evaluate(confident, given.task, "validation", "cpu").loss


@pytest.mark.slow
def test_blocks_go_in_a_search_of_their_own(tmp_path: Path) -> None:
    listener = Listens()
    result = run_search(deep({"flops": "35%"}, trials=25), Run(tmp_path), listener)
    assert result.best is not None and (result.best.score.flops or 0) <= 0.35 * (
        result.dense.flops or 1
    )
    judged = [each.plan for each in listener.ended if each.stage == "screened"]
    assert len({frozenset(gone(plan)) for plan in judged}) >= 4 and any(
        gone(plan) and widths(plan) for plan in judged
    )
