"""The search that judges plans without fine-tuning and trains the best, as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_screening import narrowed, scaling, screening, searched, session, wider
from small_search import TASK, Listens, crash_at, figures, quick, rows, study

from autoprune.budget import Budget, Feasibility
from autoprune.decision import Decisions
from autoprune.errors import BudgetError, InputError, TrainingError
from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Choice, Plan
from autoprune.run import Run
from autoprune.score import Candidate, Score
from autoprune.searching.evaluating import recovery as recovering
from autoprune.searching.evaluating.evaluator import Evaluator, decide
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.proposing import budget_scaling as scaling_module
from autoprune.searching.proposing.nets import Nets
from autoprune.searching.proposing.screening import Screening
from autoprune.searching.search import search as run_search
from autoprune.space import Options, Space

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

__all__ = ["quick"]  # a fixture that every test here uses


def test_the_best_of_many_judged_untrained_are_trained(tmp_path: Path) -> None:
    listener = Listens()
    result = searched(tmp_path, listener)
    table = rows(tmp_path)
    stages = [row["stage"] for row in table]
    assert stages[:3] == ["dense", "probe", "probe"] and stages[-2:] == ["trained", "trained"]
    assert (
        stages.count("screened") == 11
        and listener.trained() == [0, 14, 15]
        and result.best is not None
    )
    for row in table[3:14]:
        assert row["metric"] and row["latency_ratio"]
        assert (
            row["feasible"] == ("False" if "over the limit" in row["reason"] else "")
            and not row["origin"]
        )
    assert [row["origin"].rpartition(" ")[0] for row in table[-2:]] == ["trains trial"] * 2
    fitting = [row for row in table[3:14] if not row["reason"]]
    trained = {row["plan"] for row in table[-2:]}
    assert min(fitting, key=lambda row: float(row["loss"]))["plan"] in trained
    assert result.best.plan.to_json() in [
        Plan.from_json(each).to_json() for each in map(json.loads, trained)
    ]
    assert all(each.stage != "screened" for each in result.front)


@pytest.mark.slow
def test_more_trials_go_on_and_train_only_what_is_better_now(tmp_path: Path) -> None:
    searched(tmp_path)
    before = rows(tmp_path)
    listener = Listens()
    searched(tmp_path, listener, trials=16)
    after = rows(tmp_path)
    assert [row["plan"] for row in after[: len(before)]] == [row["plan"] for row in before]
    assert [row["stage"] for row in after].count("screened") == 15
    known = {row["plan"] for row in before if row["stage"] == "trained"}
    fresh = [row["plan"] for row in after[len(before) :] if row["stage"] == "trained"]
    assert len(listener.trained()) == len(fresh) <= 2 and not known & set(fresh)


@pytest.mark.parametrize(
    ("number", "step"), [(7, "evaluating"), pytest.param(14, "training", marks=pytest.mark.slow)]
)
def test_a_killed_search_ends_like_one_that_was_not(tmp_path: Path, number: int, step: str) -> None:
    whole = searched(tmp_path / "whole")
    with pytest.raises(GeneratorExit, match="killed"):
        searched(tmp_path / "killed", Listens(crash_at(number, step)))
    again = searched(tmp_path / "killed")
    assert figures(again) == figures(whole)
    ended = [row for row in rows(tmp_path / "killed") if row["stage"]]
    assert [row["plan"] for row in ended] == [row["plan"] for row in rows(tmp_path / "whole")]
    assert [row["stage"] for row in ended].count("screened") == 11


@pytest.mark.slow
def test_another_budget_is_searched_at_its_own_edge_and_judges_nothing_twice(
    tmp_path: Path,
) -> None:
    searched(tmp_path)
    listener = Listens()
    tighter = searched(tmp_path, listener, budget={"flops": "30%"})
    table = rows(tmp_path)
    dense = int(table[0]["flops"])
    assert tighter.best is not None and (tighter.best.score.flops or dense) <= 0.3 * dense
    screened = [row for row in table if row["stage"] == "screened"]
    assert 11 < len(screened) <= 23 and len(listener.trained()) <= 2
    judged = [number for number, what in listener.began if what.startswith("evaluating it without")]
    fresh = [row for row in screened if int(row["trial"]) in judged]
    assert len({row["plan"] for row in fresh}) == len(fresh) and not {
        row["plan"] for row in fresh
    } & {row["plan"] for row in screened if int(row["trial"]) < 12}
    back = Listens()
    searched(tmp_path, back)  # that budget has had its trials
    assert not back.trained() and not any(what.startswith("evaluating") for _, what in back.began)


def test_a_run_of_another_version_is_not_gone_on_with(tmp_path: Path) -> None:
    import optuna

    searched(tmp_path)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    )
    (name,) = optuna.get_all_study_names(storage)
    optuna.load_study(study_name=name, storage=storage).set_user_attr("version", 1)
    for budget in ({"flops": "55%"}, {"flops": "40%"}):
        with pytest.raises(InputError, match="start again with --fresh"):
            searched(tmp_path, budget=budget)
    with pytest.raises(InputError, match="start again with --fresh"):
        Journal.read(screening(), Run(tmp_path), Score())


def _marked(folder: Path, mark: str) -> dict[int, int]:
    """For the number of every trial that follows from another, that of the other."""
    import optuna

    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    )
    names = optuna.get_all_study_names(storage)
    longest = max(
        (optuna.load_study(study_name=name, storage=storage) for name in names),
        key=lambda s: len(s.trials),
    )
    return {t.number: t.user_attrs[mark] for t in longest.trials if mark in t.user_attrs}


def _promotions(folder: Path) -> dict[int, int]:
    return _marked(folder, "promotes")


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0.01, "trials": 1000}, {"trials": 2, "finalists": 5}, {}]
)
def test_what_is_trained_was_judged_before_and_is_the_same_plan(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    searched(tmp_path, **options)
    table = rows(tmp_path)
    promotions = _promotions(tmp_path)
    trained = [int(row["trial"]) for row in table if row["stage"] == "trained"]
    assert trained and set(trained) <= set(promotions)
    for number in trained:
        assert table[promotions[number]]["stage"] == "screened"
        assert table[number]["plan"] == table[promotions[number]]["plan"]


@pytest.mark.slow
def test_a_promoted_plan_keeps_what_is_no_longer_searched(tmp_path: Path) -> None:
    objectives = ("metric", "nonzero_params")
    searched(tmp_path, budget={"nonzero_params": "70%"}, objectives=objectives)
    assert any("weight" in row["techniques"] for row in rows(tmp_path))
    searched(tmp_path, budget={"params": "80%"}, objectives=objectives, finalists=4)
    table = rows(tmp_path)
    for number, promoted_ in _promotions(tmp_path).items():
        assert table[number]["plan"] == table[promoted_]["plan"]


@pytest.mark.slow
def test_where_the_finalists_do_not_keep_the_budget_others_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoprune.searching.evaluating.costs import Costs

    measured, refused = Costs.of_finished, list[int]()

    def slower(self: Costs, model: Any, pruned: Any, score: Score, processes: int) -> Score:
        found = measured(self, model, pruned, score, processes)
        if not refused:
            refused.append(found.flops or 0)
            return found.evolve(latency=replace(found.latency, ratio=10.0, ratio_high=10.0))
        return found

    monkeypatch.setattr(Costs, "of_finished", slower)
    listener = Listens()
    result = searched(tmp_path, listener, budget={"latency": "900%", "flops": "55%"}, finalists=1)
    assert result.best is not None and len(refused) == 1
    assert len(listener.trained()) == 3  # the dense model, the finalist, and another


@pytest.mark.slow
def test_a_finalist_that_is_slower_in_fresh_processes_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoprune.searching.evaluating.costs import Costs

    measured, refused = Costs.latency, list[int]()

    def slower(self: Costs, pruned: Any, score: Score, **options: Any) -> Score:
        found = measured(self, pruned, score, **options)
        if options.get("processes") and (not refused or refused[0] == found.flops):
            refused.append(found.flops or 0)
            return found.evolve(latency=replace(found.latency, ratio=10.0, ratio_high=10.0))
        return found

    monkeypatch.setattr(Costs, "latency", slower)
    listener = Listens()
    result = searched(tmp_path, listener, budget={"latency": "900%", "flops": "55%"}, finalists=1)
    assert result.best is not None and refused
    assert len(listener.trained()) == 2  # the dense model, and the one in its place


@pytest.mark.parametrize(
    ("value", "reach", "asked"), [(0.4, 0.05, [5]), (0.48, 0.05, [5, 15]), (0.6, 0.05, [5])]
)
def test_more_processes_decide_where_the_first_do_not(
    value: float, reach: float, asked: list[int]
) -> None:
    seen = list[int]()

    def measured(processes: int) -> Score:
        seen.append(processes)
        return Score(latency=LatencyFigures(ratio=value, ratio_high=value + reach))

    decide(measured, Feasibility(Budget.parse({"latency": "50%"}), Score(), "maximize"))
    assert seen == asked


@pytest.mark.promise("slack")
@pytest.mark.parametrize(
    ("value", "reach", "asked"),
    [(0.45, 0.02, [5, 15]), (0.45, 0.01, [5]), (0.488, 0.02, [5, 15]), (0.488, 0.011, [5])],
)
def test_an_interval_that_takes_more_than_may_be_left_is_measured_in_more_processes(
    prepared: Prepared,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    reach: float,
    asked: list[int],
) -> None:
    seen = list[int]()

    def latency(pruned: Any, score: Score, *, processes: int = 0) -> Score:
        seen.append(processes)
        return score.evolve(
            latency=replace(
                score.latency, ratio=value, ratio_high=value + (reach if processes == 5 else 0.001)
            )
        )

    given = screening({"latency": "50%"}, objectives=("metric", "latency"))
    dense = Score(1.0, latency=LatencyFigures(ratio=1.0, ratio_high=1.0))
    pruner = prepared.pruner(given)
    evaluate = Evaluator(given, prepared, dense, pruner, Listens())
    monkeypatch.setattr(prepared.costs, "latency", latency)
    score = evaluate.finalist(Plan({"0:units": Choice("structured", 0.5)}), 1)
    assert seen == asked and score.latency.ratio_high == value + (reach if asked == [5] else 0.001)


def test_objectives_without_a_metric_get_the_least_cost_that_keeps_it(tmp_path: Path) -> None:
    budget = {"flops": "80%", "metric_drop": "0.02"}
    result = searched(tmp_path, budget=budget, objectives=("flops",), trials=15, finalists=4)
    assert (
        result.best is not None
        and result.dense.metric is not None
        and result.best.score.metric is not None
    )
    assert result.best.score.metric >= result.dense.metric - 0.02
    assert (result.best.score.flops or 0) <= 0.8 * (result.dense.flops or 0)


def test_the_time_limit_leaves_time_to_train(tmp_path: Path) -> None:
    listener = Listens()
    result = searched(tmp_path, listener, trials=1000, timeout_s=0.01)
    assert any("time limit" in note for note in listener.notes)
    assert result.best is not None
    assert [row["stage"] for row in rows(tmp_path)].count("trained") <= 2


def test_it_stops_by_itself_where_nothing_gets_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoprune.searching.proposing import screening as module

    monkeypatch.setattr(module, "_PATIENCE", 5)
    monkeypatch.setattr(module, "_IDLE", 0.0)
    listener = Listens()
    searched(tmp_path, listener, trials=60)
    assert any("no better plan" in note for note in listener.notes)
    assert [row["stage"] for row in rows(tmp_path)].count("screened") < 59


@pytest.mark.slow
def test_a_budget_that_only_untrained_plans_keep_says_so(tmp_path: Path) -> None:
    recovery = replace(TASK.training, learning_rate=1e-30)
    asked = study({"flops": "12%", "metric_drop": "0"}, recovery=recovery, trials=25, finalists=1)
    with pytest.raises(BudgetError, match="no plan meets the budget") as raised:
        run_search(asked, Run(tmp_path))
    assert "metric_drop" in str(raised.value)
    stages = [row["stage"] for row in rows(tmp_path)]
    # times the finalists, and no more
    assert stages.count("screened") > 5 and stages.count("trained") == 3


@pytest.mark.parametrize(
    ("timeout", "most"), [pytest.param(None, 10, marks=pytest.mark.slow), (0.01, 1)]
)
def test_so_many_plans_whose_training_breaks_down_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float | None, most: int
) -> None:
    def breaks(*args: Any, **options: Any) -> None:
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(recovering, "train", breaks)
    with pytest.raises(BudgetError):
        searched(tmp_path, trials=30, finalists=1, timeout_s=timeout)
    assert [row["stage"] for row in rows(tmp_path)].count("failed") == most


def test_plans_that_keep_the_same_units_have_one_effect(prepared: Prepared, tmp_path: Path) -> None:
    found = scaling(prepared, tmp_path)

    def effect(ratio: float, technique: str = "structured", key: str = "3:units") -> Any:
        return found.pruner.resolve(Plan({key: Choice(technique, ratio)})).net_id

    assert effect(0.5) == effect(0.51) != effect(0.6)  # of 16 units
    assert effect(0.01) == found.pruner.resolve(Plan()).net_id
    assert effect(0.5, "weight", "3:weights") != effect(0.51, "weight", "3:weights")


@pytest.mark.promise("options")
def test_plans_that_mask_the_same_weights_are_one_net(prepared: Prepared, tmp_path: Path) -> None:
    nets = Nets(scaling(prepared, tmp_path).pruner)
    cut = {"0:units": Choice("structured", 0.5)}
    nets.add(Plan({**cut, "3:weights": Choice("weight", 0.5, "l1")}))
    for technique, ratio, criterion, known in (
        ("sparse", 0.5, "l1", True), ("weight", 0.5, "l2", True), ("weight", 0.5, "lamp", True),
        ("weight", 0.5, "random", False), ("n_of_m", 0.5, "l1", False), ("weight", 0.6, "l1", False),
    ):  # fmt: skip
        assert (Plan({**cut, "3:weights": Choice(technique, ratio, criterion)}) in nets) == known, (
            technique
        )
    assert Plan({"3:weights": Choice("weight", 0.5, "l1")}) not in nets


@pytest.mark.promise("options")
def test_no_net_is_judged_twice(tmp_path: Path) -> None:
    """Though three criteria rank single weights alike, and two techniques differ in training alone."""
    options = Options(("structured", "weight", "sparse"), (0.0, 0.9), ("l1", "l2", "lamp"))
    given = replace(
        screening(
            {"nonzero_params": "50%"},
            objectives=("metric", "nonzero_params"),
            trials=14,
            finalists=1,
        ),
        space=Space(options, {"6": Options((), (0.0, 0.9), ())}),
    )
    run_search(given, Run(tmp_path))
    nets = [
        tuple(row[name] for name in ("loss", "flops", "params", "nonzero_params"))
        for row in rows(tmp_path)
        if row["stage"] == "screened"
    ]
    assert len(nets) >= 10 and len(set(nets)) == len(nets)


def test_a_sample_that_comes_to_a_net_judged_before_is_moved_on(
    prepared: Prepared, tmp_path: Path
) -> None:
    given = screening({"flops": "55%"})
    found = Screening(session(given, prepared, tmp_path), lambda: False)
    sample = narrowed(prepared, {"0:units": 0.5})
    nets, effects = list[Decisions](), set()
    for number in range(8):
        nets.append(found.scale_sample(f"{number}")(sample))
        plan = nets[-1].plan
        effects.add(found.scaling.pruner.resolve(plan).net_id)
        assert found.scaling.fits(plan)
        found.learn([Candidate(number, plan, Score(flops=1), False, "screened")])
    assert nets[0] == found.scaling.fit_to_budget(sample) and len(effects) == 8


def test_samples_spend_the_budget(prepared: Prepared, tmp_path: Path) -> None:
    """Not only by one factor for all: after that no single step of any group fits any more."""
    given = screening({"flops": "50%"})
    found = Screening(session(given, prepared, tmp_path), lambda: False)
    keys = ("0:units", "3:units")
    for number, ratios in enumerate(((0.3, 0.9), (0.9, 0.3), (0.5, 0.6))):
        sample = narrowed(prepared, dict(zip(keys, ratios, strict=True)))
        net = found.scale_sample(str(number))(sample)
        assert found.scaling.fits(net.plan)
        for key in keys:
            assert not found.scaling.fits(net.evolve(wider(net[key])).plan)


def test_nothing_is_given_back_where_no_limit_is_foreseen(
    prepared: Prepared, tmp_path: Path
) -> None:
    given = screening({"memory": "50%"})
    found = Screening(session(given, prepared, tmp_path), lambda: False)
    assert not found.scaling.budget.limits
    sample = narrowed(prepared, {"0:units": 0.5})
    assert found.scale_sample("0")(sample) == sample


@pytest.mark.promise("slack")
def test_what_finalists_leave_of_the_budget_is_spent_before_they_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as where costs are foreseen a fifth too high
    monkeypatch.setitem(scaling_module._MARGINS, "flops", 0.2)
    searched(tmp_path)
    table = rows(tmp_path)
    refills = _marked(tmp_path, "refills")
    assert max(list(refills.values()).count(finalist) for finalist in refills.values()) <= 3
    assert refills and [row["stage"] for row in table].count("screened") == 11 + len(refills)
    for number, finalist in refills.items():
        before, after = table[finalist], table[number]
        assert int(before["flops"]) < int(after["flops"]) <= 0.55 * int(table[0]["flops"])
    best_ = table[json.loads((tmp_path / "front.json").read_text())["best"]]
    better = [
        number
        for number, one in refills.items()
        if float(table[number]["loss"]) < float(table[one]["loss"])
    ]
    assert better and not {refills[number] for number in better} & set(
        _promotions(tmp_path).values()
    )
    assert int(best_["flops"]) > 0.9 * 0.55 * int(table[0]["flops"])
    listener = Listens()
    searched(tmp_path, listener)  # nothing is judged or trained again
    assert rows(tmp_path) == table and not listener.trained()


def test_without_a_limit_on_costs_the_whole_front_is_searched(tmp_path: Path) -> None:
    searched(tmp_path, budget={"metric_drop": "0.5"}, trials=25, finalists=3)
    table = rows(tmp_path)
    dense = int(table[0]["flops"])
    shares = sorted(int(row["flops"]) / dense for row in table if row["stage"] == "screened")
    assert (
        shares[0] < 0.35 and shares[-1] > 0.65 and sum(0.35 < each < 0.65 for each in shares) >= 3
    )
    trained = [row for row in table if row["stage"] == "trained"]
    assert 1 <= len(trained) <= 3
    best_ = json.loads((tmp_path / "front.json").read_text())["best"]
    kept = [row for row in trained if row["feasible"] == "True"]  # not dense
    assert int(table[best_]["flops"]) == min(int(row["flops"]) for row in kept) < dense
