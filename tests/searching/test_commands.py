"""What is done besides the search: another answer, one plan, a dry run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_search import Listens, quick, searched, study

from autoprune.errors import BudgetError, InputError, TrainingError
from autoprune.plan import Choice, Plan
from autoprune.run import Run
from autoprune.searching import commands
from autoprune.task import Recipe

__all__ = ["quick"]  # a fixture that every test here uses
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def test_another_answer_from_a_finished_run(tmp_path: Path) -> None:
    searched(tmp_path / "run", trials=7)
    run, stamp = (
        Run(tmp_path / "run"),
        (tmp_path / "run" / "dense" / "model.safetensors").stat().st_mtime_ns,
    )
    answer = commands.export_from(study({"flops": "50%"}), run, tmp_path / "small")
    assert answer.best is not None and answer.best.score.flops <= 0.5 * answer.dense.flops  # type: ignore[operator]
    assert json.loads((tmp_path / "small" / "score.json").read_text())["budget"] == {"flops": "50%"}
    with pytest.raises(BudgetError, match="Reachable was flops="):
        commands.export_from(study({"flops": "2%"}), run, tmp_path / "none")
    dense = commands.export_from(study(), run, tmp_path / "dense", trial=0)
    assert dense.best is not None and dense.best.number == 0
    # outside it, so none is promised
    assert json.loads((tmp_path / "dense" / "score.json").read_text())["budget"] == {}
    with pytest.raises(InputError, match="trial 77 has no model"):
        commands.export_from(study(), run, tmp_path / "none", trial=77)
    assert (
        run.dense.joinpath("model.safetensors").stat().st_mtime_ns == stamp
        and not (tmp_path / "none").exists()
    )


def test_one_plan_is_applied_without_a_search(tmp_path: Path) -> None:
    plan = Plan({"0:units": Choice("structured", 0.5), "3:weights": Choice("weight", 0.5)})
    done = commands.apply_plan(study(), plan, tmp_path / "out")
    assert done.best is not None and done.best.plan == plan and done.best.score.metric is not None
    assert (tmp_path / "out" / "model.safetensors").exists()
    listener = Listens()
    with pytest.raises(InputError, match="unknown criterion 'l9'"):
        commands.apply_plan(
            study(), Plan({"0:units": Choice("structured", 0.5, "l9")}), tmp_path / "new", listener
        )
    with pytest.raises(InputError, match="nothing"):
        commands.apply_plan(
            study(), Plan({"nothing:units": Choice("structured", 0.5)}), tmp_path / "new", listener
        )
    assert listener.began == []  # refused before anything was trained
    broken = study(recovery=Recipe(epochs=1, batch_size=25, learning_rate=1e30))
    with pytest.raises(TrainingError, match="broke down"):
        commands.apply_plan(broken, plan, tmp_path / "out")


def test_a_dry_run_trains_nothing() -> None:
    report = commands.check(study({"flops": "1%"}))
    assert report.unreachable is not None and "over the limit of 1%" in report.unreachable
    assert (
        report.dense.flops is not None
        and report.lowest.flops is not None
        and report.lowest.flops < report.dense.flops
    )
    assert {variable.name for variable in report.variables} == {
        "0:units",
        "3:units",
        "0:weights",
        "3:weights",
    }
    assert report.seconds is not None and 25 < report.seconds < 600
