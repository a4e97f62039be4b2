"""Several budgets of one run: whose results lie where, what is refused, what a finished run can still answer."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_search import Listens, quick, quicker, study

from autoprune.budget import Budget
from autoprune.errors import BudgetError, InputError
from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Choice, Plan
from autoprune.reading.resume import open_run
from autoprune.run import Run
from autoprune.score import Candidate, Score
from autoprune.searching import commands
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.search import Result
from autoprune.searching.search import search as run_search
from autoprune.searching.selecting.answers import answers, in_words
from autoprune.searching.selecting.infeasible import nearest_miss, needless
from autoprune.searching.selecting.promotion import best
from autoprune.study import Study

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
__all__ = ["quick"]  # a fixture that every test here uses

RESULTS = ("study.yaml", "front.json", "trials.csv", "best/score.json", "best/model.safetensors")


def given(budget: dict[str, Any], **settings: Any) -> Study:
    """A study whose record says the budget, as one that was read from a file."""
    made = study(budget, **{"trials": 6, "finalists": 1, **settings})
    return replace(made, resolved={**made.resolved, "version": 1, "budget": made.budget.to_json()})


def searched(
    folder: Path, budget: dict[str, Any], listener: Listens | None = None, **settings: Any
) -> Result:
    made = given(budget, **settings)
    return run_search(made, open_run(made.resolved, folder), listener)


@pytest.fixture(scope="module")
def searched_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        quicker(patch)
        folder = tmp_path_factory.mktemp("finished") / "run"
        searched(folder, {"flops": "55%"})
    return folder


@pytest.fixture
def finished(searched_once: Path, tmp_path: Path) -> Path:
    """A copy of a run that was searched to its end at 55 % of the FLOPs."""
    return Path(shutil.copytree(searched_once, tmp_path / "run"))


def contents(folder: Path, names: tuple[str, ...] = RESULTS) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def budgets(folder: Path) -> list[Any]:
    """The budget of the study, of the front and of the exported best that lie together."""
    records = [yaml.safe_load((folder / "study.yaml").read_text())]
    records += [
        json.loads((folder / name).read_text()) for name in ("front.json", "best/score.json")
    ]
    return [record["budget"] for record in records]


@pytest.mark.promise("finished-run")
def test_a_budget_that_dense_keeps_is_refused_and_nothing_is_changed(finished: Path) -> None:
    everything = (*RESULTS, "study.journal", "dense/score.json")
    before = contents(finished, everything)
    for budget in ({"flops": "1G"}, {"latency": "500s", "metric_drop": 0.1}):
        listener = Listens()
        with pytest.raises(
            InputError,
            match=r"dense model keeps the budget .* already: it has .*nothing was changed",
        ):
            searched(finished, budget, listener)
        assert listener.ended == [] and contents(finished, everything) == before
        assert [path.name for path in finished.glob("*=*")] == []
    report = commands.check(given({"flops": "1G"}))
    assert report.needless is not None and report.unreachable is None


@pytest.mark.promise("finished-run")
def test_what_limits_no_cost_is_searched_all_the_same() -> None:
    dense = Score(0.9, flops=1000, latency=LatencyFigures(ms=1.0, ms_high=1.1, ratio_high=1.0))
    kept = [
        {"latency": "2ms"},
        {"latency": "2ms", "metric_drop": 0.1},
        {"flops": "1M"},
        {"latency": "100%"},
    ]
    assert all(needless(given(budget), dense) for budget in kept)
    broken = [
        {},
        {"metric_drop": 0.1},
        {"latency": "0.9ms"},
        {"latency": "2ms", "flops": "50%"},
        {"memory": "1GB"},
    ]
    assert not any(needless(given(budget), dense) for budget in broken)
    assert needless(
        replace(given({}), search=replace(given({}).search, objectives=("metric",))), dense
    )


@pytest.mark.promise("finished-run")
def test_another_budget_leaves_the_results_of_the_first_as_they_are(finished: Path) -> None:
    before, folder = contents(finished), finished / "flops=35%"

    def kill_at(step: str) -> Listens:
        def at(trial: int, what: str) -> None:
            if what.startswith(step) and "dense" not in what:
                raise GeneratorExit("killed")

        return Listens(at)

    for step in ("evaluating", "exporting"):
        with pytest.raises(GeneratorExit, match="killed"):
            searched(finished, {"flops": "35%"}, kill_at(step))
        assert contents(finished) == before and not (folder / "best").exists()
    listener = Listens()
    second = searched(finished, {"flops": "35%"}, listener)
    assert contents(finished) == before and second.best is not None and second.run.results == folder
    assert budgets(finished) == [{"flops": "55%"}] * 3 and budgets(folder) == [{"flops": "35%"}] * 3
    assert any(f"goes to {folder}" in note for note in listener.notes)
    # which are shown as lines of their own
    closing = [what[:15] for trial, what in listener.began if trial == 0]
    assert closing[-2:] == ["measuring trial", "exporting and v"]
    assert second.best.score.flops <= 0.35 * second.dense.flops  # type: ignore[operator]


@pytest.mark.promise("budgets")
def test_a_deeper_budget_begins_with_the_plans_that_others_trained(finished: Path) -> None:
    dense = Score.from_json(json.loads((finished / "dense" / "score.json").read_text()))
    trained = [
        each
        for each in Journal.read(given({"flops": "55%"}), Run(finished), dense)
        if each.stage == "trained"
    ]
    deeper = searched(finished, {"flops": "35%"})
    made = given({"flops": "35%"})
    first = [
        each.plan for each in Journal.read(made, Run(finished), dense) if each.stage == "screened"
    ]

    def scales(plan: Plan, other: Plan) -> bool:
        """Whether a plan is another one whose every ratio has grown by the same factor, or to the end of its range."""
        pairs = [(plan.choices[key], choice) for key, choice in other if key in plan.choices]
        factors = {
            round(one.ratio / two.ratio, 2)
            for one, two in pairs
            if two.ratio > 0 and one.ratio < 0.89
        }
        same = [
            (one.technique, one.criterion) == (two.technique, two.criterion) for one, two in pairs
        ]
        return (
            len(pairs) == len(other) == len(plan)
            and all(same)
            and len(factors) <= 1
            and plan != other
        )

    assert deeper.best is not None and trained
    assert any(scales(plan, each.plan) for plan in first for each in trained)


@pytest.mark.promise("finished-run")
def test_the_same_budget_goes_on_where_it_was_and_says_what_it_may_replace(finished: Path) -> None:
    listener = Listens()
    again = searched(finished, {"flops": "0.55e2%"}, listener, trials=7)
    assert again.run.results == finished and budgets(finished) == [{"flops": "55%"}] * 3
    assert any(
        f"{finished / 'best'} is replaced where a better plan" in note for note in listener.notes
    )


def screened(number: int, flops: int, loss: float) -> Candidate:
    plan = Plan({"0:units": Choice("structured", (number + 1) / 100)})
    return Candidate(number, plan, Score(0.5, loss=loss, flops=flops), False, "screened")


@pytest.mark.promise("budgets")
def test_the_budgets_that_a_run_can_answer_are_those_of_plans_that_none_cheaper_equals() -> None:
    dense = Score(0.9, flops=1000)
    kept = [
        Candidate(7, Plan(), Score(0.8, flops=402), True, "trained"),
        Candidate(8, Plan(), Score(0.7, flops=500), True, "trained"),  # dearer, and worse
        Candidate(9, Plan(), Score(0.85, flops=521), True, "trained"),
    ]
    judged = [screened(number, 100 + 20 * number, 1.0 - number / 100) for number in range(30)]
    found = answers(
        given({"flops": "55%"}),
        dense,
        [Candidate(0, Plan(), dense, False, "dense"), *kept, *judged],
    )
    again = answers(
        given({"flops": "55%"}), dense, [*judged, replace(kept[0], plan=judged[0].plan)]
    )
    # it is trained
    assert judged[0].number not in [each.candidate.number for each in again if not each.trained]
    trained = [(each.budget, each.candidate.number) for each in found if each.trained]
    assert trained == [("flops=41%", 7), ("flops=53%", 9)]
    offered = [each.budget for each in found if not each.trained]
    assert len(offered) == 8 and (offered[0], offered[-1]) == ("flops=10%", "flops=68%")
    said = in_words(found, Path("RUN"))
    assert "Trained plans keep flops=41% (trial 7), flops=53% (trial 9)" in said
    assert (
        "go down to flops=10%, trained by `autoprune export RUN --budget flops=10% --train --out DIR`"
        in said
    )
    assert len(nearest_miss(given({"flops": "5%"}), dense, [*kept, *judged], Path("RUN"))) <= 500
    assert "flops=10% --train" in nearest_miss(
        given({"flops": "5%"}), dense, [*kept, *judged], Path("RUN")
    )


def test_a_finalists_own_figure_says_how_near_the_budget_was() -> None:
    dense = Score(0.9, flops=1000)
    judged = screened(5, 400, 0.1)
    stopped = Candidate(6, judged.plan, Score(0.5, flops=560), False, "cost", "flops")
    said = nearest_miss(
        given({"flops": "55%"}),
        dense,
        [Candidate(0, Plan(), dense, False, "dense"), judged, stopped],
    )
    assert "The nearest was trial 6: flops 56%, over the limit of 55%" in said
    assert "Reachable was nothing: no trial was trained to the end" in said


@pytest.mark.promise("budgets")
def test_every_budget_that_is_offered_is_kept_by_its_plan(finished: Path) -> None:
    offered = commands.answerable(given({"flops": "55%"}), Run(finished))
    assert any(each.trained for each in offered) and any(not each.trained for each in offered)
    dense = Score.from_json(json.loads((finished / "dense" / "score.json").read_text()))
    for each in offered:
        made = given(dict([each.budget.split("=")]))
        candidates = Journal.read(made, Run(finished), dense)
        (same,) = [known for known in candidates if known.number == each.candidate.number]
        assert same.feasible if each.trained else same in best(made, dense, candidates)


@pytest.mark.promise("budgets")
def test_the_best_judged_plan_is_trained_for_a_budget_there_and_then(
    finished: Path, tmp_path: Path
) -> None:
    before = contents(finished)
    judged = [
        each
        for each in commands.answerable(given({"flops": "55%"}), Run(finished))
        if not each.trained
    ]
    made = given(dict([judged[0].budget.split("=")]))
    with pytest.raises(BudgetError, match=r"no plan meets the budget.*--train"):
        commands.export_from(made, Run(finished), tmp_path / "out")
    listener = Listens()
    result = commands.export_trained(
        made, open_run(made.resolved, finished), tmp_path / "out", listener
    )
    assert (
        len(listener.trained()) == 1
        and result.best is not None
        and result.best.number == listener.trained()[0]
    )
    # at most filled up first
    assert [each.stage for each in listener.ended] in (["trained"], ["screened", "trained"])
    record = json.loads((tmp_path / "out" / "score.json").read_text())
    assert record["budget"] == made.budget.to_json() and record["trial"] == result.best.number
    assert made.feasibility(result.dense).fits(Score.from_json(record))
    assert (
        contents(finished) == before
        and budgets(finished / made.budget.folder_name) == [made.budget.to_json()] * 3
    )
    assert (finished / "trials" / str(result.best.number) / "model.safetensors").exists()
    again = Listens()
    commands.export_trained(made, open_run(made.resolved, finished), tmp_path / "out", again)
    assert again.trained() == [] and again.ended == []
    assert any(each.trained and each.budget == judged[0].budget for each in result.answers)
    lower = given({"flops": "4.4%"})
    with pytest.raises(
        BudgetError,
        match=r"no plan that was evaluated in .* keeps the budget .*Evaluated plans go down to",
    ):
        commands.export_trained(lower, open_run(lower.resolved, finished), tmp_path / "lower")
    assert not (finished / lower.budget.folder_name).exists() and not (tmp_path / "lower").exists()


@pytest.mark.promise("figures")
def test_plans_that_wait_when_the_best_are_trained_were_not_interrupted(tmp_path: Path) -> None:
    searched(tmp_path, {"flops": "55%"}, trials=2)
    with open(tmp_path / "trials.csv") as file:
        rows = list(csv.DictReader(file))
    held = [row for row in rows if "held back" in row["reason"]]
    assert held and all(row["state"] == "WAITING" for row in held)
    assert not any("interrupted" in row["reason"] for row in rows)


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ({"latency": "30%"}, "latency=30%"),
        ({"latency": "2.5ms", "metric_drop": 0.01}, "latency=2.5ms,metric_drop=0.01"),
        ({}, "no limit"),
    ],
)
def test_the_folder_of_a_budget_is_named_after_it(budget: dict[str, Any], name: str) -> None:
    assert Budget.parse(budget).folder_name == name


def test_no_two_budgets_share_a_folder_and_none_leaves_the_run() -> None:
    odd = [{"throughput": "200/s"}, {"latency on a/b.yaml": "50%"}, {"latency on a_b.yaml": "50%"}]
    odd += [{f"latency on {'long' * 60}{number}": "50%"} for number in range(2)]
    names = {Budget.parse(budget).folder_name for budget in odd}
    assert len(names) == len(odd) and all("/" not in name and len(name) < 120 for name in names)
