"""A search on recorded figures repeats itself: same trials, same plans, same best, nothing measured."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from small_search import quick, study

from autoprune import config
from autoprune.errors import InputError, StudyError
from autoprune.measuring import measure, resources
from autoprune.measuring.timing.latency import Latency
from autoprune.plan import Choice, Plan
from autoprune.run import Run
from autoprune.searching.evaluating.preparation import prepare
from autoprune.searching.search import Result
from autoprune.searching.search import search as run_search
from autoprune.target import Target

__all__ = ["quick"]  # a fixture that every test here uses
pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.promise("recorded"),
]

BUDGET: Mapping[str, Any] = {"latency": "90%", "flops": "55%", "memory": "150%"}


def searched(folder: Path, source: Path | None = None) -> Result:
    own = study(dict(BUDGET), trials=8, finalists=2, objectives=("metric", "latency"))
    target = replace(own.target, recorded="" if source is None else str(source))
    Run.write_yaml(
        folder / "study.yaml", {"version": 1, "name": "small", "target": target.in_study()}
    )
    return run_search(replace(own, target=target), Run(folder))


def journal(folder: Path) -> list[tuple[Any, ...]]:
    """Every trial, all that is told of it but its time."""
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    )
    (name,) = optuna.get_all_study_names(storage=storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    return [
        (
            each.number,
            each.state,
            each.params,
            each.values,
            {key: value for key, value in each.user_attrs.items() if key != "seconds"},
        )
        for each in trials
    ]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A search on a machine whose figures never come twice."""
    noise = random.Random()

    def size(model: Any) -> int:
        return sum(each.numel() for each in model.parameters())

    def timed(candidate: Any, dense: Any, *args: Any, **options: Any) -> Latency:
        ms = noise.uniform(0.9, 1.1)
        if dense is None:
            return Latency(ms, 0.99 * ms, 1.01 * ms, None, None, None, 40, True)
        ratio = (0.2 + 0.8 * size(candidate) / size(dense)) * noise.uniform(0.97, 1.03)
        return Latency(
            ms * ratio, ms * ratio, ms * ratio, ratio, 0.99 * ratio, 1.01 * ratio, 40, True
        )

    def measured(artefact: Any, inputs: Any, target: Any, wanted: Any) -> dict[str, Any]:
        return {"memory": round(1e6 * noise.uniform(0.9, 1.1))} if "memory" in wanted else {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "time_artefact", timed)
        patch.setattr(resources, "measure_resources", measured)
        patch.setattr(
            sys.modules["autoprune.searching.winner"], "verify_in_fresh_process", lambda *given: {}
        )
        folder = tmp_path_factory.mktemp("recorded")
        return folder, searched(folder)


def refused(*args: Any, **options: Any) -> Any:
    raise AssertionError("nothing is to be measured")


def test_a_search_is_repeated_from_what_it_recorded(
    recorded: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = recorded
    monkeypatch.setattr(measure, "time_artefact", refused)
    monkeypatch.setattr(resources, "measure_resources", refused)
    second = searched(tmp_path / "again", folder)
    third = searched(tmp_path / "chained", tmp_path / "again")
    assert len(journal(folder)) >= 8
    assert journal(folder) == journal(tmp_path / "again") == journal(tmp_path / "chained")
    assert first.best is not None and first.best == second.best == third.best
    assert first.front == second.front and first.dense == second.dense == third.dense


def test_what_was_not_recorded_is_predicted_and_says_so_or_is_named(
    recorded: tuple[Path, Result], tmp_path: Path
) -> None:
    folder, _ = recorded
    own = study(dict(BUDGET), objectives=("metric", "latency"))
    prepared = prepare(replace(own, target=replace(own.target, recorded=str(folder))))
    (group,) = [
        each for each in prepared.coupling.groups if each.level == "units" and not each.refusal
    ][:1]
    pruned = prepared.cut_by_magnitude(Plan({group.key: Choice("structured", 0.125)}))
    with pytest.raises(InputError, match="has not measured the memory of this plan"):
        prepared.costs.latency(pruned, prepared.costs.score(pruned))
    own = study({"latency": "90%"}, objectives=("metric", "latency"))
    prepared = prepare(replace(own, target=replace(own.target, recorded=str(folder))))
    score = prepared.costs.latency(pruned, prepared.costs.score(pruned))
    assert any(text.startswith("latency was predicted") for text in score.unavailable)
    assert score.latency.ratio is not None and 0 < score.latency.ratio < 2
    with pytest.raises(InputError, match="has not measured anything of this model"):
        prepare(replace(own, target=replace(own.target, recorded=str(tmp_path))))


def test_a_recorded_target_is_that_of_its_run(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    measured = Target("mine", runtime="eager", threads=2, batch=4)
    Run.write_yaml(run / "study.yaml", {"target": measured.to_json()})
    text = "version: 1\ntask: {model: zoo:digits_cnn, data: zoo:digits}\ntarget: {runtime: recorded, from: runs/first}\n"
    (tmp_path / "study.yaml").write_text(text)
    read = config.read(tmp_path / "study.yaml")
    found = read.resolved()["target"]
    assert found == {**measured.to_json(), "runtime": "recorded", "from": str(run)}
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(read.resolved()))
    assert config.read(again).resolved()["target"] == found
    for wrong, said in (
        ("{runtime: recorded, from: none}", "there is no run 'none'"),
        ("{runtime: recorded}", "needs the run that it answers from"),
        ("{runtime: eager, from: runs/first}", "from is of the runtime recorded alone"),
        (
            "{runtime: recorded, from: runs/first, threads: 1}",
            "threads is 1, and .* was measured with 2",
        ),
    ):
        (tmp_path / "wrong.yaml").write_text(
            text.replace("{runtime: recorded, from: runs/first}", wrong)
        )
        with pytest.raises(StudyError, match=f"line 3.*{said}"):
            config.read(tmp_path / "wrong.yaml")
