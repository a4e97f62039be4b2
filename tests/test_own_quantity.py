"""A quantity of the user's own: one file, and it is measured, limited, shown and verified."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoprune.cli import app

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

QUANTITY = '''
import time
from collections.abc import Callable
from dataclasses import dataclass

from autoprune.target import Target

__all__ = ["Cpu"]


@dataclass(frozen=True)
class Cpu:
    """Milliseconds that a call takes of all cores together."""

    units = {"ms": 1.0, "s": 1000.0}
    example = "80% (of dense) or 3ms"
    title = "CPU time of a call"
    tolerance = 5.0  # the machine is shared

    def unavailable(self, target: Target) -> str | None:
        return None if target.device == "cpu" else f"{target.device} is no CPU"

    def begin(self, target: Target) -> Callable[[Callable[[], object]], float]:
        def measure(call: Callable[[], object]) -> float:
            began = time.process_time()
            for _ in range(50):
                call()
            return (time.process_time() - began) / 50 * 1e3

        return measure
'''


def test_a_quantity_of_the_users_own_is_measured_limited_shown_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mine.py", "mine.yaml"):
        shutil.copy(Path(__file__).parent / "own" / name, tmp_path)
    (tmp_path / "own_cpu.py").write_text(QUANTITY)
    monkeypatch.chdir(tmp_path)
    sets = ["search.finalists=1", "task.training.epochs=2", "recovery.epochs=1"]
    options = [text for value in sets for text in ("--set", value)]
    limits = ["--budget", "flops=60%", "--budget", "own_cpu:Cpu=1000%"]
    command = ["search", "mine.yaml", "--trials", "2", "--out", "run", *options, *limits]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    score = json.loads(Path("run/best/score.json").read_text())
    assert score["resources"]["own_cpu:Cpu"] > 0 and score["dense"]["resources"]["own_cpu:Cpu"] > 0
    assert score["budget"] == {"flops": "60%", "own_cpu:Cpu": "1000%"}
    checks = json.loads(Path("run/best/verification.json").read_text())["checks"]
    assert {check["name"]: check["passed"] for check in checks}["own_cpu:Cpu"] is True
    with open("run/trials.csv") as file:
        assert any("own_cpu:Cpu=" in row["resources"] for row in csv.DictReader(file))
    assert "own_cpu:Cpu" in ended.stdout
    told = CliRunner().invoke(app, ["verify", "run/best"])
    assert told.exit_code == 2 and "own_cpu:Cpu" in told.output


def test_an_unknown_quantity_is_told(tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["check", "digits", "--budget", "enrgy=50%"])
    assert ended.exit_code == 2 and "did you mean 'energy'" in ended.output.replace("\n", " ")
