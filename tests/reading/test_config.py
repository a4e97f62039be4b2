"""Studies: what is refused, how it is said, what is filled in, and what the command line may change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from autoprune import config
from autoprune.budget import Limit
from autoprune.errors import InputError, MissingPackage, StudyError
from autoprune.reading import values, yaml_lines
from autoprune.target import Target

WRONG = Path(__file__).parent / "wrong_studies"
STUDY = """
version: 1
name: small
task: {model: zoo:digits_cnn, data: zoo:digits}
budget: {latency: 50%}
"""


@dataclass(frozen=True)
class Wrong:
    """A wrong study, and what its first lines say must be answered."""

    path: Path

    @property
    def expected(self) -> dict[str, str]:
        lines = self.path.read_text().splitlines()[:3]
        return {
            key: value.strip()
            for key, _, value in (line.removeprefix("# ").partition(":") for line in lines)
        }

    @property
    def line(self) -> int:
        lines = self.path.read_text().splitlines()
        (number,) = [
            number for number, line in enumerate(lines, start=1) if line.endswith("# wrong")
        ]
        return number

    def check(self, message: str) -> None:
        place = re.search(rf"{re.escape(self.path.name)}, line (\d+)", message)
        assert place, message
        assert int(place[1]) == self.line, message
        key = self.expected["key"].removesuffix(".name")
        assert not key or f"key {key!r}" in message or f"key '{key}.name'" in message, message
        assert self.expected["says"] in message
        assert "\n" not in message


def studies(stage: str) -> list[object]:
    found = [Wrong(path) for path in sorted(WRONG.glob("*.yaml"))]
    return [
        pytest.param(each, id=each.path.stem) for each in found if each.expected["stage"] == stage
    ]


def written(folder: Path, text: str = STUDY) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def test_there_are_enough_wrong_studies():
    assert len(studies("schema")) >= 25
    assert len(studies("model")) >= 5
    assert len(studies("schema")) + len(studies("model")) == len(list(WRONG.glob("*.yaml")))


@pytest.mark.parametrize("wrong", studies("schema"))
def test_a_wrong_study_is_refused_by_file_line_and_key(wrong: Wrong):
    with pytest.raises(InputError) as caught:
        config.read(wrong.path)
    wrong.check(str(caught.value))
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("wrong", studies("model"))
def test_a_study_that_does_not_fit_its_model_is_refused_by_file_line_and_key(wrong: Wrong):
    from autoprune.pruning.coupling import verify

    read = config.read(wrong.path)  # nothing is wrong with it by itself
    with pytest.raises(StudyError) as caught, read.locating():
        study = config.build(read)
        groups = verify.discover(study.task.build(), study.task.calibration(2)).groups
        study.space.resolve(groups)
    wrong.check(str(caught.value))


def test_no_wrong_study_needs_torch_to_be_refused():
    paths = [wrong.values[0].path for wrong in studies("schema")]
    program = """
import json, sys
from autoprune import config
from autoprune.errors import InputError
refused = 0
for path in json.loads(sys.argv[1]):
    try:
        config.read(path)
    except InputError:
        refused += 1
