"""Any file of a finished run damaged in any way: the search goes on and mends it, or says one paragraph."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from damages import DAMAGES, a_folder, torn
from safetensors.torch import load_file, save_file
from small_search import Listens, quicker, searched, study

from autoprune.errors import AutopruneError
from autoprune.run import Run
from autoprune.searching.commands import export_from
from autoprune.searching.evaluating.integrity import intact

PLACES = (
    "study.journal",
    "front.json",
    "trials.csv",
    "dense/score.json",
    "dense/model.safetensors",
    "trials/*/plan.json",
    "trials/*/model.safetensors",
    "trials/*/score.json",
    "cache/*/*.json",
    "best/score.json",
    "best/verification.json",
    "best/study.yaml",
    "study.yaml",
)


QUICK = {(place, DAMAGES[index % len(DAMAGES)]) for index, place in enumerate(PLACES)}


CASES = [
    pytest.param(place, damage, marks=[] if (place, damage) in QUICK else pytest.mark.slow)
    for place in PLACES
    for damage in DAMAGES
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quicker(patch)
        searched(folder)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicker(monkeypatch)


@pytest.mark.promise("damaged-files")
@pytest.mark.parametrize(("place", "damage"), CASES)
def test_a_damaged_file_is_mended_or_told(place: str, damage, whole: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for path in sorted(folder.glob(place)):
        damage(path)
    try:
        result = searched(folder)
        assert result.front and (folder / "front.json").is_file()
    except AutopruneError as told:
        assert "\n" not in str(told) and len(str(told)) <= 700
    except OSError as told:  # the command line tells these in one line, with the file's name
        assert damage is a_folder and told.filename is not None
    try:
        export_from(study(), Run(folder), tmp_path / "made")
    except AutopruneError as told:
        assert len(str(told)) <= 700


@pytest.mark.promise("damaged-files")
def test_weights_that_are_not_numbers_are_noticed_and_trained_again(
    whole: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    weights = folder / "dense" / "model.safetensors"
    before = load_file(weights)
    assert intact(folder / "dense")
    first = next(name for name, tensor in before.items() if tensor.is_floating_point())
    save_file(before | {first: torch.full_like(before[first], float("nan"))}, weights)
    assert not intact(folder / "dense")
    listener = Listens()
    searched(folder, listener)
    after = load_file(weights)
    assert any("dense.damaged-1" in note for note in listener.notes) and intact(folder / "dense")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.promise("damaged-files")
def test_a_trial_whose_model_is_damaged_is_named(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    damaged = max(folder.glob("trials/*/model.safetensors"))
    torn(damaged)
    listener = Listens()
    searched(folder, listener)
    assert any(
        note.endswith(f"the models of the trials {damaged.parent.name}") for note in listener.notes
    )
    assert not any("damaged" in note for note in _notes(whole, tmp_path / "second"))


def _notes(whole: Path, place: Path) -> list[str]:
    """What is said where a run that is whole goes on."""
    listener = Listens()
    searched(Path(shutil.copytree(whole, place)), listener)
    return listener.notes
