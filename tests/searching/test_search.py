"""The search in this process: its journal, what it keeps, goes on with, refuses and says."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from marks import slow_but
from small_search import (
    TASK,
    Listens,
    accuracy,
    build,
    crash_at,
    figures,
    images,
    quick,
    rows,
    searched,
    study,
)
from torch import nn

import autoprune
from autoprune.errors import BudgetError, InputError
from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Choice, Plan
from autoprune.run import Run
from autoprune.score import Score
from autoprune.searching import commands, records
from autoprune.searching.evaluating import evaluator
from autoprune.searching.evaluating.preparation import prepare
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.search import search as run_search
from autoprune.target import Target
from autoprune.task import Recipe

__all__ = ["quick"]  # a fixture that every test here uses
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def test_a_search_writes_everything_that_a_run_holds(tmp_path: Path) -> None:
    result = searched(tmp_path)
    front = json.loads((tmp_path / "front.json").read_text())
    assert list(front) == ["version", "metric", "baseline", "budget", "best", "front"]
    assert front["metric"] == {"name": "accuracy", "goal": "maximize"} and front["budget"] == {
        "flops": "55%"
    }
    assert [each["trial"] for each in front["front"]] == [each.number for each in result.front]
    assert all(list(each) == ["trial", "feasible", "plan", "score"] for each in front["front"])
    assert result.best is not None and front["best"] == result.best.number
    assert result.best.score.flops <= 0.55 * result.dense.flops  # type: ignore[operator]
    for each in front["front"]:
        kept = {path.name for path in (tmp_path / "trials" / str(each["trial"])).iterdir()}
        assert kept == {"plan.json", "model.safetensors", "score.json"}
    assert {path.name for path in (tmp_path / "dense").iterdir()} == {
        "model.safetensors",
        "score.json",
    }
    table = rows(tmp_path)
    assert len(table) == 6 and {
        "state",
        "stage",
        "reason",
        "metric",
        "latency_ms",
        "latency_ratio_high",
        "plan",
    } <= set(table[0])
    assert [row["techniques"] for row in table[:3]] == ["dense", "structured", "weight"]
    # the test split is read for dense and best alone
    assert table[0]["stage"] == "dense" and table[0]["test_metric"] == ""
    assert result.best.score.test_metric is not None and result.dense.test_metric is not None


def test_the_best_is_what_its_record_says(tmp_path: Path) -> None:
    result = searched(tmp_path)
    assert result.best is not None
    dense = build().eval()
    model = records.kept_model(Run(tmp_path), result.best.number, dense)
    parameters = list(model.parameters())
    assert sum(each.numel() for each in parameters) == result.best.score.params
    assert (
        sum(int(torch.count_nonzero(each)) for each in parameters)
        == result.best.score.nonzero_params
    )
    inputs, labels = TASK.data.validation.tensors
    assert accuracy(model(inputs), labels) == pytest.approx(result.best.score.metric)


def test_the_same_seed_gives_the_same_plans_and_metrics(tmp_path: Path) -> None:
    first, second = searched(tmp_path / "a"), searched(tmp_path / "b")
    assert figures(first) == figures(second)
    assert [row["plan"] for row in rows(tmp_path / "a")] == [
        row["plan"] for row in rows(tmp_path / "b")
    ]
    other = searched(tmp_path / "c", seed=1)
    assert [row["plan"] for row in rows(tmp_path / "c")] != [
        row["plan"] for row in rows(tmp_path / "a")
    ]
    assert other.best is not None


@pytest.mark.parametrize("damage", slow_but(["torn"], ["none", "torn", "garbage", "lock"]))
def test_a_killed_search_goes_on_and_ends_like_one_that_was_not(
    tmp_path: Path, damage: str
) -> None:
    whole = searched(tmp_path / "whole")
    trained = [int(row["trial"]) for row in rows(tmp_path / "whole") if row["stage"] == "trained"]
    at, folder = trained[1], tmp_path / "killed"
    with pytest.raises(GeneratorExit, match="killed"):
        searched(folder, Listens(crash_at(at, "training")))
    before = {
        name: (folder / name).read_bytes()
        for name in ("dense/model.safetensors", "trials/1/model.safetensors")
    }
    stamps = {name: (folder / name).stat().st_mtime_ns for name in before}
    journal = folder / "study.journal"
    if damage == "torn":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif damage == "garbage":
        journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor\x00\x80')
    elif damage == "lock":
        os.symlink(str(journal), f"{journal}.lock")
    (folder / "trials" / "1" / ".score.json.abcd.json").write_text("half")
    listener = Listens()
    again = searched(folder, listener)
    assert figures(again) == figures(whole)
    # no dense model, no trial that had ended
    assert listener.trained() == [number + 1 for number in trained if number >= at]
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == stamps
    states = [(row["state"], row["stage"]) for row in rows(folder)]
    assert (
        states[at] == ("FAIL", "")
        and states[at + 1] == ("COMPLETE", "trained")
        and len(states) == 7
    )
    assert "interrupted" in rows(folder)[at]["reason"]
    assert not (folder / "trials" / "1" / ".score.json.abcd.json").exists()


def test_a_finished_search_started_again_does_nothing_twice(tmp_path: Path) -> None:
    first = searched(tmp_path)
    stamp = (tmp_path / "best" / "score.json").stat().st_mtime_ns
    listener = Listens()
    second = searched(tmp_path, listener)
    assert listener.began == [] and (tmp_path / "best" / "score.json").stat().st_mtime_ns == stamp
    assert (
        first.best is not None and second.best is not None and second.best.score == first.best.score
    )
    weights = tmp_path / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    third = searched(tmp_path, listener)  # an artefact that was damaged is written anew
    assert third.best is not None and listener.trained() == [] and len(listener.began) == 2
    assert (tmp_path / "best" / "score.json").stat().st_mtime_ns > stamp


def test_a_changed_budget_takes_every_trial_over(tmp_path: Path) -> None:
    searched(tmp_path, trials=7)
    listener = Listens()
    tighter = searched(tmp_path, listener, budget={"flops": "50%"}, trials=7)
    assert listener.trained() == [] and tighter.best is not None
    flops = tighter.dense.flops or 0
    for row in rows(tmp_path):
        inside = int(row["flops"]) <= 0.5 * flops
        assert row["feasible"] == str(inside and row["stage"] in ("dense", "trained"))
    front = json.loads((tmp_path / "front.json").read_text())
    assert front["budget"] == {"flops": "50%"}
    assert all(
        each["feasible"] == (each["score"]["flops"] <= 0.5 * flops) for each in front["front"]
    )


def test_a_looser_budget_trains_what_an_earlier_one_stopped_and_nothing_else(
    tmp_path: Path,
) -> None:
    searched(tmp_path, budget={"flops": "30%"}, trials=7)
    tight = rows(tmp_path)
    flops = int(tight[0]["flops"])
    fits_now = [
        int(row["trial"])
        for row in tight
        if row["stage"] in ("cost", "latency") and int(row["flops"]) <= 0.95 * flops
    ]
    assert fits_now
    listener = Listens()
    loose = searched(tmp_path, listener, budget={"flops": "95%"}, trials=7)
    assert loose.best is not None and len(listener.trained()) == len(fits_now)
    table = rows(tmp_path)
    assert {row["trial"] for row in table if row["state"] == "FAIL"} == {
        str(number) for number in fits_now
    }
    assert sum(row["state"] == "COMPLETE" for row in table) == 7
    back = Listens()
    # a number means the same plan under every budget
    searched(tmp_path, back, budget={"flops": "30%"}, trials=8)
    for old, new in zip(table, rows(tmp_path), strict=False):
        assert old["plan"] == new["plan"]
    assert len(back.trained()) <= 1


def test_optunas_own_tools_work_on_the_journal(tmp_path: Path) -> None:
    searched(tmp_path, trials=8)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    )
    (name,) = optuna.get_all_study_names(storage)
    loaded = optuna.load_study(study_name=name, storage=storage)
    dense = loaded.trials[0]
    assert dense.constraints == {"flops": pytest.approx(1 / 0.55 - 1)}  # value / limit - 1
    assert all(set(trial.constraints) == {"flops"} for trial in loaded.trials)
    assert {trial.number for trial in loaded.best_trials} <= {
        trial.number for trial in loaded.trials if trial.constraints["flops"] <= 0
    }
    importances = optuna.importance.get_param_importances(
        loaded,
        target=lambda trial: trial.values[1],
        evaluator=optuna.importance.FanovaImportanceEvaluator(n_trees=4, seed=0),
    )
    assert sum(importances.values()) == pytest.approx(1.0)


@pytest.mark.slow
def test_two_runs_share_a_storage_by_url(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    first = searched(tmp_path / "a", storage=url, trials=3)
    second = searched(tmp_path / "b", storage=url, trials=3)
    assert figures(first) == figures(second) and len(optuna.get_all_study_names(url)) == 2
    listener = Listens()
    searched(tmp_path / "a", listener, storage=url, trials=4)
    assert [candidate.number for candidate in listener.ended] == [3] and not (
        tmp_path / "a" / "study.journal"
    ).exists()
    with pytest.raises(InputError, match=r"search\.storage"):
        searched(tmp_path / "c", storage=f"sqlite:///{tmp_path}/no/such/folder/trials.db")


@pytest.mark.parametrize("sampler", ["nsga2", "gp", "random"])
def test_every_sampler_proposes_plans(tmp_path: Path, sampler: str) -> None:
    result = searched(tmp_path, sampler=sampler, trials=5)
    assert len(rows(tmp_path)) == 5 and result.best is not None


def test_a_training_that_breaks_down_ends_the_trial_alone(tmp_path: Path) -> None:
    with pytest.raises(
        BudgetError, match=r"trials broke down in training \(trial 1: the loss is nan"
    ):
        searched(tmp_path, recovery=Recipe(epochs=1, batch_size=25, learning_rate=1e30), trials=3)
    table = rows(tmp_path)
    assert [row["stage"] for row in table] == ["dense", "failed", "cost"] and table[1][
        "state"
    ] == "FAIL"
    assert json.loads((tmp_path / "front.json").read_text())["best"] is None
    listener = Listens()
    with pytest.raises(BudgetError):
        searched(
            tmp_path,
            listener,
            recovery=Recipe(epochs=1, batch_size=25, learning_rate=1e30),
            trials=3,
        )
    assert listener.ended == []  # it has ended by itself, and is not tried again


def test_a_budget_out_of_reach_is_said_before_any_training(tmp_path: Path) -> None:
    listener = Listens()
    with pytest.raises(
        BudgetError,
        match=r"most-pruned plan of this space still has flops [0-9.]+%, over the limit of 0.1%",
    ):
        searched(tmp_path, listener, budget={"flops": "0.1%"})
    assert listener.began == [] and not (tmp_path / "dense").exists()


def test_a_budget_that_quality_alone_breaks_ends_with_what_was_reachable(tmp_path: Path) -> None:
    never = Recipe(epochs=1, batch_size=25, learning_rate=1e-12)
    with pytest.raises(
        BudgetError,
        match=r"no plan meets the budget.*Reachable was flops=.*metric_drop=.*\(trial \d",
    ):
        searched(tmp_path, budget={"flops": "20%", "metric_drop": 0.0001}, recovery=never, trials=3)
    front = json.loads((tmp_path / "front.json").read_text())
    assert front["best"] is None and not any(each["feasible"] for each in front["front"])


def test_where_dense_fits_already_there_is_nothing_to_search(tmp_path: Path) -> None:
    listener = Listens()
    with pytest.raises(InputError, match=r"keeps the budget .* already: it has flops"):
        searched(tmp_path, listener, budget={"flops": "1G"}, objectives=("metric",))
    assert (
        listener.began == []
        and not (tmp_path / "dense").exists()
        and not (tmp_path / "study.yaml").exists()
    )


def test_the_time_limit_ends_the_trials_but_not_before_the_first(tmp_path: Path) -> None:
    listener = Listens()
    with pytest.raises(BudgetError, match="trial 0"):
        searched(tmp_path, listener, timeout_s=1e-9, trials=50)
    assert len(rows(tmp_path)) == 1 + sum(row["state"] == "WAITING" for row in rows(tmp_path))
    assert any("time limit is reached after 1 trials" in note for note in listener.notes)
    assert searched(tmp_path, trials=4).best is not None


def test_the_first_interrupt_exports_the_best_so_far(tmp_path: Path) -> None:
    def interrupt(trial: int, what: str) -> None:
        if trial > 1 and what.startswith("training"):
            raise KeyboardInterrupt

    result = searched(tmp_path, Listens(interrupt))
    assert result.interrupted and result.best is not None and result.best.number == 1
    assert (tmp_path / "best" / "verification.json").exists()
    assert json.loads((tmp_path / "front.json").read_text())["best"] == 1
    more = Listens()
    assert not searched(tmp_path, more).interrupted and 1 not in more.trained() and more.trained()


def test_an_interrupt_at_the_end_still_exports(tmp_path: Path) -> None:
    seen: list[str] = []

    def interrupt(trial: int, what: str) -> None:
        if what.startswith("exporting") and not seen:
            seen.append(what)
            raise KeyboardInterrupt

    result = searched(tmp_path, Listens(interrupt))
    assert (
        seen
        and result.interrupted
        and result.best is not None
        and (tmp_path / "best" / "score.json").exists()
    )


def test_a_task_that_has_changed_behind_the_same_study_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    searched(tmp_path, trials=2)
    other = replace(TASK, data=replace(TASK.data, train=images(160, 5)))
    with pytest.raises(InputError, match=r"has changed since.*--fresh"):
        searched(tmp_path, task=other, trials=2)


def test_random_augmentation_does_not_change_what_a_task_is() -> None:
    from dataclasses import replace

    class Augmented(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return torch.randn(1, 8, 8), index % 3

    task = replace(TASK, data=replace(TASK.data, train=Augmented()))
    torch.manual_seed(1)
    first = task.digest()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # the global state was given back
    torch.manual_seed(2)
    assert task.digest() == first != TASK.digest()


def test_a_search_killed_while_a_trial_is_told_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, told = optuna.trial.Trial.set_user_attr, list[str]()

    def killed(trial: optuna.trial.Trial, key: str, value: Any) -> None:
        if trial.number == 1 and told and key not in ("plan", "budget"):
            raise RuntimeError("killed")
        kept(trial, key, value)
        if trial.number == 1 and key not in ("plan", "budget"):
            told.append(key)

    broken = Recipe(epochs=1, batch_size=25, learning_rate=1e30)
    monkeypatch.setattr(optuna.trial.Trial, "set_user_attr", killed)
    with pytest.raises(RuntimeError, match="killed"):
        searched(tmp_path, recovery=broken, trials=3)
    monkeypatch.setattr(optuna.trial.Trial, "set_user_attr", kept)
    with pytest.raises(BudgetError):
        searched(tmp_path, recovery=broken, trials=3)
    assert len(told) == 1 and [row["stage"] for row in rows(tmp_path)].count("failed") == 1


def test_the_journal_counts_only_what_has_ended(tmp_path: Path) -> None:
    searched(tmp_path, trials=2)
    prepared = prepare(study(), Run(tmp_path))
    journal = Journal(study(), Run(tmp_path), prepared.variables)
    journal.start(list, Score(0.5, flops=1000))
    trial, plan = journal.ask()
    trial.set_user_attr("stage", "trained")  # killed between these notes and the result
    assert journal.count_finished() == 2 and len(plan)
    again = Journal(study(), Run(tmp_path), prepared.variables)
    again.start(list, Score(0.5, flops=1000))
    assert again.count_finished() == 2 and again.count_ended() == 2
    waiting = [each for each in again.trials() if each.state == optuna.trial.TrialState.WAITING]
    assert [each.number for each in waiting][-1] == len(again.trials()) - 1


def test_search_in_python_with_dictionaries_and_a_metric_to_minimise(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build()

        def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.net(image)}

    def wrong(outputs: Any, targets: torch.Tensor) -> float:
        return 1 - accuracy(outputs["logits"], targets)

    def worse(outputs: Any, targets: torch.Tensor) -> float:
        return 2 * wrong(outputs, targets)

    def batches(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
        pixels, labels = images(count, seed).tensors
        return [
            {"image": pixels[at : at + 25], "labels": labels[at : at + 25]}
            for at in range(0, count, 25)
        ]

    model = Named()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaders = [
        torch.utils.data.DataLoader(batches(count, seed), batch_size=None)
        for count, seed in ((150, 0), (75, 1))
    ]
    result = autoprune.search(
        model, train=loaders[0], validation=loaders[1], loss="cross_entropy", metric=wrong, goal="minimize",
        budget={"params": "40%"},
        objectives=("metric", "params"), target={"device": "cpu", "runtime": "eager"}, trials=4, out=tmp_path / "run",
        space={"default": {"techniques": ["structured"], "criteria": ["l1"]}}, formats=["safetensors"],
        recovery={"epochs": 2, "learning_rate": 0.01},
    )  # fmt: skip
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    best = result.best
    assert best.score.params <= 0.4 * result.dense.params  # type: ignore[operator]
    assert sum(each.numel() for each in best.model.parameters()) == best.score.params
    assert [each.score.metric for each in result.front] == sorted(
        each.score.metric for each in result.front
    )  # type: ignore[type-var]
    folder = result.export(tmp_path / "exported")
    loaded = autoprune.load(folder, model=Named())
    pixels = images(10, 3).tensors[0]
    assert torch.equal(loaded(pixels)["logits"], best.model(pixels)["logits"])
    assert json.loads((folder / "score.json").read_text())["budget"] == {"params": "40%"}
    with pytest.raises(InputError, match="given in Python"):
        autoprune.load(folder)
    with pytest.raises(InputError, match="its loss or its metric"):
        autoprune.search(
            model, train=loaders[0], validation=loaders[1], metric=worse, goal="minimize", budget={"params": "40%"},
            objectives=("metric", "params"), target={"device": "cpu", "runtime": "eager"}, trials=4,
            out=tmp_path / "run", space={"default": {"techniques": ["structured"], "criteria": ["l1"]}},
            formats=["safetensors"], recovery={"epochs": 2, "learning_rate": 0.01},
        )  # fmt: skip


def test_a_known_result_is_judged_by_the_budget_of_now() -> None:
    dense = Score(0.9, flops=1000)
    judge = evaluator.Evaluator(study(), None, dense, None, Listens())  # type: ignore[arg-type]
    plan = Plan({"0:units": Choice("structured", 0.5)})
    assert judge.judge_known(plan, 3, Score(0.8, flops=400)).candidate.feasible
    late = judge.judge_known(plan, 4, Score(0.8, flops=600)).candidate
    assert (
        not late.feasible and late.reason == "flops 60%, over the limit of 55%" and late.number == 4
    )


def test_a_budget_that_is_missed_says_what_best_still_holds(tmp_path: Path) -> None:
    searched(tmp_path, trials=4)
    with pytest.raises(BudgetError, match="best still holds the artefact of an earlier search"):
        searched(tmp_path, budget={"flops": "0.1%"}, trials=4)
    assert (tmp_path / "best" / "model.safetensors").exists()


@pytest.mark.slow
def test_limits_on_a_further_target_are_measured_and_kept(tmp_path: Path) -> None:
    further = Target("cpu_onnxruntime")
    both = replace(
        study({"latency": "400%", "latency on cpu_onnxruntime": "0.1us"}), further=(further,)
    )
    with pytest.raises(
        BudgetError, match=r"latency on cpu_onnxruntime .* over the limit of 0.0001ms"
    ):
        run_search(both, Run(tmp_path / "never"))
    loose = {"flops": "55%", "latency on cpu_onnxruntime": "400%"}
    result = run_search(replace(study(loose), further=(further,)), Run(tmp_path / "loose"))
    assert result.best is not None
    assert result.best.score.on("cpu_onnxruntime").latency.ratio_high <= 4.0  # type: ignore[operator]
    record = json.loads((tmp_path / "loose" / "best" / "score.json").read_text())
    assert [target["name"] for target in record["further"]] == ["cpu_onnxruntime"]
    assert record["elsewhere"]["cpu_onnxruntime"]["latency_ms"] > 0


@pytest.mark.slow
def test_a_target_that_is_named_later_is_measured_then(tmp_path: Path) -> None:
    searched(tmp_path)
    for limit, keeps in (("0.1%", False), ("100%", True)):
        asked = replace(
            study({"size on cpu_onnxruntime": limit}), further=(Target("cpu_onnxruntime"),)
        )
        if keeps:
            best = commands.export_from(asked, Run(tmp_path), tmp_path / "exported").best
            assert best is not None and best.score.on("cpu_onnxruntime").size_bytes
        else:
            with pytest.raises(BudgetError, match="size on cpu_onnxruntime"):
                commands.export_from(asked, Run(tmp_path), tmp_path / "exported")


def test_figures_on_further_targets_are_completed_too() -> None:
    kept = Score(0.9, elsewhere={"a": Score(latency=LatencyFigures(ms=1.0))})
    fresh = Score(
        flops=5,
        elsewhere={
            "a": Score(latency=LatencyFigures(ms=2.0), size_bytes=7),
            "b": Score(size_bytes=9),
        },
    )
    found = kept.fill_from(fresh)
    assert (found.metric, found.flops) == (0.9, 5)
    assert found.on("a") == Score(latency=LatencyFigures(ms=1.0), size_bytes=7) and found.on(
        "b"
    ) == Score(size_bytes=9)