print(json.dumps([refused, sorted({"torch", "optuna", "onnxruntime", "parts"} & set(sys.modules))]))
"""
    found = subprocess.run(
        [sys.executable, "-c", program, json.dumps([str(path) for path in paths])],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert json.loads(found.stdout) == [len(paths), []]


def test_the_line_that_is_named_is_the_line_of_the_key_not_of_its_value(tmp_path):
    path = written(tmp_path, STUDY + "search:\n  trials:\n\n    0\n")
    with pytest.raises(StudyError) as caught:
        config.read(path)
    assert (caught.value.line, caught.value.key) == (7, "search.trials")


def test_an_unknown_key_is_told_before_the_missing_one_it_stands_for():
    with pytest.raises(
        StudyError, match=r"unknown key 'modell' \(did you mean 'model'\?\).*also wrong: task.model"
    ):
        config.from_mapping(
            {
                "task": {"modell": "zoo:digits_cnn", "data": "zoo:digits"},
                "budget": {"latency": "50%"},
            }
        )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("[1, 2]", "needs a mapping"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("a: &a [*a]\n", "an alias that holds itself"),
        ("a: !!python/object/apply:os.getcwd []\n", "cannot be used here"),
        ("[" * 3000, "nested too deeply"),
        ("a: \x00", "no valid YAML"),
        ("a: !!int five", "'five' is no int"),
    ],
)
def test_text_that_is_no_mapping_is_refused(text, says):
    with pytest.raises(StudyError, match=re.escape(says)) as caught:
        yaml_lines.parse(text, "study.yaml")
    assert caught.value.file == "study.yaml"


def test_plain_values_are_read_as_in_yaml_1_2():
    text = "a: 1e-3\nb: no\nc: 010\nd: 1:30\ne: 2026-01-01\nf: ~\ng: TRUE\nh: 0x10\ni: .inf\n0: x\n"
    read = yaml_lines.parse(text).values
    expected = {
        "a": 0.001,
        "b": "no",
        "c": 10,
        "d": "1:30",
        "e": "2026-01-01",
        "f": None,
        "g": True,
        "h": 16,
    }
    assert read == expected | {"i": float("inf"), "0": "x"}


def test_merged_keys_keep_their_lines():
    document = yaml_lines.parse("base: &base\n  x: 1\n  y: 2\nmine:\n  <<: *base\n  y: 3\n", "f")
    assert document.values["mine"] == {"x": 1, "y": 3}
    assert (document.place(("mine", "x")).line, document.place(("mine", "y")).line) == (2, 6)


def test_everything_is_filled_in_and_reads_back_as_itself(tmp_path):
    resolved = config.read(written(tmp_path)).resolved()
    keys = [
        "version",
        "name",
        "task",
        "space",
        "target",
        "budget",
        "search",
        "recovery",
        "export",
        "folder",
    ]
    assert list(resolved) == keys
    assert resolved["task"]["training"]["epochs"] == 20
    assert resolved["task"]["metric"] == {"name": "accuracy", "function": None, "goal": "maximize"}
    assert resolved["target"] == config.target("cpu_onnxruntime").to_json()
    assert resolved["recovery"]["batch_size"] == 64
    again = tmp_path / "elsewhere" / "study.yaml"
    again.parent.mkdir()
    again.write_text(yaml.safe_dump(resolved, sort_keys=False))
    assert config.read(again).resolved() == resolved


def test_recovery_takes_what_it_does_not_name_from_training(tmp_path):
    text = STUDY.replace(
        "data: zoo:digits}", "data: zoo:digits, training: {batch_size: 8, device: cpu, epochs: 3}}"
    )
    recovery = config.read(written(tmp_path, text + "recovery: {device: auto}\n")).resolved()[
        "recovery"
    ]
    assert (recovery["batch_size"], recovery["device"], recovery["epochs"]) == (8, "auto", 5)


def test_layers_take_what_they_do_not_name_from_the_default(tmp_path):
    text = STUDY + "space:\n  default: {ratio: [0.1, 0.5]}\n  layers: {fc: {techniques: []}}\n"
    space = config.read(written(tmp_path, text)).resolved()["space"]
    assert space["layers"]["fc"] == {
        "techniques": [],
        "ratio": [0.1, 0.5],
        "criteria": ["l1", "l2", "taylor"],
    }


def test_budget_wins_over_set_and_replaces_only_its_own_key(tmp_path):
    path = written(tmp_path)
    read = config.read(
        path, sets=["budget.latency=10%", "budget.flops=300M"], budget=["latency=30%"]
    )
    assert read.resolved()["budget"] == {"latency": "30%", "flops": "300M"}
    drop = config.read(path, budget=["metric_drop=0.01"]).resolved()["budget"]
    assert drop == {"latency": "50%", "metric_drop": 0.01}


def test_set_reaches_into_what_is_written_short(tmp_path):
    sets = [
        "task.model.args.width=8",
        "target.threads=2",
        'space.layers."stage1.*".ratio=[0, 0.5]',
        "search.seed=7",
    ]
    read = config.read(written(tmp_path), sets=sets, trials=3, timeout="90s", seed=9).resolved()
    assert read["task"]["model"] == {"name": "zoo:digits_cnn", "args": {"width": 8}}
    assert (read["target"]["name"], read["target"]["threads"]) == ("cpu_onnxruntime", 2)
    assert read["space"]["layers"]["stage1.*"]["ratio"] == [0, 0.5]
    assert [read["search"][key] for key in ("trials", "timeout", "seed")] == [3, "90s", 9]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (
            {"sets": ["search.trials=0"]},
            "--set search.trials=0, key 'search.trials': must be at least 1",
        ),
        (
            {"sets": ["search.trial=3"]},
            "--set search.trial=3, key 'search.trial': unknown key 'trial' (did you mean 'trials'?)",
        ),
        (
            {"sets": ["search={trial: 3}"]},
            "--set search={trial: 3}, key 'search.trial': unknown key",
        ),
        ({"sets": ["search.trials"]}, "--set search.trials: needs key.path=value"),
        ({"sets": ["search..trials=1"]}, "--set search..trials=1: needs keys joined by dots"),
        ({"sets": ["search.trials=[1"]}, "--set search.trials=[1, line 1: this is no valid YAML"),
        ({"sets": ["name.of=3"]}, "--set name.of=3: name is 'small' and no mapping"),
        (
            {"sets": ["target=cpu_eagr"]},
            "--set target=cpu_eagr, key 'target': unknown target 'cpu_eagr' (did you mean 'cpu_eager'?)",
        ),
        (
            {"budget": ["latency=50"]},
            "--budget latency=50, key 'budget.latency': latency needs a unit: 50% (of dense) or 2.5ms",
        ),
        ({"budget": ["latency"]}, "--budget latency: needs a quantity and its limit"),
        ({"timeout": "10"}, "--timeout 10, key 'search.timeout': needs a time with its unit"),
        (
            {"sets": ["search.finalists=0"]},
            "--set search.finalists=0, key 'search.finalists': needs how many of the best plans are trained",
        ),
        (
            {"sets": ["search.finalists=some"]},
            "--set search.finalists=some, key 'search.finalists': needs how many",
        ),
        ({"trials": 0}, "--trials 0, key 'search.trials': must be at least 1; got 0"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path, given, names):
    with pytest.raises(StudyError) as caught:
        config.read(written(tmp_path), **given)
    assert str(caught.value).startswith(names)


def test_a_target_file_names_its_own_line(tmp_path):
    (tmp_path / "board.yaml").write_text("device: cpu\nruntime: eager\nthreads: -1\n")
    with pytest.raises(StudyError) as caught:
        config.read(written(tmp_path, STUDY + "target: board.yaml\n"))
    assert (Path(caught.value.file).name, caught.value.line, caught.value.key) == (
        "board.yaml",
        3,
        "target.threads",
    )
    (tmp_path / "board.yaml").write_text("device: cpu\nruntime: eager\nthreads: 2\n")
    read = config.read(tmp_path / "small.yaml").resolved()["target"]
    assert read == Target("board", "cpu", "eager", threads=2).to_json()
    assert config.target(tmp_path / "board.yaml") == Target(**read)


def test_bundled_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert {"cpu_onnxruntime", "cpu_eager", "cuda_eager"} <= set(config.bundled_paths("target"))
    for name in config.bundled_paths("target"):
        try:
            assert config.target(name).name == name
        except MissingPackage as error:  # of an optional runtime
            assert "pip install" in str(error)
    for name in config.bundled_paths():
        assert config.read(name).name == name
    assert config.target({"runtime": "eager", "threads": 4}) == Target(
        "cpu_eager", "cpu", "eager", 4
    )
    with pytest.raises(StudyError, match=r"unknown study 'digist' \(did you mean 'digits'\?\)"):
        config.read("digist")
    with pytest.raises(StudyError, match="there is no such study file"):
        config.read("studies/digits.yaml")
    (tmp_path / "study.yaml").write_text(STUDY)
    with pytest.raises(StudyError, match="this is a folder; did you mean"):
        config.read(str(tmp_path))


def test_a_module_is_looked_for_in_the_studys_folder_and_never_imported(tmp_path, monkeypatch):
    package = tmp_path / "mine" / "inner"
    package.mkdir(parents=True)
    for name in (package.parent / "__init__.py", package / "__init__.py", package / "net.py"):
        name.write_text("import mine.inner.net\nraise SystemExit('imported')\ndef build(): ...\n")
    path = written(tmp_path, STUDY.replace("zoo:digits_cnn", "mine.inner.net:build"))
    assert config.read(path).resolved()["task"]["model"] == "mine.inner.net:build"
    assert "mine" not in sys.modules
    (package / "net.py").write_text("def build(:\n")
    with pytest.raises(StudyError, match=r"net.py, line 1, is no valid Python"):
        config.read(path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (package / "net.py").write_text("build = 1\n")
    monkeypatch.chdir(tmp_path)
    other = written(elsewhere, path.read_text())
    assert config.read(other).folder == elsewhere.resolve()  # found in the current folder


def test_a_target_that_names_a_folder_is_told_with_the_place_of_its_key(tmp_path):
    for given in ("''", ".", ".."):
        with pytest.raises(StudyError, match=r"small.yaml, line 6, key 'target'"):
            config.read(written(tmp_path, STUDY + f"target: {given}\n"))


def test_a_missing_package_keeps_its_kind_and_its_place():
    with pytest.raises(
        MissingPackage,
        match=r"package_missing\.yaml, line 7, key 'task.model'.*install the package",
    ):
        config.read(WRONG / "package_missing.yaml")


def test_differences_leave_out_what_may_change_on_resume(tmp_path):
    old = config.read(written(tmp_path)).resolved()
    free = config.read(
        tmp_path / "small.yaml",
        trials=5,
        timeout="1h",
        budget=["latency=20%"],
        sets=["export.formats=[onnx]"],
    )
    assert config.differences(old, free.resolved()) == []
    changed = config.read(
        tmp_path / "small.yaml",
        seed=1,
        sets=["space.layers.fc={techniques: []}", "task.model.args.width=8"],
    )
    assert config.differences(old, changed.resolved()) == [
        "task.model: 'zoo:digits_cnn' -> {'name': 'zoo:digits_cnn', 'args': {'width': 8}}",
        "space.layers.fc: nothing -> {'techniques': [], 'ratio': [0.0, 0.9], 'criteria': ['l1', 'l2', 'taylor']}",
        "search.seed: 0 -> 1",
    ]


def test_a_mapping_from_python_needs_no_task_and_takes_tuples():
    read = config.from_mapping(
        {"budget": {"latency": "50%"}, "search": {"objectives": ("metric", "flops"), "trials": 3}}
    )
    assert read.resolved()["task"] == {"model": "python"}
    assert read.resolved()["search"]["objectives"] == ["metric", "flops"]
    with pytest.raises(StudyError, match=r"^key 'search\.trial': unknown key 'trial'"):
        config.from_mapping({"search": {"trial": 3}})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h", 3600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800)],
)
def test_durations(text, seconds):
    assert values.duration(text) == seconds


@pytest.mark.parametrize("text", [600, "600", "", "10 minutes", "m", "0s", "-5m", True, None])
def test_durations_without_a_unit_are_refused(text):
    with pytest.raises(ValueError, match="time"):
        values.duration(text)


def test_built_in_metrics_and_losses_are_those_that_there_are():
    from autoprune.training import losses
    from autoprune.zoo import metrics

    assert metrics.GOALS == values.METRICS
    for name in values.LOSSES:
        assert callable(losses.resolve(name))


def test_building_gives_the_nouns(tmp_path):
    text = (
        STUDY
        + "search: {timeout: 2m, sampler: random}\nspace: {share: stage, layers: {fc: {techniques: []}}}\n"
    )
    study = config.build(
        config.read(written(tmp_path, text), sets=["task.model.args={width: 4, hidden: 8}"])
    )
    assert study.budget.limits == (Limit("latency", 0.5, True),)
    assert study.search.finalists == 4
    every = config.build(config.read(written(tmp_path, text), sets=["search.finalists=all"]))
    assert every.search.finalists is None
    assert (study.search.timeout_s, study.search.sampler, study.search.trials) == (
        120.0,
        "random",
        200,
    )
    assert (study.space.share, study.space.layers["fc"].techniques) == ("stage", ())
    assert (study.task.training.epochs, study.recovery.epochs, study.recovery.distill) == (
        20,
        5,
        0.5,
    )
    assert sum(parameter.numel() for parameter in study.task.build().parameters()) < 5000
    assert study.resolved["folder"] == str(tmp_path.resolve())


@pytest.mark.promise("options")
def test_the_password_of_a_storage_is_never_written_nor_said(tmp_path, monkeypatch):
    url = "postgresql://me:se/cr@et@host/runs?sslpassword=hidden&a=1"
    read = config.read(written(tmp_path, STUDY + f"search: {{storage: '{url}'}}\n"))
    assert read.values.search.storage == url  # what is opened
    run = config.open_run(read.resolved(), tmp_path / "run")
    text = run.study.read_text()
    assert (
        "postgresql://me:***@host/runs?sslpassword=***&a=1" in text
        and "cr@et" not in text
        and "hidden" not in text
    )
    (run.folder / "dense").mkdir()
    config.open_run(read.resolved(), run.folder)  # goes on
    for path in run.folder.rglob("*"):
        assert not path.is_file() or b"cr@et" not in path.read_bytes()
    with pytest.raises(StudyError) as caught:
        config.read("digits", sets=[f"search.storag={url}"])
    assert "cr@et" not in str(caught.value) and "me:***@host" in str(caught.value)


@pytest.mark.promise("options")
def test_a_run_gets_the_password_of_its_storage_from_the_environment(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from autoprune.run import Run
    from autoprune.searching.optuna_study import storage

    shown, url = f"sqlite:///{tmp_path}/db?password=***", f"sqlite:///{tmp_path}/db?password=secret"
    study = SimpleNamespace(search=SimpleNamespace(storage=shown), name="x")
    for given in (None, "sqlite:///elsewhere?password=secret"):
        if given:
            monkeypatch.setenv("AUTOPRUNE_STORAGE", given)
        with pytest.raises(InputError, match="AUTOPRUNE_STORAGE"):
            storage.open_storage(study, Run(tmp_path / "run"))
    monkeypatch.setenv("AUTOPRUNE_STORAGE", url)
    opened: list[str] = []
    monkeypatch.setattr(storage.optuna.storages, "get_storage", opened.append)
    storage.open_storage(study, Run(tmp_path / "run"))
    assert opened == [url]


@pytest.mark.promise("options")
@pytest.mark.parametrize(
    ("section", "given", "key", "says"),
    [
        ("task.training", "momentum: 1.0", "task.training.momentum", "less than 1"),
        ("task.training", "schedule: cosin", "task.training.schedule", "did you mean 'cosine'?"),
        (
            "task.training",
            "warmup: -0.1",
            "task.training.warmup",
            "greater than or equal to 0|at least 0",
        ),
        (
            "task.training",
            "baseline: sometimes",
            "task.training.baseline",
            "known: auto, always, never",
        ),
        ("recovery", "schedule: step", "recovery.schedule", "known: cosine, linear, constant"),
        ("recovery", "epochs: 3, iterations: 3", "recovery.iterations", "need at least 4 epochs"),
        ("recovery", "epochs: 0, iterations: 2", "recovery.iterations", "need at least 3 epochs"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_with_its_key(section, given, key, says, tmp_path):
    training = f", training: {{{given}}}" if section == "task.training" else ""
    recovery = f"recovery: {{{given}}}\n" if section == "recovery" else ""
    text = f"version: 1\ntask: {{model: zoo:digits_cnn, data: zoo:digits{training}}}\nbudget: {{latency: 50%}}\n"
    with pytest.raises(StudyError, match=says) as refused:
        config.read(written(tmp_path, text + recovery))
    assert refused.value.key == key


def test_a_run_of_before_these_keys_goes_on(tmp_path):
    text = "version: 1\ntask: {model: zoo:digits_cnn, data: zoo:digits}\nbudget: {latency: 50%}\n"
    resolved = config.read(written(tmp_path, text)).resolved()
    later = ("baseline", "momentum", "schedule", "warmup")
    training = {
        key: value for key, value in resolved["task"]["training"].items() if key not in later
    }
    recovery = {key: value for key, value in resolved["recovery"].items() if key not in later}
    before = resolved | {"task": resolved["task"] | {"training": training}, "recovery": recovery}
    assert before != resolved and config.differences(before, resolved) == []
    other = resolved | {"recovery": resolved["recovery"] | {"momentum": 0.5}}
    assert config.differences(before, other) == ["recovery.momentum: nothing -> 0.5"]
