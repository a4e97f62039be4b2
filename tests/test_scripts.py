"""The scripts that make the README's figures can be started."""

from __future__ import annotations

import runpy
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
