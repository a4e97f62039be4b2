"""Code that only a folder's records name runs nowhere unless --trust is given, and nothing is fetched."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from autoprune import cli, plugins
from autoprune.errors import InputError
from autoprune.exporting.load import load
from autoprune.exporting.trust import dangers
from autoprune.training import tasks

MARKS = """
from pathlib import Path
Path({mark!r}).touch()
def build(): raise RuntimeError("built")
data = loss = metric = adapter = Runtime = Form = Cut = Score = Run = build
"""


def study(**task: Any) -> dict[str, Any]:
    training = {"epochs": 1, "batch_size": 8, "device": "cpu"}
    given = {
        "model": "zoo:digits_cnn",
        "data": "zoo:digits",
        "loss": "cross_entropy",
        "training": training,
    }
    return {"version": 1, "name": "tiny", "task": given | task}


PLACES: dict[str, dict[str, Any]] = {
    "model": study(model="marks:build"),
    "model with arguments": study(model={"name": "marks:build", "args": {"width": 3}}),
    "model of the zoo by another's name": study(model="zoo:marks:build"),
    "data": study(data="marks:data"),
    "loss": study(loss="marks:loss"),
    "metric": study(metric={"name": "mine", "function": "marks:metric", "goal": "maximize"}),
    "adapter": study(adapter="marks:adapter"),
    "runtime": study() | {"target": {"device": "cpu", "runtime": "marks:Runtime"}},
    "format": study() | {"export": {"formats": ["onnx", "marks:Form"]}},
    "technique": study() | {"space": {"default": {"techniques": ["marks:Cut(width=3)"]}}},
    "technique of a layer": study() | {"space": {"layers": {"fc": {"techniques": ["marks:Cut"]}}}},
    "criterion": study() | {"space": {"default": {"criteria": ["marks:Score"]}}},
    "executor": study() | {"search": {"executor": "marks:Run"}},
    "storage": study() | {"search": {"storage": "sqlite:////tmp/elsewhere.db"}},
    "download": study(
        data={"name": "torchvision:CIFAR10", "args": {"root": "x", "download": True}}
    ),
    "trained weights": study(
        model={"name": "torchvision:resnet18", "args": {"weights": "DEFAULT"}}
    ),
}
OWN = [
    study(),
    study(data="images"),
    study(model="torchvision:resnet18"),
    study() | {"folder": "/a:b/c"},
]


@pytest.fixture
def marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], tuple[Path, Path]]:
    """A folder that passes for an artefact and for a finished run, of this study; and the mark that its code makes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "marks", raising=False)
    mark, folder = tmp_path / "mark", tmp_path / "given"
    (tmp_path / "marks.py").write_text(MARKS.format(mark=str(mark)))

    def make(content: dict[str, Any]) -> tuple[Path, Path]:
        (folder / "dense").mkdir(parents=True)
        (folder / "study.yaml").write_text(json.dumps(content))
        for name in ("plan.json", "score.json", "front.json"):
            (folder / name).write_text("{}")
        return folder, mark

    yield make  # type: ignore[misc]
    sys.modules.pop("marks", None)


COMMANDS = {"verify": [], "measure": [], "export": ["--out", "made"]}


@pytest.mark.promise("trust")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", PLACES)
def test_no_command_runs_what_only_the_folder_names(
    command: str, place: str, marked: Callable[[dict[str, Any]], tuple[Path, Path]]
) -> None:
    folder, mark = marked(PLACES[place])
    ended = CliRunner().invoke(cli.app, [command, str(folder), *COMMANDS[command]])
    assert ended.exit_code == 2 and not mark.exists() and "marks" not in sys.modules
    assert "--trust" in ended.stderr and len(ended.stderr) <= 600


@pytest.mark.promise("trust")
@pytest.mark.parametrize("command", COMMANDS)
def test_with_trust_the_folders_code_is_run(
    command: str, marked: Callable[[dict[str, Any]], tuple[Path, Path]]
) -> None:
    content = PLACES["model"] | {"budget": {"latency": "50%"}}
    folder, mark = marked(content)
    (folder / "score.json").write_text(json.dumps({"target": {"name": "cpu"}, "files": {}}))
    (folder / "plan.json").write_text(json.dumps({"version": 1, "choices": {}, "widths": {}}))
    ended = CliRunner().invoke(cli.app, [command, str(folder), *COMMANDS[command], "--trust"])
    assert mark.exists(), (ended.output, ended.exception)


@pytest.mark.promise("trust")
@pytest.mark.parametrize("content", OWN)
def test_what_is_bundled_needs_no_trust(content: dict[str, Any]) -> None:
    assert dangers(content) == []


@pytest.mark.promise("trust")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_takes_a_folder_says_what_trust_is(command: str) -> None:
    assert "--trust" in CliRunner().invoke(cli.app, [command, "--help"]).output


@pytest.mark.promise("trust")
@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "resnet18"]
)
def test_a_model_of_torchvision_is_built_without_the_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetched)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetched)
    assert isinstance(tasks.model(f"torchvision:{name}", ())(), torch.nn.Module)


@pytest.mark.promise("trust")
def test_load_builds_nothing_of_a_folders_own(
    marked: Callable[[dict[str, Any]], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mark = marked(PLACES["model"])
    (folder / "dense").rmdir()
    monkeypatch.setattr(plugins, "import_reference", lambda *args: pytest.fail("imported"))
    with pytest.raises(InputError, match="trust=True"):
        load(folder)
    assert not mark.exists()
