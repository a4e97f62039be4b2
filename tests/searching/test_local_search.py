"""Exchange moves, narrowing and filling up: every neighbour fits, and spends the budget."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_screening import narrowed, scaling, wider
from small_search import quick

from autoprune.decision import Decision, Decisions
from autoprune.group import Group
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.proposing.local_search import exchange, fill, narrow
from autoprune.space import Options, Space

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

__all__ = ["quick"]  # a fixture that every test here uses


def test_few_units_are_given_back_one_by_one() -> None:
    group = Group("a", "units", ("a",), ("conv",), (12,))
    few = Space(Options(("structured",), (0.0, 0.9), ("l1",))).resolve([group], 8)
    assert few[0].step == 1
    start = Decisions([Decision(few[0], "structured", 0.75, "l1")])
    full = fill(start, lambda sample: sample["a:units"].ratio >= 0.3, "0")
    assert full["a:units"].ratio == pytest.approx(4 / 12)


def test_a_sample_that_leaves_too_much_as_it_is_loses_more_until_it_fits(
    prepared: Prepared, tmp_path: Path
) -> None:
    found = scaling(prepared, tmp_path, flops="8%")

    def fits(sample: Decisions) -> bool:
        return found.fits(sample.plan)

    scaled = found.fit_to_budget(narrowed(prepared, {"0:units": 0.1}))
    assert not fits(scaled)
    nets = [narrow(scaled, fits, str(draw)) for draw in range(10)]
    assert all(fits(net) for net in nets) and len({net.plan for net in nets}) > 1
    assert narrow(nets[0], fits, "0") == nets[0]
    least = narrow(scaled, lambda sample: False, "0")
    assert all(one.ratio == one.variable.options.ratio[1] for one in least.values())


def test_what_is_left_of_the_budget_is_given_back_to_units(
    prepared: Prepared, tmp_path: Path
) -> None:
    found = scaling(prepared, tmp_path, flops="50%")
    keys = ("0:units", "3:units")
    start = narrowed(prepared, dict.fromkeys(keys, 0.7))

    def fits(sample: Decisions) -> bool:
        return found.fits(sample.plan)

    nets = [fill(start, fits, str(draw)) for draw in range(4)]
    assert nets[0] == fill(start, fits, "0")
    for net in nets:
        assert fits(net) and all(net[key].ratio < 0.7 for key in keys)
        assert all(net[key].technique == decision.technique for key, decision in start.items())
        assert not any(fits(net.evolve(wider(net[key]))) for key in keys)


def test_an_exchange_gives_width_to_one_group_and_takes_it_from_another(
    prepared: Prepared, tmp_path: Path
) -> None:
    found = scaling(prepared, tmp_path, flops="50%")
    parent = found.fit_to_budget(narrowed(prepared, {"0:units": 0.5, "3:units": 0.5}))

    def fits(sample: Decisions) -> bool:
        return found.fits(sample.plan)

    moves = set()
    for draw in range(30):
        child = exchange([parent], fits, str(draw))
        assert child is not None and fits(child) and child == exchange([parent], fits, str(draw))
        units = [key for key in child if key.endswith(":units")]
        moves.add(tuple(round(child[key].ratio - parent[key].ratio, 3) for key in units))
    assert any(min(move) < 0 < max(move) for move in moves), moves
    assert exchange([parent], lambda sample: False, "0") is None
