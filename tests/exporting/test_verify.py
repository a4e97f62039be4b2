"""`verify` holds every figure of score.json and every limit to what it finds, or says that it could not."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from artefacts import MINE, WIDTHS, change, section
from damages import DAMAGES
from marks import slow_but
from typer.testing import CliRunner

from autoprune.budget import Budget
from autoprune.cli import app
from autoprune.errors import ModelError
from autoprune.exporting.checks import checks
from autoprune.exporting.export import Finished, export
from autoprune.exporting.recorded import Recorded
from autoprune.measuring import measure, resources
from autoprune.measuring.timing.latency import Latency
from autoprune.plan import Choice, Plan
from autoprune.pruning.surgery import shrink
from autoprune.score import Score
from autoprune.searching.evaluating.on_request import compress_score
from autoprune.space import Space
from autoprune.study import Settings, Study
from autoprune.target import Target
from autoprune.task import Recipe
from autoprune.training import loop, tasks

pytestmark = pytest.mark.promise("verify")

TESTED = MINE.replace(
    '"validation": torch.utils.data.TensorDataset(x[:50], y[:50])}',
    '"validation": torch.utils.data.TensorDataset(x[:50], y[:50]), '
    '"test": torch.utils.data.TensorDataset(x[50:], y[50:])}',
)
FOUND = Latency(0.4, 0.39, 0.41, 0.5, 0.49, 0.51, 400, True, 0.5, 0.8, 5, dense_ms=0.8)
BUDGET = {
    "latency": "60%", "throughput": "150%", "memory": "90%", "flops": "50%", "size": "1MB", "size_compressed": "1MB",
    "metric_drop": "1", "latency on cpu_onnxruntime": "0.6ms",
}  # fmt: skip


def measured(artefact: Any, *args: Any, **options: Any) -> dict[str, Any]:
    """Memory by the parameters alone; nothing counts the energy."""
    if "energy" in args[-1]:
        raise ModelError("energy cannot be measured: this machine has no counter")
    size = (
        len(artefact)
        if isinstance(artefact, bytes)
        else sum(each.numel() for each in artefact.parameters())
    )
    return {"memory": 100_000 + size}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact with every figure recorded, on two targets."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("user")
    (home / "mine_verified.py").write_text(TESTED)
    given = section("mine_verified:build") | {"data": "mine_verified:data"}
    task = tasks.build(given, [home], Recipe(batch_size=32, device="cpu"))
    target, further = Target("cpu_eager", runtime="eager"), Target()
    resolved = {"version": 1, "name": "tiny", "task": given, "target": target.to_json()}
    study = Study(
        "tiny", task, Space(), target, Budget.parse(BUDGET), Settings(), Recipe(),
        formats=(), further=(further,), folder=home, resolved=resolved,
    )  # fmt: skip
    torch.manual_seed(0)
    dense = task.build().eval()
    model = shrink.resize(dense, WIDTHS).eval()
    whole = Latency(0.8, 0.79, 0.81, 1.0, 1.0, 1.0, 400, True, 1.0, 1.6, 5)

    def score(module: torch.nn.Module, took: Latency) -> Score:
        quality = loop.evaluate(module, task, "validation", device="cpu")
        own = measure.costs(module, task.calibration(1)).evolve(
            metric=quality.metric, loss=quality.loss, resources={"energy": 3.0, **measured(module, ["memory"])},
            test_metric=loop.evaluate(module, task, "test", device="cpu").metric,
        )  # fmt: skip
        own = measure.with_latency(own.evolve(size_bytes=measure.size_bytes(module)), took, 1)
        there = measure.artefact(module, task.calibration(2), further)
        other = own.evolve(size_bytes=len(there), metric=None, loss=None, test_metric=None)
        other = other.evolve(resources=measured(there, ["memory"]))
        return compress_score(module, None, own, ("size_compressed",)).evolve(
            elsewhere={further.name: other}
        )

    dense_score = score(dense, whole)
    plan = Plan({"conv1:units": Choice("structured", 0.875)})
    finished = Finished(plan, model, dense, score(model, FOUND).beside(dense_score), dense_score, 7)
    folder = tmp_path_factory.mktemp("made") / "best"
    export(study, finished, folder)
    return folder


@pytest.fixture(autouse=True)
def repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose figures repeat: a check of each record, not of this machine's noise."""
    monkeypatch.setattr(measure, "time_artefact", lambda *args, **options: FOUND)
    monkeypatch.setattr(resources, "measure_resources", measured)


