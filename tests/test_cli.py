"""The command line: exit statuses, what is written where, and what is handed on to the engine."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import autoprune.searching
from autoprune import cli
from autoprune.errors import BudgetError, InputError, TrainingError, VerificationError
from autoprune.group import Group
from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Choice, Plan
from autoprune.run import Run
from autoprune.score import Candidate, Score
from autoprune.searching.selecting.answers import Answer
from autoprune.space import Options, Variable
from autoprune.task import Recipe

ROOT = Path(__file__).parents[1]
COMMANDS = ("check", "search", "measure", "targets", "prune", "export", "verify")
STUDY = """version: 1
name: small
task: {model: {name: "zoo:digits_cnn", args: {width: 4, hidden: 8}}, data: zoo:digits}
budget: {latency: 50%}
"""
GROUPS = (
    Group("stem", "units", ("stem.0", "stage1.conv2"), ("conv", "conv"), (4,)),
    Group("fc", "weights", ("fc",), ("linear",), (10, 8)),
    Group(
        "fc", "units", ("fc",), ("linear",), (10,), refusal="its channels are the network's output"
    ),
)
DENSE = Score(
    metric=0.98,
    test_metric=0.97,
    flops=1_234_567,
    params=4321,
    latency=LatencyFigures(ms=0.1234, ratio=1.0),
)
BEST = Candidate(
    3,
    Plan({"stem:units": Choice("structured", 0.45, "l2")}),
    Score(0.9612, 0.9501, flops=400_000, params=1200, size_bytes=5678, latency=LatencyFigures(ms=0.06, ms_low=0.059, ms_high=0.061, ratio=0.48, ratio_low=0.477, ratio_high=0.483)),
    True,
    "trained",
)  # fmt: skip
ANSWERS = [
    Answer("latency=49%", BEST, True),
    Answer("latency=14%", replace(BEST, number=1, stage="screened"), False),
]


@dataclass
class Engine:
    """Stands for the searching package; notes what it was called with."""

    best: Candidate | None = BEST
    interrupted: bool = False
    raises: BaseException | None = None
    needless: str | None = None
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def search(self, study: Any, run: Run, *, listener: Any) -> Any:
        listener.on_plan(90.0, study.search.trials)
        listener.on_trial(BEST, self.best)
        run.journal.write_text("")
        return self._result("search", (study, run), run)

    def prune(self, study: Any, plan: Plan, folder: Path, *, listener: Any) -> Any:
        return self._result("prune", (study, plan, folder), Run(folder))

    def export(
        self, study: Any, run: Run, folder: Path, *, trial: int | None, listener: Any
    ) -> Any:
        return self._result("export", (study, run, folder, trial), Run(folder))

    def export_trained(self, study: Any, run: Run, folder: Path, *, listener: Any) -> Any:
        return self._result("export_trained", (study, run, folder), Run(folder))

    def answerable(self, study: Any, run: Run) -> Any:
        return ANSWERS

    def check(self, study: Any) -> Any:
        self.calls.append(("check", study))
        variables = [Variable("stem:units", GROUPS[:1], Options(("structured",)))]
        lowest = Score(flops=1000, params=100, latency=LatencyFigures(ms=0.02, ratio=0.2))
        return SimpleNamespace(
            groups=GROUPS, variables=variables, dense=DENSE, lowest=lowest, seconds=200.0, warnings=["few trials"],
            unreachable=None if self.best else "the most pruned plan still takes 60 % of dense", needless=self.needless,
            origin="the dense model guesses as yet, so it is trained first, 20 epochs",
            recipes={"recovery": Recipe(epochs=7, momentum=0.8)},
        )  # fmt: skip

    def _result(self, name: str, call: Any, run: Run) -> Any:
        self.calls.append((name, call))
        if self.raises is not None:
            raise self.raises
        front = [self.best] if self.best else []
        return SimpleNamespace(
            run=run, dense=DENSE, front=front, best=self.best, groups=GROUPS, interrupted=self.interrupted,
            answers=ANSWERS,
        )  # fmt: skip


@pytest.fixture
def engine(monkeypatch, tmp_path) -> Engine:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(STUDY)
    stand_in = Engine()
    for name in ("search", "prune", "export", "export_trained", "answerable", "check"):
        monkeypatch.setattr(autoprune.searching, name, getattr(stand_in, name), raising=False)
    return stand_in


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_version_and_help_on_every_level():
    assert re.fullmatch(r"autoprune \S+\n", run("--version").stdout)
    assert all(name in run("--help").stdout for name in COMMANDS)
    for name in COMMANDS:
        shown = run(name, "--help")
        assert shown.exit_code == 0
        assert "--json" in shown.stdout and "--quiet" in shown.stdout
    assert "--install-completion" in run("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "digist"], "unknown study 'digist' (did you mean 'digits'?)"),
        (["search", "digits", "--budget", "latency=50"], "--budget latency=50, key 'budget.latency': latency needs"),
        (["check", "digits", "--set", "search.trial=1"], "did you mean 'trials'?"),
        (["search", "digits", "--timeout", "10"], "--timeout 10, key 'search.timeout': needs a time with its unit"),
        (["measure", "zoo:digits_cnn"], "give its input's shape, as in --input 1x3x224x224"),
        (["measure", "zoo:digit_cnn"], "did you mean 'zoo:digits_cnn'?"),
        (["measure", "zoo:digits_cnn", "--input", "8x"], "--input needs a shape with the batch first"),
        (["measure", "zoo:digits_cnn", "--target", "cpu"], "unknown target 'cpu'"),
        (["verify", "nowhere"], "no artefact at nowhere"),
        (["export", "nowhere", "--out", "x"], "holds no finished run"),
        (["prune", "digits", "--plan", "absent.json", "--out", "x"], "absent.json: there is no such file"),
    ],
)  # fmt: skip
def test_bad_input_is_one_paragraph_on_stderr_and_status_2(engine, arguments, says):
    ended = run(*arguments)
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert engine.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["search"],
        ["searhc", "digits"],
        ["search", "digits", "--trials", "many"],
        ["search", "digits", "--fast"],
    ],
)
def test_wrong_usage_has_status_2_too(arguments):
    ended = run(*arguments)
    assert ended.exit_code == 2
    assert "Error" in ended.stderr


def test_a_wrong_study_is_refused_without_torch_and_without_a_traceback(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(STUDY + "search: {trials: 0}\n")
    program = "import sys; from autoprune import cli\ntry: cli.main()\nfinally: print('torch' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", program, "search", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == "False\n"
    assert (
        ended.stderr
        == f"autoprune: {path}, line 5, key 'search.trials': must be at least 1; got 0\n"
    )


def test_a_search_shows_dense_best_and_what_was_done_to_each_layer(engine, tmp_path):
    ended = run("search", "small.yaml", "--trials", "5", "--seed", "7", "--out", "out")
    assert ended.exit_code == 0
    for text in ("dense", "0.9800", "3 best", "0.9612", "0.9501", "0.0600 ms", "[0.0590, 0.0610]",
                 "48.0 %", "[47.7, 48.3]",
                 "1.23M", "structured 4 → 2 (l2)", "stem.0, stage1.conv2", "left whole: fc"):  # fmt: skip
        assert text in ended.stdout, text
    assert "5 trials, about 1 min 30 s to 4 min 30 s in all" in ended.stderr
    assert "trial 3 of 5: metric 0.9612, latency 48.0 % of dense; best: trial 3" in ended.stderr
    ((_, (study, opened)),) = engine.calls
    assert (study.search.trials, study.search.seed, opened.folder) == (5, 7, Path("out"))
    assert "trials: 5" in (tmp_path / "out" / "study.yaml").read_text()


def test_json_is_one_object_and_quiet_is_silent(engine):
    ended = run("search", "small.yaml", "--json")
    record = json.loads(ended.stdout)
    assert ended.stderr == ""
    assert record["best"]["trial"] == 3
    assert record["baseline"]["flops"] == 1_234_567
    assert Plan.from_json(record["front"][0]["plan"]) == BEST.plan
    silent = run("search", "small.yaml", "--quiet")
    assert (silent.exit_code, silent.stdout, silent.stderr) == (0, "", "")


def test_no_plan_in_the_budget_has_status_3(engine):
    engine.best = None
    ended = run("search", "small.yaml")
    assert ended.exit_code == 3
    assert "no plan meets the budget (latency at most 50%)" in ended.stderr
    engine.raises = BudgetError("the best came to 61 %; 55 % was reachable")
    assert run("search", "small.yaml").exit_code == 3
    unreachable = run("check", "small.yaml")
    assert unreachable.exit_code == 3
    assert "still takes 60 % of dense" in unreachable.stderr


def test_interruption_has_status_130_and_broken_training_1(engine):
    engine.interrupted = True
    ended = run("search", "small.yaml")
    assert ended.exit_code == 130
    assert "3 best" in ended.stdout  # what is done by then is shown
    engine.raises = KeyboardInterrupt()
    assert run("search", "small.yaml").exit_code == 130
    engine.raises = TrainingError("the loss is not finite")
    assert run("search", "small.yaml").exit_code == 1


def test_another_study_is_refused_in_the_same_folder_unless_fresh(engine, tmp_path):
    assert run("search", "small.yaml").exit_code == 0
    kept = (tmp_path / "runs/small/study.yaml").read_text()
    other = run(
        "search", "small.yaml", "--trials", "9", "--budget", "latency=30%", "--timeout", "1h"
    )
    assert other.exit_code == 0 and "results: runs/small/latency=30%" in other.stdout
    assert (tmp_path / "runs/small/study.yaml").read_text() == kept
    refused = run("search", "small.yaml", "--seed", "4")
    assert refused.exit_code == 2
    assert "search.seed: 0 -> 4" in refused.stderr and "--fresh" in refused.stderr
    assert len(engine.calls) == 2
    assert run("search", "small.yaml", "--seed", "4", "--fresh").exit_code == 0
    assert "seed: 0" in (tmp_path / "runs/small.1/study.yaml").read_text()
    assert "seed: 4" in (tmp_path / "runs/small/study.yaml").read_text()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    assert run("search", "small.yaml", "--out", "foreign", "--fresh").exit_code == 2
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]


def test_a_run_that_found_nothing_out_yet_may_change_its_study(engine, tmp_path):
    engine.raises = BudgetError("nothing")
    run("search", "small.yaml")
    (tmp_path / "runs/small/study.journal").unlink()
    engine.raises = None
    assert run("search", "small.yaml", "--seed", "4").exit_code == 0


def test_check_lists_groups_refusals_costs_and_time(engine):
    shown = run("check", "small.yaml")
    assert shown.exit_code == 0
    for text in ("stem.0, stage1.conv2", "4 units", "refused: its channels are the network's output", "1.23M",
                 "most pruned", "about 3 min 20 s to 10 min 0 s", "few trials", "10x8 weights",
                 "The dense model guesses as yet, so it is trained first, 20 epochs",
                 "recovery: epochs 7, batch_size 64", "weight_decay 0.01, momentum 0.8, schedule cosine"):  # fmt: skip
        assert text in " ".join(shown.stdout.split()) or text in shown.stdout, text
    record = json.loads(run("check", "small.yaml", "--json").stdout)
    assert [group["size"] for group in record["groups"]] == [4, 80, 10]
    assert record["groups"][0]["variable"] == "stem:units"
    assert record["seconds"] == 200.0 and record["recipes"]["recovery"]["momentum"] == 0.8


@pytest.mark.promise("finished-run")
def test_check_says_where_the_dense_model_keeps_the_budget(engine):
    engine.needless = "the dense model keeps the budget already"
    ended = run("check", "small.yaml")
    assert (ended.exit_code, engine.needless in ended.stderr, "Groups" in ended.stdout) == (
        2,
        True,
        True,
    )


def test_prune_hands_on_the_plan(engine, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(BEST.plan.to_json()))
    assert run("prune", "small.yaml", "--plan", "plan.json", "--out", "made").exit_code == 0
    ((name, (_, plan, folder)),) = engine.calls
    assert (name, plan, folder) == ("prune", BEST.plan, Path("made"))
    (tmp_path / "plan.json").write_text('{"version": 2, "choices": {}}')
    ended = run("prune", "small.yaml", "--plan", "plan.json", "--out", "made")
    assert (ended.exit_code, "plan.json: this plan has version 2" in ended.stderr) == (2, True)


def test_export_takes_another_budget_other_formats_or_a_trial(engine, tmp_path):
    run("search", "small.yaml")
    (tmp_path / "runs/small/front.json").write_text("{}")
    engine.calls.clear()
    assert (
        run(
            "export", "runs/small", "--budget", "latency=30%", "--format", "onnx", "--out", "made"
        ).exit_code
        == 0
    )
    assert run("export", "runs/small", "--trial", "3", "--out", "made").exit_code == 0
    (_, (study, opened, folder, trial)), (_, (_, _, _, second)) = engine.calls
    assert (str(study.budget), study.formats, trial, second) == (
        "latency at most 30%",
        ("onnx",),
        None,
        3,
    )
    assert (opened.folder, folder) == (Path("runs/small"), Path("made"))
    both = run("export", "runs/small", "--trial", "3", "--budget", "latency=30%", "--out", "made")
    assert (both.exit_code, "not with --budget" in both.stderr) == (2, True)


@pytest.mark.promise("budgets")
def test_export_lists_the_budgets_that_a_run_can_answer_and_trains_for_one(engine, tmp_path):
    closing = run("search", "small.yaml").stdout
    assert "`autoprune export runs/small --budget latency=14% --train --out DIR`" in " ".join(
        closing.split()
    )
    (tmp_path / "runs/small/front.json").write_text("{}")
    listed = run("export", "runs/small")
    assert (
        listed.exit_code == 0
        and "needs --train" in listed.stdout
        and "latency=49%" in listed.stdout
    )
    record = json.loads(run("export", "runs/small", "--json").stdout)
    assert [(each["budget"], each["trained"]) for each in record["answers"]] == [
        ("latency=49%", True),
        ("latency=14%", False),
    ]
    engine.calls.clear()
    assert (
        run("export", "runs/small", "--budget", "latency=14%", "--train", "--out", "made").exit_code
        == 0
    )
    ((name, (study, opened, folder)),) = engine.calls
    assert (name, str(study.budget), folder) == (
        "export_trained",
        "latency at most 14%",
        Path("made"),
    )
    assert (opened.folder, opened.part) == (Path("runs/small"), "latency=14%")
    for wrong in (
        ["--train"],
        ["--trial", "3"],
        ["--trial", "3", "--train", "--out", "x"],
        ["--budget", "params=9%"],
    ):
        assert run("export", "runs/small", *wrong).exit_code == 2


@pytest.mark.promise("budgets", "options")
def test_a_quantity_that_is_limited_several_times_makes_a_family(engine, tmp_path):
    asked = ("--budget", "latency=30%", "--budget", "params=80%", "--budget", "latency=50%")
    ended = run("search", "small.yaml", *asked)
    assert ended.exit_code == 0, ended.stderr
    searched = [(str(study.budget), opened.part) for _, (study, opened) in engine.calls]
    assert searched == [
        ("latency at most 50%, params at most 80%", ""),  # the loosest is the run's own
        ("latency at most 30%, params at most 80%", "latency=30%,params=80%"),
    ]
    assert "The family" in ended.stdout and "runs/small/latency=30%" in "".join(
        ended.stdout.split()
    )
    members = json.loads(run("search", "small.yaml", *asked, "--json").stdout)["family"]
    assert [each["budget"]["latency"] for each in members] == ["50%", "30%"]
    assert all(each["result"]["best"]["trial"] == 3 and each["unmet"] is None for each in members)
    engine.raises = BudgetError("no plan meets it")
    missed = run("search", "small.yaml", *asked)
    assert (missed.exit_code, missed.stderr.count("no plan meets it")) == (3, 2)
    for wrong in (
        ["latency=50%", "latency=2ms"],
        ["latency=50%", "latency=30%", "params=9%", "params=8%"],
    ):
        options = [part for text in wrong for part in ("--budget", text)]
        assert run("search", "small.yaml", *options).exit_code == 2
    twice = run("check", "small.yaml", "--budget", "latency=50%", "--budget", "latency=30%")
    assert (twice.exit_code, "latency is limited twice" in twice.stderr) == (2, True)


def test_a_failed_verification_has_status_4(tmp_path, monkeypatch):
    from autoprune.exporting import verify

    def failing(folder: Path, trust: bool) -> Any:
        (folder / "verification.json").write_text('{"passed": false, "checks": []}')
        raise VerificationError("the widths differ")

    monkeypatch.setattr(verify, "verify", failing)
    ended = run("verify", tmp_path, "--json")
    assert ended.exit_code == 4
    assert json.loads(ended.stdout)["passed"] is False
    assert "the widths differ" in ended.stderr
    passed = {"passed": True, "checks": [{"name": "onnx", "passed": True, "detail": "error 1e-7"}]}
    monkeypatch.setattr(verify, "verify", lambda folder, trust: passed)
    shown = run("verify", tmp_path)
    assert (shown.exit_code, "error 1e-7" in shown.stdout) == (0, True)


@pytest.mark.slow
def test_measure_counts_a_model_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "measured_net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())\n"
    )
    (tmp_path / "here.yaml").write_text("runtime: eager\nthreads: 1\n")
    ended = run(
        "measure", "measured_net:build", "--input", "2x4", "--target", "here.yaml", "--json"
    )
    assert ended.exit_code == 0, ended.stderr
    (record,) = json.loads(ended.stdout)["measured"]
    score = record["score"]
    assert (score["flops"], score["params"], record["target"]["batch"]) == (24, 15, 2)
    assert (
        0 <= score["latency_ms_low"] <= score["latency_ms"] <= score["latency_ms_high"]
        and score["latency_ms"] > 0
    )
    assert score["throughput"] == pytest.approx(2e3 / score["latency_ms"])
    assert [
        (layer["name"], layer["flops"], layer["params"])
        for layer in record["layers"]
        if layer["flops"]
    ] == [("0", 24, 15)]


@pytest.mark.slow
def test_measure_puts_targets_and_models_side_by_side(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("runtime: eager\n")
    arguments = (
        "measure",
        "zoo:digits_cnn",
        "--input",
        "1x1x8x8",
        "--target",
        "cpu_onnxruntime",
        "--target",
        "own.yaml",
    )
    ended = run(*arguments, "--json")
    assert ended.exit_code == 0, ended.stderr
    record = json.loads(ended.stdout)
    assert record["version"] == 2
    first, second = record["measured"]
    assert set(first) == set(second) == {"model", "target", "score", "layers", "layers_note"}
    assert [each["target"]["name"] for each in (first, second)] == ["cpu_onnxruntime", "own"]
    for each in (first, second):
        score = each["score"]
        assert score["flops"] == 8482048 and score["resources"]["memory"] > 4 * score["params"]
        assert 0.8 < score["size_compressed_bytes"] / score["size_bytes"] < 1
        assert ("energy" not in score["resources"]) == any(
            text.startswith("energy: ") for text in score["unavailable"]
        )
        assert sum(layer["share"] for layer in each["layers"]) == pytest.approx(1)


def test_measure_shows_what_is_not_available_and_the_costliest_layers(monkeypatch):
    from autoprune import subject
    from autoprune.measuring.profiling.per_layer import Breakdown, Layer
    from autoprune.target import Target

    score = Score(
        flops=1000,
        params=30,
        latency=LatencyFigures(ms=1.0),
        resources={"memory": 2_000_000},
        unavailable=("energy: no counter",),
    )
    layers = tuple(
        Layer(f"layer{place}", "Linear", 1.0 + place, (1 + place) / 6, 10, 10) for place in range(3)
    )
    found = subject.Measured("net", Target(name="here"), score, Breakdown(layers))
    monkeypatch.setattr(subject, "every", lambda *_: [None])
    monkeypatch.setattr(subject, "measure_subject", lambda *_: found)
    shown = run("measure", "net", "--layers", "1").stdout
    for text in (
        "net on here",
        "2 MB",
        "not available",
        "energy: no counter",
        "layer2",
        "50.0 %",
        "2 more",
    ):
        assert text in shown, text
    assert "layer1" not in shown


def test_targets_lists_what_runs_here_and_why_not(monkeypatch):
    import torch

    from autoprune import plugins

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    listed = json.loads(run("targets", "--json").stdout)["targets"]
    by_name = {each["name"]: each for each in listed}
    assert by_name["cpu_onnxruntime"]["runs_here"] and by_name["cpu_onnxruntime"]["reason"] is None
    assert (by_name["cuda_eager"]["runs_here"], by_name["cuda_eager"]["reason"]) == (
        False,
        "no CUDA device",
    )
    shown = run("targets").stdout
    assert all(name in shown for name in by_name) and "no: no CUDA device" in shown
    one = json.loads(run("targets", "cpu_onnxruntime", "--json").stdout)["target"]
    assert one["settings"]["multiple_of"] == {
        "value": 8,
        "default": 1,
        "needed": "a whole number, at least 1",
    }
    assert set(plugins.names("runtime")) <= set(
        one["settings"]["runtime"]["needed"].replace(",", "").split()
    )
    assert (
        "fp32" in one["settings"]["dtype"]["needed"]
        and "runs here" in run("targets", "cpu_onnxruntime").stdout
    )
    wrong = run("targets", "cpu_egaer")
    assert (wrong.exit_code, "did you mean 'cpu_eager'?" in wrong.stderr) == (2, True)


def test_a_target_whose_package_is_missing_says_which(tmp_path, monkeypatch):
    from autoprune.reading import available, references

    real = references.find
    monkeypatch.setattr(
        references, "find", lambda name, *rest: None if name == "onnxruntime" else real(name, *rest)
    )
    found = {each.target.name: each.reason for each in available.every()}
    assert "needs the package 'onnxruntime'" in str(found["cpu_onnxruntime"])


def test_the_first_interrupt_is_raised_once_and_the_second_ends_the_process():
    program = """
