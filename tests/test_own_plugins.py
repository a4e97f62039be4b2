"""A plug-in from a user's own file is one among the bundled: one file, and no edit elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_search import Listens, quick, study

from autoprune import plugins
from autoprune.run import Run
from autoprune.score import Candidate
from autoprune.searching.search import search
from autoprune.space import Options, Space

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
__all__ = ["quick"]  # a fixture that every test here uses

OWN = '''
from dataclasses import dataclass

from torch import Tensor

from autoprune.group import Group
from autoprune.pruning.ranking import keep_most_important

__all__ = ["Pairs"]


@dataclass(frozen=True)
class Pairs:
    """Units go two by two."""

    level = "units"
    gradual = False

    def fits(self, group: Group) -> str | None:
        return None if group.size % 2 == 0 else f"{group.name} has {group.size} units, an odd number"

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        pairs = keep_most_important(importance.view(-1, 2).sum(1), ratio)
        return pairs.repeat_interleave(2)
'''


@pytest.fixture
def technique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_pairs.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_pairs:Pairs"


def test_a_units_technique_of_the_users_own_gets_proposals_and_ships(
    technique: str, tmp_path: Path
) -> None:
    space = Space(Options((technique,), (0.0, 0.9), ("l1",)), {"6": Options((), (0.0, 0.9), ())})
    given = study(trials=8, finalists=1)
    listener = Listens()
    result = search(type(given)(**{**vars(given), "space": space}), Run(tmp_path / "run"), listener)
    screened: list[Candidate] = [each for each in listener.ended if each.stage == "screened"]
    uniform = [
        each
        for each in screened
        if len({choice.ratio for _, choice in each.plan}) == 1 and len(each.plan) == 2
    ]
    assert uniform, "no uniform cut of all units was proposed"
    assert all(choice.technique == technique for each in screened for _, choice in each.plan)
    assert result.best is not None and result.best.score.flops <= 0.55 * (result.dense.flops or 0)  # type: ignore[operator]


def test_techniques_of_a_level_are_found_by_what_they_say() -> None:
    assert set(plugins.of_level("units")) == {"structured", "neuron", "heads"}
    assert set(plugins.of_level("blocks")) == {"depth"}