@pytest.fixture(scope="module")
def whole(made: Path) -> Recorded:
    return Recorded(made)


def failing(whole: Recorded, edit: Callable[[dict[str, Any]], object]) -> dict[str, str]:
    """The checks that fail with another record, but those of outputs, which have no figure in it."""
    record = json.loads(json.dumps(whole.record))
    edit(record)
    changed = copy.copy(whole)
    changed.__dict__ = {**vars(whole), "record": record}
    for name in ("score", "dense_score", "target", "further", "budget"):
        changed.__dict__.pop(name, None)
    failed = {}
    for name, check in checks(changed):
        if not name.startswith("outputs"):
            try:
                check()
            except Exception as problem:  # as verify itself takes it
                failed[name] = str(problem)
    return failed


def scaled(record: dict[str, Any], path: str, factor: float) -> None:
    *inner, last = path.split(".")
    place = record
    for key in inner:
        place = place[key]
    place[last] = type(place[last])(place[last] * factor)


TIMES = ("latency_ms", "latency_ms_low", "latency_ms_high", "latency_ms_p90", "latency_ms_p99")
RATIOS = (
    "latency_ratio",
    "latency_ratio_low",
    "latency_ratio_high",
    "throughput",
    "throughput_low",
)
COUNTS = ("flops", "params", "nonzero_params", "size_bytes", "resources.memory")
OWN = ("metric", "loss", "test_metric", "size_compressed_bytes", *COUNTS, *TIMES, *RATIOS)
DENSE = ("flops", "params", "size_bytes", "resources.memory", *TIMES[:3], *RATIOS)
FIGURES = [
    *OWN,
    *(f"dense.{name}" for name in DENSE),
    *(f"elsewhere.cpu_onnxruntime.{name}" for name in (*COUNTS, *TIMES, *RATIOS)),
    *(f"dense.elsewhere.cpu_onnxruntime.{name}" for name in DENSE),
]


@pytest.mark.parametrize("factor", slow_but([8.0], [8.0, 0.1]), ids=["more", "less"])
@pytest.mark.parametrize("path", FIGURES)
def test_no_single_figure_can_be_another(whole: Recorded, path: str, factor: float) -> None:
    factor = 0.3 if path in ("metric", "test_metric") and factor > 1 else factor
    failed = failing(whole, lambda record: scaled(record, path, factor))
    assert any(
        path.rpartition(".")[2].removesuffix("_low").removesuffix("_high") in text
        for text in failed.values()
    )


def test_what_is_recorded_passes(whole: Recorded) -> None:
    assert failing(whole, lambda record: None) == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uncounted", ["aten::sort"]),
        ("goal", "minimize"),
        ("target", {"threads": 3}),
        ("machine", None),
    ],
)
def test_nor_what_stands_beside_them(whole: Recorded, key: str, value: Any) -> None:
    def edit(record: dict[str, Any]) -> None:
        if value is None:
            del record[key]
        else:
            record[key] = record[key] | value if isinstance(value, dict) else value

    assert any(key in text for text in failing(whole, edit).values())


@pytest.mark.parametrize(
    ("limit", "value"),
    [("latency", "45%"), ("latency", "0.35ms"), ("throughput", "250%"), ("throughput", "3000/s"), ("memory", "20%"),
     ("memory", "50KB"), ("latency on cpu_onnxruntime", "30%"), ("memory on cpu_onnxruntime", "50KB"), ("flops", "1%"),
     ("size", "1KB"), ("size_compressed", "1KB"), ("metric_drop", "0")],
)  # fmt: skip
def test_every_limit_is_measured_again(whole: Recorded, limit: str, value: str) -> None:
    """Even where the recorded figures would keep it."""

    def edit(record: dict[str, Any]) -> None:
        record["budget"] = {limit: value}
        if limit == "metric_drop":
            record["dense"]["metric"] = record["metric"] + 0.5

    where, checked = limit.partition(" on ")[2], ("latency", "memory", "budget")
    failed = failing(whole, edit)
    assert failed and all(name.partition(" on ")[0] in checked for name in failed)
    if limit.startswith(("memory", "latency")):
        assert limit.partition(" on ")[0] + (f" on {where}" if where else "") in failed


