"""Files that earlier releases wrote must still load, with the same meaning."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

import autoprune
from autoprune import plugins
from autoprune.cli import app
from autoprune.plan import Choice, Plan
from autoprune.score import Score

GOLDEN = Path(__file__).parent / "golden"


def test_a_plan_of_version_1_loads() -> None:
    plan = Plan.from_json(json.loads((GOLDEN / "plan_v1.json").read_text()))
    assert plan.choices == {
        "conv1:units": Choice("structured", 0.5, "l1"),
        "fc:weights": Choice("sparse", 0.9, "taylor"),
    }
    assert plan.digest == "789cf9926c3481ad"


def test_a_score_of_version_1_loads() -> None:
    score = Score.from_json(json.loads((GOLDEN / "score_v1.json").read_text()))
    assert (score.metric, score.params, score.latency.ratio_high, score.uncounted) == (
        0.9972,
        76458,
        0.263,
        ("aten::sort",),
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole run: `autoprune search golden.yaml --out run`, then the same with `--budget flops=40%`."""
    for name in ("golden_net.py", "golden.yaml"):
        shutil.copy(GOLDEN / "run_v1" / name, tmp_path)
    with tarfile.open(GOLDEN / "run_v1" / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def dense(folder: Path) -> nn.Module:
    build = plugins.import_reference("golden_net:build", (folder.parent,))
    model: nn.Module = build().eval()
    return model


def ended(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("budget", ["", "flops=40%"])
def test_the_artefact_of_a_run_gives_the_outputs_that_were_recorded(run: Path, budget: str) -> None:
    best = run / budget / "best"
    model, kept = autoprune.load(best, model=dense(run)), load_file(best / "reference.safetensors")
    with torch.no_grad():
        found: Tensor = model(kept["input.0"])
    assert torch.allclose(found, kept["output.0"], atol=1e-5)
    assert (
        sum(each.numel() for each in model.parameters())
        == json.loads((best / "score.json").read_text())["params"]
    )


@pytest.mark.parametrize("number", [12, 13, 26, 27])
def test_a_recorded_plan_cuts_the_widths_that_were_recorded(run: Path, number: int) -> None:
    plan = Plan.from_json(json.loads((run / "trials" / str(number) / "plan.json").read_text()))
    smaller = autoprune.prune(dense(run), torch.randn(2, 1, 8, 8), plan)
    kept = load_file(run / "trials" / str(number) / "model.safetensors")
    shapes = {
        name: tensor.shape
        for name, tensor in smaller.state_dict().items()
        if "num_batches" not in name
    }
    assert shapes == {
        name: tensor.shape for name, tensor in kept.items() if "num_batches" not in name
    }


@pytest.mark.slow
def test_a_finished_run_answers_and_goes_on(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/*/model.safetensors")}
    answers = json.loads(ended("export", "run", "--trust", "--json"))["answers"]
    assert any(each["trained"] for each in answers) and any(not each["trained"] for each in answers)
    ended(
        "export",
        "run",
        "--budget",
        "flops=60%",
        "--format",
        "safetensors",
        "--out",
        "again",
        "--trust",
        "--quiet",
    )
    score = json.loads((run.parent / "again" / "score.json").read_text())
    assert score["trial"] in (12, 13, 26, 27) and score["flops"] <= 0.6 * score["dense"]["flops"]
    result = json.loads(ended("search", "golden.yaml", "--out", "run", "--json"))
    assert result["best"]["feasible"] and before == {
        path: path.stat().st_mtime_ns for path in before
    }
