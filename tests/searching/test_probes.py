"""Techniques measured alone: what moves no figure leaves the space, and the journal says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_screening import screening, searched
from small_search import Listens, quick, rows

from autoprune.searching.callback import Quiet
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.evaluating.probes import probe_techniques
from autoprune.searching.optuna_study.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

__all__ = ["quick"]  # a fixture that every test here uses


@pytest.mark.promise("probes")
@pytest.mark.parametrize(
    ("budget", "weights"),
    [({"flops": "55%"}, False), ({"nonzero_params": "55%"}, True), ({"metric_drop": "1"}, True)],
)
def test_a_technique_that_moves_no_figure_leaves_the_space(
    prepared: Prepared, budget: dict[str, str], weights: bool
) -> None:
    objectives = ("metric",) if "metric_drop" in budget else ("metric", next(iter(budget)))
    found, probes = probe_techniques(screening(budget, objectives=objectives), prepared, Quiet())
    assert any(each.name.endswith(":weights") for each in found.variables) == weights
    assert any(each.name.endswith(":units") for each in found.variables)
    left = {each.technique: each.verdict for each in probes if each.left}
    assert set(left) == (set() if weights else {"weight"})
    assert all(
        "weight: no gain" in text and "100.0% of dense" in text and "not searched" in text
        for text in left.values()
    )
    assert [each.technique for each in probes] == (
        [] if "metric_drop" in budget else ["structured", "weight"]
    )


@pytest.mark.promise("probes")
def test_probes_are_trials_of_the_journal_that_count_for_nothing(tmp_path: Path) -> None:
    listener = Listens()
    result = searched(tmp_path, listener)
    table = rows(tmp_path)
    probes = [row for row in table if row["stage"] == "probe"]
    assert [row["techniques"] for row in probes] == ["structured", "weight"] and len(
        table
    ) == 12 + 2 + 2
    for row, share in zip(probes, (0.5, 1.0), strict=True):
        assert row["origin"] == f"probe of {row['techniques']}" and row["state"] == "COMPLETE"
        assert float(row["latency_ratio"]) > 0 and int(row["flops"]) <= share * int(
            table[0]["flops"]
        )
        assert not row["feasible"] and not row["metric"] and row["plan"]
    assert (
        "structured: a gain" in probes[0]["reason"]
        and "so it is not searched" in probes[1]["reason"]
    )
    assert probes[1]["reason"] in listener.notes
    front = json.loads((tmp_path / "front.json").read_text())
    assert not {each["trial"] for each in front["front"]} & {int(row["trial"]) for row in probes}
    assert all(each.stage in ("dense", "trained") for each in result.front)
    searched(tmp_path)
    # kept, and not repeated
    assert [row["plan"] for row in rows(tmp_path)] == [row["plan"] for row in table]
    searched(tmp_path, budget={"flops": "30%"})
    longer = rows(tmp_path)[: len(table)]
    assert [(row["stage"], row["plan"]) for row in longer] == [
        (row["stage"], row["plan"]) for row in table
    ]


@pytest.mark.promise("probes")
def test_a_run_whose_journal_has_no_probes_goes_on_and_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(Journal, "keep_probes", lambda self, probes: None)
        searched(tmp_path)
    before = rows(tmp_path)
    searched(tmp_path)
    after = rows(tmp_path)
    assert [row["plan"] for row in after[: len(before)]] == [row["plan"] for row in before]
    assert [row["stage"] for row in after[len(before) :]] == ["probe", "probe"]
