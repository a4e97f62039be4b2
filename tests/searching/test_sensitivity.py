"""Sensitivities: kept in the run, shown as a table and as a plot."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from small_screening import screening
from small_search import Listens, quick

from autoprune.errors import MissingPackage
from autoprune.reporting.sensitivity import plot, record, table
from autoprune.run import Run
from autoprune.searching import commands
from autoprune.searching.proposing.sensitivity import Sensitivity
from autoprune.training.loop import Quality

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

__all__ = ["quick"]  # a fixture that every test here uses


def test_sensitivities_are_kept_and_shown(tmp_path: Path) -> None:
    given, run = screening({"flops": "55%"}), Run(tmp_path / "run")
    found = commands.sensitivity(given, run, ratios=(0.25, 0.75))
    names = {(row.variable, row.technique) for row in found.rows}
    assert names == {
        ("0:units", "structured"), ("3:units", "structured"), ("0:weights", "weight"), ("3:weights", "weight"),
    }  # fmt: skip
    assert len(found.rows) == 8 and all(row.loss > 0 and 0 <= row.metric <= 1 for row in found.rows)
    wide, narrow = (
        next(row for row in found.rows if row.variable == "3:units" and row.ratio == ratio)
        for ratio in (0.25, 0.75)
    )
    assert wide.loss < narrow.loss
    assert wide.latency is not None and narrow.latency is not None and 0 < narrow.latency < 1.5
    listener = Listens()
    again = commands.sensitivity(given, run, (0.25, 0.75), listener)
    assert again == found and listener.trained() == []
    shown = table(found)
    assert shown.row_count == 4 and [column.header for column in shown.columns] == [
        "decision", "technique", "-25%", "-75%",
    ]  # fmt: skip
    written = record(found)
    assert written["dense"]["metric"] == found.dense.metric and len(written["rows"]) == 8
    assert written["rows"][0]["loss"] == found.rows[0].loss


MAP = commands.Map(
    Quality(0.9, 0.1), "accuracy", [Sensitivity("0:units", "structured", 0.5, 0.4, 0.8, 0.7)]
)


def test_a_plot_has_a_curve_for_each_decision(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="plots are an extra")
    plot(MAP, tmp_path / "deep" / "page.html")
    page = (tmp_path / "deep" / "page.html").read_text()
    assert "0:units, structured" in page and "latency saved" in page


def test_a_plot_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingPackage, match="autoprune\\[plots\\]"):
        plot(MAP, tmp_path / "page.html")
