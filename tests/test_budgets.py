"""Several budgets of one run: whose results lie where, what is refused, what a finished run can still answer."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_search import Listens, quick, quicker, study

from autoprune.errors import InputError
from autoprune.reading.resume import open_run
from autoprune.score import Score
from autoprune.searching import results
from autoprune.searching.misses import needless
from autoprune.searching.search import Result
from autoprune.searching.search import search as run_search
from autoprune.study import Study
from autoprune.target import Budget

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
__all__ = ["quick"]  # a fixture that every test here uses

RESULTS = ("study.yaml", "front.json", "trials.csv", "best/score.json", "best/model.safetensors")


def given(budget: dict[str, Any], **settings: Any) -> Study:
    """A study whose record says the budget, as one that was read from a file."""
    made = study(budget, **{"trials": 6, "finalists": 1, **settings})
    return replace(made, resolved={**made.resolved, "version": 1, "budget": made.budget.to_json()})


def searched(folder: Path, budget: dict[str, Any], listener: Listens | None = None, **settings: Any) -> Result:
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
    records += [json.loads((folder / name).read_text()) for name in ("front.json", "best/score.json")]
    return [record["budget"] for record in records]


@pytest.mark.promise("finished-run")
def test_a_budget_that_dense_keeps_is_refused_and_nothing_is_changed(finished: Path) -> None:
    everything = (*RESULTS, "study.journal", "dense/score.json")
    before = contents(finished, everything)
    for budget in ({"flops": "1G"}, {"latency": "500s", "metric_drop": 0.1}):
        listener = Listens()
        with pytest.raises(InputError, match=r"dense model keeps the budget .* already: it has .*nothing was changed"):
            searched(finished, budget, listener)
        assert listener.ended == [] and contents(finished, everything) == before
        assert [path.name for path in finished.glob("*=*")] == []
    report = results.check(given({"flops": "1G"}))
    assert report.needless is not None and report.unreachable is None


@pytest.mark.promise("finished-run")
def test_what_limits_no_cost_is_searched_all_the_same() -> None:
    dense = Score(0.9, flops=1000, latency_ms=1.0, latency_ms_high=1.1, latency_ratio_high=1.0)
    kept = [{"latency": "2ms"}, {"latency": "2ms", "metric_drop": 0.1}, {"flops": "1M"}, {"latency": "100%"}]
    assert all(needless(given(budget), dense) for budget in kept)
    broken = [{}, {"metric_drop": 0.1}, {"latency": "0.9ms"}, {"latency": "2ms", "flops": "50%"}, {"memory": "1GB"}]
    assert not any(needless(given(budget), dense) for budget in broken)
    assert needless(replace(given({}), search=replace(given({}).search, objectives=("metric",))), dense)


@pytest.mark.promise("finished-run")
def test_another_budget_leaves_the_results_of_the_first_as_they_are(finished: Path) -> None:
    before, folder = contents(finished), finished / "flops=35%"

    def kill_at(step: str) -> Listens:
        def at(trial: int, what: str) -> None:
            if what.startswith(step) and "dense" not in what:
                raise RuntimeError("killed")

        return Listens(at)

    for step in ("judging", "exporting"):
        with pytest.raises(RuntimeError, match="killed"):
            searched(finished, {"flops": "35%"}, kill_at(step))
        assert contents(finished) == before and not (folder / "best").exists()
    listener = Listens()
    second = searched(finished, {"flops": "35%"}, listener)
    assert contents(finished) == before and second.best is not None and second.run.results == folder
    assert budgets(finished) == [{"flops": "55%"}] * 3 and budgets(folder) == [{"flops": "35%"}] * 3
    assert any(f"goes to {folder}" in note for note in listener.notes)
    assert second.best.score.flops <= 0.35 * second.dense.flops  # type: ignore[operator]


@pytest.mark.promise("finished-run")
def test_the_same_budget_goes_on_where_it_was_and_says_what_it_may_replace(finished: Path) -> None:
    listener = Listens()
    again = searched(finished, {"flops": "0.55e2%"}, listener, trials=7)
    assert again.run.results == finished and budgets(finished) == [{"flops": "55%"}] * 3
    assert any(f"{finished / 'best'} is replaced where a better plan" in note for note in listener.notes)


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
