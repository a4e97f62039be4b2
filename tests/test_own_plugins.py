"""A plug-in from a user's own file is one among the bundled: one file, and no edit elsewhere."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_search import TASK, Listens, build, quick, study
from torch import nn

import autoprune
from autoprune import plugins
from autoprune.exporting.load import load
from autoprune.exporting.verify import verify
from autoprune.run import Run
from autoprune.score import Candidate
from autoprune.searching.search import search
from autoprune.space import Options, Space
from autoprune.target import Target
from autoprune.testing import (
    FakeRuntime,
    check_criterion,
    check_format,
    check_runtime,
    check_technique,
)

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


CRITERION = '''
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Root"]


@dataclass(frozen=True)
class Root:
    """Square roots of magnitudes: many middling weights count for more than one that is large."""

    scores = "elements"
    needs = ()
    comparable = False

    def score(self, weight: Tensor) -> Tensor:
        return weight.abs().sqrt()
'''

FORMAT = '''
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.formats._tracing import outputs_of
from autoprune.task import Inputs

__all__ = ["Npz"]


@dataclass(frozen=True)
class Npz:
    """Weights as NumPy arrays."""

    filename: str = "model.npz"

    def save(self, model: nn.Module, inputs: Inputs, path: Path) -> None:
        arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    def load(
        self, path: Path, template: Callable[[], nn.Module] | None
    ) -> Callable[[Inputs], list[Tensor]]:
        try:
            with np.load(io.BytesIO(path.read_bytes())) as file:
                arrays = {name: torch.from_numpy(array) for name, array in file.items()}
        except Exception as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        model = template().eval()
        model.load_state_dict(arrays)

        @torch.no_grad()
        def run(inputs: Inputs) -> list[Tensor]:
            return outputs_of(inputs.call(model))

        return run
'''


def own(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> Any:
    """A user's file, which can be imported."""
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


def test_a_criterion_of_the_users_own_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_criterion(own(tmp_path, monkeypatch, "own_root", CRITERION).Root())
    space = Space(Options(("structured",), (0.0, 0.9), ("own_root:Root", "l2")))
    listener = Listens()
    result = search(replace(study(trials=8, finalists=1), space=space), Run(tmp_path), listener)
    used = {choice.criterion for trial in listener.ended for _, choice in trial.plan}
    assert "own_root:Root" in used and result.best is not None
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    model[0].weight.data = torch.tensor([[9.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    model[2].weight.data.fill_(1.0)
    for criterion, kept in (("l1", [9.0, 0.0, 0.0, 0.0]), ("own_root:Root", [2.0] * 4)):
        smaller = autoprune.prune(model, torch.randn(2, 4), 0.5, criterion=criterion)
        assert smaller[0].weight.tolist() == [kept]


def test_a_runtime_of_the_users_own_is_what_is_measured(tmp_path: Path) -> None:
    name = "autoprune.testing:FakeRuntime"
    check_runtime(name)
    given = study({"latency": "80%"}, trials=8, finalists=1, objectives=("metric", "latency"))
    result = search(replace(given, target=Target("fake", runtime=name)), Run(tmp_path), None)
    assert result.best is not None
    model = load(result.run.best, build)
    known = FakeRuntime.latency_s(model) / FakeRuntime.latency_s(build())
    assert known < 0.8 and result.best.score.latency.ratio == pytest.approx(known, rel=0.1)


def test_a_format_of_the_users_own_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_format(own(tmp_path, monkeypatch, "own_npz", FORMAT).Npz())
    given = replace(study(trials=4), formats=("safetensors", "own_npz:Npz"))
    result = search(given, Run(tmp_path / "run"), None)
    assert result.best is not None
    with np.load(result.run.best / "model.npz") as arrays:
        shipped = load(result.run.best, build).state_dict()
        assert all(np.array_equal(arrays[name], tensor) for name, tensor in shipped.items())
    checks = verify(result.run.best, task=TASK)["checks"]
    passed = {check["name"]: check["passed"] for check in checks}
    assert passed["outputs of own_npz:Npz"] is True, passed


def test_what_breaks_a_law_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    negative = CRITERION.replace("weight.abs().sqrt()", "weight")
    with pytest.raises(AssertionError, match="a score is negative"):
        check_criterion(own(tmp_path, monkeypatch, "own_wrong", negative).Root())
    greedy = OWN.replace("ratio)\n", "min(1.0, 2 * ratio))\n")
    with pytest.raises(AssertionError, match="removes"):
        check_technique(own(tmp_path, monkeypatch, "own_greedy", greedy).Pairs())
    forgetful = FORMAT.replace("model.load_state_dict(arrays)", "pass")
    with pytest.raises(AssertionError, match="outputs at batch 1 are off by"):
        check_format(own(tmp_path, monkeypatch, "own_forgets", forgetful).Npz())


def test_techniques_of_a_level_are_found_by_what_they_say() -> None:
    assert set(plugins.of_level("units")) == {"structured", "neuron", "heads"}
    assert set(plugins.of_level("blocks")) == {"depth"}