def test_what_cannot_be_checked_is_listed_with_the_reason(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "best"))
    change(folder / "score.json", lambda record: record.update(machine="another"))
    shown = CliRunner().invoke(app, ["verify", str(folder), "--trust"])
    result = json.loads((folder / "verification.json").read_text())
    unchecked = result["unchecked"]
    assert shown.exit_code == 0 and result["passed"] and result["open"] == []
    assert "no counter" in unchecked["energy"] and "weights are not" in unchecked["dense.metric"]
    assert "weights are not" in unchecked["metric_drop"] and "trial" in unchecked
    assert all(
        "another machine" in unchecked[key] for key in ("latency", "latency on cpu_onnxruntime")
    )
    assert (
        "unchecked" in shown.stdout
        and "energy" in shown.stdout
        and "another machine" in shown.stdout
    )


def test_a_busy_machine_is_no_failure(whole: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = replace(
        FOUND,
        crowded=True,
        ratio=0.58,
        ratio_low=0.56,
        ratio_high=0.6,
        ms=0.9,
        p99_ms=20.0,
        dense_ms=2.0,
    )
    monkeypatch.setattr(measure, "time_artefact", lambda *args, **options: busy)
    assert failing(whole, lambda record: None) == {}


def test_one_odd_measurement_is_no_failure(
    whole: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def timed(*args: Any, **options: Any) -> Latency:
        asked.append(options["processes"])
        return (
            FOUND
            if options["processes"] > 5
            else replace(FOUND, ratio=0.9, ratio_low=0.89, ratio_high=0.91)
        )

    monkeypatch.setattr(measure, "time_artefact", timed)
    assert failing(whole, lambda record: None) == {} and asked == [5, 15, 5, 15]


def test_a_fake_ends_with_status_4(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "best"))
    change(
        folder / "score.json", lambda record: record.update(throughput=1e6, resources={"memory": 1})
    )
    ended = CliRunner().invoke(app, ["verify", str(folder), "--trust"])
    assert ended.exit_code == 4
    record = json.loads((folder / "verification.json").read_text())
    said = {
        check["name"]: check["detail"] for check in record["checks"] if check["passed"] is False
    }
    assert list(said) == ["figures", "memory"]
    assert "throughput 2500, recorded 1e+06" in said["figures"] and "memory" in said["memory"]


def test_records_of_before_still_pass(whole: Recorded) -> None:
    def edit(record: dict[str, Any]) -> None:
        del record["machine"]
        record.update(version=1, latency_ms=0.5, latency_ms_low=0.4, latency_ms_high=0.55)

    assert failing(whole, edit) == {}


FILES = (
    "study.yaml",
    "plan.json",
    "score.json",
    "reference.safetensors",
    "model.safetensors",
    "verification.json",
)
COMMANDS = (["verify"], ["measure", "--layers", "0"])


CASES = [
    pytest.param(name, damage, command, marks=[] if (row + column) % 5 == 0 else pytest.mark.slow)
    for row, name in enumerate(FILES)
    for column, damage in enumerate(DAMAGES)
    for command in COMMANDS
]


@pytest.mark.promise("damaged-files")
@pytest.mark.parametrize(("name", "damage", "command"), CASES)
def test_a_damaged_artefact_is_a_paragraph(
    made: Path, tmp_path: Path, name: str, damage: Callable[[Path], None], command: list[str]
) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "best"))
    (folder / "verification.json").write_text(
        '{"version": 1, "passed": true, "open": [], "checks": []}'
    )
    damage(folder / name)
    ended = CliRunner().invoke(app, [*command, str(folder), "--trust"])
    assert isinstance(ended.exception, SystemExit | None), ended.exception
    needed = name in (
        "study.yaml",
        "plan.json",
        "score.json",
        "reference.safetensors",
        "model.safetensors",
    )
    assert ended.exit_code in ((2, 4) if needed and command == ["verify"] else (0, 2))
    assert len(ended.stderr) <= 600 and "Traceback" not in ended.output
