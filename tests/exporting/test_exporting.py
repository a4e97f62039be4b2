from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from artefacts import MINE, WIDTHS, change, section
from marks import slow_but
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autoprune import plugins
from autoprune.budget import Budget
from autoprune.errors import InputError, ModelError, VerificationError
from autoprune.exporting import artefact, remeasured
from autoprune.exporting.export import Finished, export
from autoprune.exporting.held import Found
from autoprune.exporting.load import load
from autoprune.exporting.verify import verify, verify_in_fresh_process
from autoprune.formats.safetensors import Safetensors
from autoprune.measuring import measure
from autoprune.measuring.timing.latency import Latency
from autoprune.plan import Choice, Plan
from autoprune.pruning.surgery import shrink
from autoprune.score import Score
from autoprune.space import Space
from autoprune.study import Settings, Study
from autoprune.target import Target
from autoprune.task import Inputs, Recipe
from autoprune.training import loop, tasks

INF = float("inf")


RECORDS = ("study.yaml", "plan.json", "reference.safetensors", "score.json")


MODELS = {"safetensors": "model.safetensors", "onnx": "model.onnx", "program": "model.pt2"}


@dataclass(frozen=True)
class Made:
    """What the module's one export was made of."""

    study: Study
    finished: Finished
    folder: Path
    dense_files: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("user")
    (home / "mine_exported.py").write_text(MINE)
    task = tasks.build(section(), [home], Recipe(batch_size=32, device="cpu"))
    budget = Budget.parse({"latency": "90%", "flops": "50%"})
    study = Study(
        "tiny",
        task,
        Space(),
        Target(),
        budget,
        Settings(),
        Recipe(),
        folder=home,
        resolved={"version": 1, "name": "tiny", "task": section()},
    )
    torch.manual_seed(0)
    dense = task.build().eval()
    with torch.no_grad():
        dense.bn1.running_mean.uniform_(-1, 1)
    model = shrink.resize(dense, WIDTHS).eval()
    with torch.no_grad():
        model.fc.weight[0, :4] = 0
    plan = Plan({"conv1:units": Choice("structured", 0.875)})
    finished = Finished(plan, model, dense, score(model, task), score(dense, task), 7)
    folder = tmp_path_factory.mktemp("made") / "best"
    export(study, finished, folder)
    dense_files = tmp_path_factory.mktemp("dense")
    for name, filename in MODELS.items():
        plugins.load("format", name)().save(dense, task.calibration(2), dense_files / filename)
    return Made(study, finished, folder, dense_files)