import sys, time
from autoprune.searching.interrupt import Interrupt
with Interrupt() as interrupt:
    try:
        print("ready", flush=True)
        time.sleep(20)
    except KeyboardInterrupt:
        print("finishing", interrupt.requested, flush=True)
    time.sleep(20)
print("never")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "finishing True\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.read() == ""
        assert process.wait(10) == 130


@pytest.mark.parametrize("width", [80, 100, 200])
def test_closing_tables_lose_nothing_on_a_narrow_terminal(width):
    from rich.console import Console

    from autoprune.reporting import tables

    others = [
        Candidate(number, BEST.plan, BEST.score, False, "trained", "over")
        for number in range(4, 12)
    ]
    result = SimpleNamespace(dense=DENSE, best=BEST, front=[BEST, *others], groups=GROUPS)
    stream = io.StringIO()
    for table in tables.closing(result, "accuracy"):
        Console(file=stream, width=width).print(table)
    shown = stream.getvalue()
    assert "…" not in shown
    assert all(len(line) <= width for line in shown.splitlines())
    assert shown.count("structured") == 9  # the best and the eight others


@pytest.mark.parametrize("shape", ["1,1,8,8", "1x8x8x8"])
def test_measure_refuses_inputs_that_the_model_does_not_take(shape):
    from autoprune import subject

    with pytest.raises(InputError, match="does not run on --input"):
        subject.of("zoo:digits_cnn", shape)


def test_verify_names_the_artefact_of_a_run(tmp_path):
    from autoprune.exporting import artefact

    (tmp_path / "dense").mkdir()
    (tmp_path / "study.yaml").write_text("version: 1\n")
    with pytest.raises(InputError, match=r"folder of a search; its artefact is .*best"):
        artefact.require(tmp_path)
