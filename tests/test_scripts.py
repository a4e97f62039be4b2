"""The scripts that make the README's figures can be started."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = [
    each
    for each in (ROOT / "scripts" / "benchmarks").iterdir()
    if (each / "__main__.py").exists() or each.suffix == ".py"
]


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS))
def test_a_benchmark_says_what_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.syspath_prepend(ROOT)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"scripts.benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out


SMOKE = {  # the least of each that makes a figure
    "check": ["--blocks", "2", "--size", "8"],
    "coverage": ["--only", "own/lstm_1", "--tool", "autoprune", "--results", "rows.jsonl"],
    "digits": ["--seeds", "0", "--trials", "4", "--out", "runs", "--results", "digits.json"],
    "lowering": ["--only", "mlp 1x1x768*", "--out", "rows.jsonl"],
    "measuring": ["--only", "flops", "--size", "32", "--plans", "2", "--runtimes", "eager"],
    "predictor": ["--only", "small_vit", "--parts", "predict", "--profile-s", "3", "--most", "6",
                  "--plans", "2"],
    "records": ["--trials", "20"],
    "repair": ["--plans", "1", "--epochs", "1", "--dense-epochs", "1", "--images", "64"],
    "search": ["--tasks", "digits", "--budgets", "0.5", "--methods", "uniform8", "--out", "runs"],
    "sparse": ["--quick", "--ratios", "0.5", "--results", "sparse.json"],
}  # fmt: skip


def test_every_benchmark_has_a_smoke_run() -> None:
    assert set(SMOKE) == {path.stem for path in BENCHMARKS if path.stem != "__init__"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOKE)
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"scripts.benchmarks.{name}", *SMOKE[name]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    ended = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert any(character.isdigit() for character in ended.stdout)