def score(model: nn.Module, task: Any) -> Score:
    quality = loop.evaluate(model, task, "validation", device="cpu")
    return measure.costs(model, task.calibration(1)).evolve(
        metric=quality.metric, loss=quality.loss
    )


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "best"))


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is not measured: what the test is about lies elsewhere."""
    monkeypatch.setattr(
        remeasured, "latency", lambda recorded: Found("not measured in this test", {})
    )


def failures(folder: Path, **options: Any) -> dict[str, str]:
    """The checks that fail, with what they say; the error and verification.json must both tell of them."""
    with pytest.raises(VerificationError) as raised:
        verify(folder, **{"trust": True} | options)
    assert raised.value.exit_status == 4
    record = json.loads((folder / "verification.json").read_text())
    failed = {
        check["name"]: check["detail"] for check in record["checks"] if check["passed"] is False
    }
    assert record["passed"] is False and failed
    assert all(f"{name}: {detail}" in raised.value.args[0] for name, detail in failed.items())
    return failed


def sign_again(folder: Path) -> None:
    """Make the record agree with the files as they are, as someone would who swaps models with care."""

    def edit(record: dict[str, Any]) -> None:
        record["files"] = {name: artefact.digest(folder / name) for name in record["files"]}
        record["size_bytes"] = record["files"]["model.onnx"]["size_bytes"]

    change(folder / "score.json", edit)


def test_the_folder_holds_what_the_record_says(made: Made) -> None:
    names = {path.name for path in made.folder.iterdir()}
    assert names == {*RECORDS, *MODELS.values()}
    assert not list(made.folder.parent.glob(".best*"))
    record = json.loads((made.folder / "score.json").read_text())
    assert set(record["files"]) == names - {"score.json"}
    assert record["size_bytes"] == (made.folder / "model.onnx").stat().st_size
    assert (record["trial"], record["budget"]) == (7, {"latency": "90%", "flops": "50%"})
    plan, architecture = artefact.read_plan(made.folder)
    assert (
        plan == made.finished.plan
        and architecture.widths == WIDTHS
        and not architecture.removed
        and not architecture.bound
    )
    inputs, outputs = artefact.read_reference(made.folder / "reference.safetensors")
    assert inputs.batch_size == 64
    with torch.no_grad():
        assert torch.equal(made.finished.model(*inputs.args), outputs[0])


def test_a_sound_artefact_passes_every_check(folder: Path) -> None:
    result = verify(folder, trust=True)
    assert result["passed"] is True and result["open"] == []
    assert json.loads((folder / "verification.json").read_text()) == result
    figures = {check["name"]: check["figures"] for check in result["checks"]}
    assert set(figures) == {
        "files",
        "widths",
        "counts",
        "metric",
        "test metric",
        "size",
        "other sizes",
        "figures",
        "budget",
        "latency",
        *(f"outputs of {name}" for name in MODELS),
    }
    for name in MODELS:
        errors = figures[f"outputs of {name}"]
        assert set(errors) == {"error_at_batch_64", "error_at_batch_1", "error_at_batch_3"}
        assert max(errors.values()) <= 1e-4
    assert (
        0
        < figures["latency"]["ratio_low"]
        <= figures["latency"]["ratio"]
        <= figures["latency"]["ratio_high"]
        < 0.9
    )


@pytest.mark.parametrize("share", slow_but([0.5], [0.0, 0.5]))
@pytest.mark.parametrize("name", [*RECORDS, *MODELS.values()])
def test_a_truncated_file_fails(folder: Path, name: str, share: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    assert "files" in failures(folder)


@pytest.mark.parametrize(
    "name", slow_but(["plan.json", "model.onnx"], [*RECORDS, *MODELS.values()])
)
def test_a_missing_file_and_one_of_garbage_fail(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    (folder / name).write_bytes(b"\xff\x00:{" * (size // 4) + b"x" * (size % 4))
    assert "files" in failures(folder)
    (folder / name).unlink()
    assert "files" in failures(folder)


@pytest.mark.parametrize("name", slow_but(["safetensors"], MODELS))
def test_one_flipped_weight_fails(made: Made, folder: Path, name: str) -> None:
    path = folder / MODELS[name]
    content = bytearray(path.read_bytes())
    weights = made.finished.model.fc.bias.detach().numpy().tobytes()
    assert content.count(weights) == 1
    content[content.index(weights) + 3] ^= 0x80  # the sign of the first
    path.write_bytes(content)
    failed = failures(folder)
    assert "sha256" in failed["files"] and f"outputs of {name}" in failed


@pytest.mark.parametrize("name", slow_but(["onnx"], MODELS))
def test_the_dense_model_swapped_in_fails_even_where_the_record_was_signed_again(
    made: Made, folder: Path, name: str, unmeasured: None
) -> None:
    shutil.copy(made.dense_files / MODELS[name], folder / MODELS[name])
    assert "files" in failures(folder)
    sign_again(folder)
    failed = failures(folder)
    assert "files" not in failed and f"outputs of {name}" in failed
    if name == "safetensors":
        assert "conv1.weight" in failed["widths"]


@pytest.mark.parametrize(
    ("key", "value", "check"),
    [
        ("metric", 2.0, "metric"),
        ("params", 3, "counts, figures"),
        ("nonzero_params", 3, "counts"),
        ("size_bytes", 3, "size"),
        ("flops", 10**9, "counts, budget"),
        ("budget", {"size": "1B"}, "budget"),
        ("target", {"runtime": "none"}, "size, other sizes"),
    ],
)
def test_a_figure_that_is_not_the_recorded_one_fails(
    folder: Path, key: str, value: Any, check: str, unmeasured: None
) -> None:
    change(folder / "score.json", lambda record: record.update({key: value}))
    assert list(failures(folder)) == check.split(", ")


def test_other_widths_than_the_weights_have_fail(folder: Path, unmeasured: None) -> None:
    change(folder / "plan.json", lambda record: record["widths"].update({"conv2.bias": [17]}))
    sign_again(folder)
    failed = failures(folder)
    assert "conv2.bias" in failed["widths"] and "conv2.bias" in failed["counts"]


def test_a_changed_reference_fails(folder: Path, unmeasured: None) -> None:
    path = folder / "reference.safetensors"
    inputs, outputs = artefact.read_reference(path)
    outputs[0][3, 1] += 2e-4 * outputs[0].abs().max()
    artefact.write_reference(path, inputs, outputs)
    sign_again(folder)
    assert set(failures(folder)) == {f"outputs of {name}" for name in MODELS}


class FixedBatch:
    filename = "model.onnx"

    def load(
        self, path: Path, template: Callable[[], nn.Module]
    ) -> Callable[[Inputs], list[Tensor]]:
        run = plugins.load("format", "onnx")().load(path, template)
        return lambda inputs: run(inputs.rows(64))


def test_a_file_that_fixes_its_batch_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, unmeasured: None
) -> None:
    monkeypatch.setitem(sys.modules, "fixed_exported", SimpleNamespace(FixedBatch=FixedBatch))
    change(
        folder / "score.json",
        lambda record: record["formats"].update({"fixed_exported:FixedBatch": "model.onnx"}),
    )
    assert list(failures(folder)) == ["outputs of fixed_exported:FixedBatch"]


@pytest.mark.parametrize(
    ("low", "high", "passes", "inside"),
    [(0.91, 0.95, False, False), (0.89, 0.95, True, False), (0.5, 0.6, True, True)],
)
def test_latency_fails_where_even_the_lower_end_is_over_the_limit(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    low: float,
    high: float,
    passes: bool,
    inside: bool,
) -> None:
    found = Latency(1.0, 0.9, 1.1, (low + high) / 2, low, high, 40, True)
    monkeypatch.setattr(remeasured.measure, "time_artefact", lambda *args, **kwargs: found)
    if passes:
        verify(folder, trust=True)
    else:
        assert list(failures(folder)) == ["latency"]
    latency = next(
        check
        for check in json.loads((folder / "verification.json").read_text())["checks"]
        if check["name"] == "latency"
    )
    assert latency["figures"]["surely_inside"] is inside and latency["figures"]["limit"] == "90%"


@pytest.mark.slow
def test_a_target_that_runs_modules_is_checked_on_the_weights_file(
    made: Made, tmp_path: Path
) -> None:
    study = replace(
        made.study,
        target=Target("cpu_eager", runtime="eager"),
        budget=Budget.parse({"latency": "100s"}),
    )
    exported = export(study, made.finished, tmp_path / "best", formats=[])
    assert {path.name for path in (tmp_path / "best").iterdir()} == {*RECORDS, "model.safetensors"}
    assert exported.size_bytes == (tmp_path / "best" / "model.safetensors").stat().st_size
    assert verify(tmp_path / "best", trust=True)["passed"] is True


def test_no_artefact_is_bad_input(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        for function in (verify, load, verify_in_fresh_process):
            with pytest.raises(InputError, match="artefact") as raised:
                function(path)
            assert raised.value.exit_status == 2


def test_a_study_whose_module_is_not_here_is_bad_input(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unmeasured: None
) -> None:
    (folder / "mine_gone.py").write_text(MINE)  # inside the artefact, where nothing is looked for
    study = (folder / "study.yaml").read_text().replace("mine_exported", "mine_gone")
    (folder / "study.yaml").write_text(study)
    # not the recorded study: the artefact is at fault
    assert "mine_gone" in failures(folder)["counts"]
    sign_again(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="mine_gone"):
        verify(folder, trust=True)
    monkeypatch.chdir(tmp_path)
    shutil.move(folder / "mine_gone.py", tmp_path)
    assert verify(folder, trust=True)["passed"] is True


def test_a_study_made_in_python_is_closed_by_its_task(
    made: Made, tmp_path: Path, unmeasured: None
) -> None:
    resolved = {"task": section() | {"model": "python", "data": "python"}}
    task = replace(made.study.task, given=made.finished.dense)
    study = replace(made.study, resolved=resolved, task=task)
    export(study, made.finished, tmp_path / "best", formats=["onnx"])
    first = verify(tmp_path / "best", trust=True)
    assert first["open"] == [
        "counts",
        "outputs of safetensors",
        "metric",
        "test metric",
        "other sizes",
    ]
    second = verify(tmp_path / "best", task=task, earlier=first)
    assert second["open"] == [] and second["passed"] is True
    closed = [check for check in first["checks"] if check["passed"] is not None]
    assert all(check in second["checks"] for check in closed)
    with pytest.raises(InputError, match="model="):
        load(tmp_path / "best", trust=True)


def test_load_gives_the_exported_model(made: Made, folder: Path) -> None:
    x = torch.randn(5, 3, 16, 16)
    before = {name: tensor.clone() for name, tensor in made.finished.dense.state_dict().items()}
    with torch.no_grad():
        wanted = made.finished.model(x)
        for options in (
            {"model": made.finished.dense},
            {"model": made.study.task.build},
            {"trust": True},
        ):
            model = load(folder, **options)
            assert not model.training and torch.equal(model(x), wanted)
    assert shrink.widths(made.finished.dense, model) == WIDTHS
    assert all(
        torch.equal(before[name], tensor)
        for name, tensor in made.finished.dense.state_dict().items()
    )


def test_load_leaves_the_random_state_alone(made: Made, folder: Path) -> None:
    state = torch.random.get_rng_state()
    load(folder, model=made.study.task.build)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    "reference",
    [
        "mine_exported:build",
        "zoo:mine_exported:build",
        "torchvision:a:b",
        "os:abc",
        {"name": "torchvision:resnet18", "args": {"weights": "DEFAULT"}},
    ],
)
def test_load_runs_no_code_that_only_the_artefact_names(
    folder: Path, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "import_reference", lambda *args: pytest.fail("imported"))
    (folder / "study.yaml").write_text(json.dumps({"task": {"model": reference}}))
    with pytest.raises(InputError, match=r"model=.*trust=True"):
        load(folder)


def test_load_builds_models_of_the_zoo_without_being_told_to_trust(folder: Path) -> None:
    dense = plugins.load("model", "digits_cnn")(width=4, hidden=6)
    widths = {"head.1.weight": [3, 8], "head.1.bias": [3], "fc.weight": [10, 3]}
    smaller = shrink.resize(dense, widths).eval()
    save_file(
        {name: tensor.clone() for name, tensor in smaller.state_dict().items()},
        folder / "model.safetensors",
    )
    (folder / "plan.json").write_text(
        json.dumps({"version": 1, "choices": {}, "widths": widths, "replaced": {}})
    )
    (folder / "study.yaml").write_text(
        "task: {model: {name: 'zoo:digits_cnn', args: {width: 4, hidden: 6}}}"
    )
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load(folder)(x), smaller(x))


def test_load_names_what_does_not_fit(made: Made, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"conv1\.weight"):
        load(folder, model=nn.Linear(2, 2))
    with pytest.raises(InputError, match="str"):
        load(folder, model="mine")  # type: ignore[arg-type]
    state = load_file(folder / "model.safetensors")
    state["more"] = state.pop("fc.bias")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"missing fc\.bias; unknown more"):
        load(folder, model=made.finished.dense)
    change(folder / "plan.json", lambda record: record.update(replaced={"attention": {}}))
    with pytest.raises(ModelError, match="attention"):
        load(folder, model=made.finished.dense)


@pytest.mark.parametrize("name", ["plan.json", "study.yaml", "model.safetensors"])
def test_load_names_a_truncated_file(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:25])
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load(folder, trust=True)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x))  # type: ignore[no-any-return]


def test_shared_weights_survive_the_file(tmp_path: Path) -> None:
    model, other, x = Tied().eval(), Tied().eval(), torch.arange(4)
    Safetensors().save(model, Inputs.of(x), tmp_path / "model.safetensors")
    Safetensors.fill(other, tmp_path / "model.safetensors")
    assert other.out.weight is other.embed.weight
    assert torch.equal(other(x), model(x))


class Broken:
    filename = "model.broken"

    def save(self, model: nn.Module, inputs: Inputs, path: Path) -> None:
        raise RuntimeError("cannot be traced")


def test_an_export_is_whole_or_not_at_all(
    made: Made, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setitem(sys.modules, "broken_exported", SimpleNamespace(Broken=Broken))
    with pytest.raises(ModelError, match=r"broken_exported:Broken.*cannot be traced"):
        export(made.study, made.finished, folder, formats=["broken_exported:Broken"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_artefact_is_replaced_and_foreign_files_are_kept(
    made: Made, folder: Path, tmp_path: Path
) -> None:
    (folder / "notes.md").write_text("mine")
    (folder / "verification.json").write_text("{}")
    export(
        made.study,
        made.finished,
        folder,
        formats=["safetensors"],
        budget=Budget.parse({"params": "1M"}),
    )
    assert {path.name for path in folder.iterdir()} == {
        *RECORDS,
        "model.safetensors",
        "model.onnx",
        "notes.md",
    }
    assert json.loads((folder / "score.json").read_text())["budget"] == {"params": "1M"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_folder_that_is_no_artefact_is_not_replaced(made: Made, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="no artefact"):
        export(made.study, made.finished, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        export(made.study, made.finished, tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text() == "{}"


def test_a_reference_keeps_the_nesting_of_the_arguments(tmp_path: Path) -> None:
    a, b, c = torch.randn(3, 2), torch.arange(3), torch.tensor(2.0)
    inputs = Inputs((a, [b, None, (c, 1.5)]), {"mask": {"x": a[:, :1]}, "flag": True})
    artefact.write_reference(tmp_path / "r.safetensors", inputs, [b])
    again, outputs = artefact.read_reference(tmp_path / "r.safetensors")
    assert torch.equal(outputs[0], b)
    assert all(torch.equal(x, y) for x, y in zip(inputs.tensors(), again.tensors(), strict=True))
    assert again.args[1][1] is None and again.args[1][2][1] == 1.5 and again.kwargs["flag"] is True
    with pytest.raises(ModelError, match="object"):
        artefact.write_reference(tmp_path / "r.safetensors", Inputs((object(),)), [b])


@pytest.mark.parametrize(
    ("recorded", "got", "wanted"),
    [
        ([1.0, -2.0], [1.0, -2.1], 0.05),
        ([0.0], [0.0], 0.0),
        ([0.0], [1e-9], INF),
        ([1.0], [float("nan")], INF),
        ([1.0], [1.0, 1.0], INF),
        ([-INF, 2.0], [-INF, 2.0], 0.0),
        ([INF], [1.0], INF),
    ],
)
def test_the_error_is_relative_to_the_largest_recorded_value(
    recorded: list[float], got: list[float], wanted: float
) -> None:
    assert artefact.error(torch.tensor(recorded), torch.tensor(got)) == pytest.approx(
        wanted, rel=1e-5
    )


@pytest.mark.parametrize(
    ("status", "kind"), [(2, InputError), (4, VerificationError), (-11, VerificationError)]
)
def test_a_fresh_process_that_breaks_down_is_no_success(
    folder: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception]
) -> None:
    # of an earlier time
    (folder / "verification.json").write_text('{"passed": true, "open": [], "checks": []}')
    ended = SimpleNamespace(returncode=status, stdout="", stderr="what it said")
    monkeypatch.setattr("subprocess.run", lambda *args, **kwargs: ended)
    with pytest.raises(kind, match="what it said"):
        verify_in_fresh_process(folder)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("autoprune.__main__") is None, reason="needs the command line"
)
def test_a_fresh_process_finds_the_same(folder: Path) -> None:
    result = verify_in_fresh_process(folder)
    assert result["passed"] is True and result == json.loads(
        (folder / "verification.json").read_text()
    )
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(VerificationError, match="outputs of onnx"):
        verify_in_fresh_process(folder)
