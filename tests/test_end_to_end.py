"""The real command, as a user starts it, kills it, and starts it again; the model is in the user's own file."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import autoprune
from autoprune.errors import InputError
from autoprune.searching.optuna_study.storage import mend

OWN = Path(__file__).parent / "own"
LIMIT_S = 900  # of one command: beside other jobs a search of six trials has taken five minutes


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for path in OWN.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


def start(here: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "autoprune", *arguments], cwd=here, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def run(here: Path, *arguments: str, status: int = 0) -> tuple[str, str]:
    process = start(here, *arguments)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == status, err + out
    assert "Traceback" not in err
    return out, err


def until(process: subprocess.Popen[str], text: str, *, then: float = 0.0) -> None:
    """Read on until a line holds `text`, and wait `then` seconds."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            time.sleep(then)
            return
    raise AssertionError(f"{text!r} never came: {''.join(seen)}")


def send(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str]:
    """Send a signal as a terminal does, to the whole group; the exit status and what was said afterwards."""
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, err


def front(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "front.json").read_text())
    return found


def points(folder: Path) -> list[tuple[float, int, bool]]:
    return [
        (each["score"]["metric"], each["score"]["flops"], each["feasible"])
        for each in front(folder)["front"]
    ]


def test_killed_in_a_trial_it_goes_on_exports_and_verifies(here: Path) -> None:
    settings = ("search.finalists=1", "search.trials=5", "export.formats=[safetensors]")
    asked = ("search", "mine.yaml", *(word for setting in settings for word in ("--set", setting)))
    folder = here / "runs" / "mine"
    process = start(here, *asked)
    until(process, "trial 4 of 8", then=0.2)
    send(process, signal.SIGKILL)
    stamp = (folder / "dense" / "model.safetensors").stat().st_mtime_ns
    out, _ = run(here, *asked, "--json")
    result = json.loads(out)
    assert (
        result["best"]["score"]["flops"] <= 0.6 * result["baseline"]["flops"]
        and result["best"]["feasible"]
    )
    assert (folder / "dense" / "model.safetensors").stat().st_mtime_ns == stamp
    assert json.loads((folder / "best" / "verification.json").read_text())["passed"]


@pytest.mark.slow
def test_killed_again_and_again_it_goes_on(here: Path) -> None:
    folder, asked = here / "runs" / "mine", ("search", "mine.yaml", "--set", "search.finalists=1")
    process = start(here, *asked)
    until(process, "training the dense model", then=0.05)
    send(process, signal.SIGKILL)
    assert not (folder / "dense" / "score.json").exists()

    process = start(here, *asked)
    until(process, "trial 4 of 9", then=0.2)
    _, said = run(here, *asked, status=2)
    assert "another search is running" in said
    send(process, signal.SIGKILL)
    dense = folder / "dense" / "model.safetensors"
    stamp, kept = dense.stat().st_mtime_ns, front(folder)["front"]
    journal = folder / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-5])
    os.symlink(str(journal), f"{journal}.lock")

    out, said = run(here, *asked, "--json")
    assert dense.stat().st_mtime_ns == stamp
    result = json.loads(out)
    assert (
        result["best"]["score"]["flops"] <= 0.6 * result["baseline"]["flops"]
        and result["best"]["feasible"]
    )
    numbers = {each["trial"] for each in front(folder)["front"]}
    assert numbers and front(folder)["best"] == result["best"]["trial"] and kept
    verified = json.loads((folder / "best" / "verification.json").read_text())
    assert verified["passed"] and verified["open"] == []
    states = [line.split(",")[1:3] for line in (folder / "trials.csv").read_text().splitlines()[1:]]
    stages = [stage for state, stage in states if state == "COMPLETE"]
    assert (
        stages.count("dense") == 1
        and stages.count("screened") == 5
        and 1 <= stages.count("trained") <= 4
    )
    assert not list(folder.rglob("*.lock"))[1:]  # the run's own alone

    loaded = autoprune.load(folder / "best", trust=True)
    assert sum(each.numel() for each in loaded.parameters()) == result["best"]["score"]["params"]
    with pytest.raises(InputError, match="trust"):
        autoprune.load(folder / "best")


@pytest.mark.slow
def test_interrupted_once_it_exports_the_best_so_far(here: Path) -> None:
    process = start(here, "search", "mine.yaml", "--set", "export.formats=[safetensors]")
    until(process, "best: trial", then=0.1)  # the first that is trained
    status, said = send(process, signal.SIGINT)
    assert status == 130 and "interrupted" in said and "Traceback" not in said
    folder = here / "runs" / "mine"
    assert front(folder)["best"] is not None
    assert json.loads((folder / "best" / "verification.json").read_text())["passed"]


@pytest.mark.slow
@pytest.mark.promise("limits-of-time")
def test_json_stands_alone_on_stdout_whatever_models_and_their_processes_print(
    tmp_path: Path,
) -> None:
    (tmp_path / "loud.py").write_text(
        "import os, subprocess, sys\nprint('at import')\nfrom torch import nn\n"
        "class Loud(nn.Linear):\n    def forward(self, x):\n"
        "        print('called')\n        return super().forward(x)\n"
        "def build():\n    os.write(1, b'by descriptor\\n')\n"
        "    subprocess.run([sys.executable, '-c', 'print(\"by a child\")'], check=True)\n    return Loud(4, 3)\n"
    )
    (tmp_path / "here.yaml").write_text("runtime: eager\n")
    asked = (
        "measure",
        "loud:build",
        "--input",
        "1x4",
        "--target",
        "here.yaml",
        "--layers",
        "0",
        "--json",
    )
    out, err = run(tmp_path, *asked)
    assert json.loads(out)["measured"][0]["score"]["params"] == 15
    assert all(said in err for said in ("at import", "called", "by descriptor", "by a child"))
    out, err = run(tmp_path, "targets", "nowhere", "--json", status=2)
    assert (out, "unknown target" in err) == ("", True)


def ended_trials(folder: Path) -> dict[tuple[str, int], Any]:
    """What the journal has of every trial that ended: its values, its figures, its plan."""
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    studies = (
        optuna.load_study(storage=storage, study_name=name)
        for name in optuna.get_all_study_names(storage)
    )
    return {
        (study.study_name, trial.number): (trial.values, trial.user_attrs)
        for study in studies
        for trial in study.get_trials(deepcopy=False)
        if "stage" in trial.user_attrs
    }


@pytest.mark.slow
@pytest.mark.promise("leftovers")
@pytest.mark.promise("journal")
def test_killed_thirty_times_it_loses_no_trial_and_leaves_nothing_behind(here: Path) -> None:
    draw, folder, temporary = random.Random(0), here / "runs" / "mine", here / "temporary"
    temporary.mkdir()
    asked = ("search", "mine.yaml", "--trials", "1000", "--set", "export.formats=[safetensors]")
    before: dict[tuple[str, int], Any] = {}
    for number in range(30):
        process = start(here, *asked, TMPDIR=str(temporary))
        if number % 3:  # in a trial; else wherever it is
            until(process, "trial ", then=draw.uniform(0, 4))
        else:
            time.sleep(draw.uniform(2, 14))
        send(process, signal.SIGKILL)
        if not (folder / "study.journal").exists():
            continue
        copy = here / "copy"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.lock"), symlinks=True)
        mend(copy / "study.journal")
        after = ended_trials(copy)
        assert all(after[place] == trial for place, trial in before.items())
        for path in copy.rglob("*.json"):
            assert path.name.startswith(".") or json.loads(path.read_text()) is not None
        shutil.rmtree(copy)
        before = after
    screened = sum(attributes["stage"] == "screened" for _, attributes in before.values())
    assert screened > 10
    run(here, *asked[:3], str(screened), *asked[4:], "-q")
    assert json.loads((folder / "best" / "verification.json").read_text())["passed"]
    # The caches of torch's compiler and of ONNX Runtime: one of each for a user, however many kills.
    theirs = {path.name for path in temporary.iterdir()} - {".ses"}
    assert all(name.startswith("torchinductor_") for name in theirs), theirs
    assert not (folder / ".scratch").exists()
    hidden = {path.name for path in folder.rglob(".*")}
    assert hidden <= {".lock"}, hidden


@pytest.mark.slow
def test_interrupted_twice_it_stops_at_once_and_goes_on_later(here: Path) -> None:
    run(here, "search", "mine.yaml", "--out", "whole", "-q")
    process = start(here, "search", "mine.yaml", "--out", "cut")
    until(process, "trial 4 of 12", then=0.2)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    began = time.monotonic()
    status, _ = send(process, signal.SIGINT)
    # Nothing is trained yet, so the process may be on its way out, where Python's own handler is back
    assert status in (130, -signal.SIGINT) and time.monotonic() - began < 3
    process = start(here, "search", "mine.yaml", "--out", "cut")
    until(process, "exporting and verifying", then=0.5)
    status, said = send(process, signal.SIGINT)
    assert status == 130 and "Traceback" not in said
    assert points(here / "cut") == points(here / "whole")
    assert json.loads((here / "cut" / "best" / "verification.json").read_text())["passed"]


@pytest.mark.slow
def test_other_answers_from_a_finished_run(here: Path) -> None:
    run(
        here,
        "search",
        "mine.yaml",
        "--set",
        "search.objectives=[metric, latency]",
        "--budget",
        "latency=90%",
        "-q",
    )
    stamp = (here / "runs/mine/dense/model.safetensors").stat().st_mtime_ns
    for budget in ("latency=70%", "latency=30%", "params=50%"):
        process = start(
            here,
            "export",
            "runs/mine",
            "--budget",
            budget,
            "--format",
            "onnx",
            "--out",
            budget,
            "--trust",
        )
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode in (0, 3), err
        if process.returncode == 3:
            assert "Reachable was" in err and not (here / budget).exists()
        else:
            assert json.loads((here / budget / "verification.json").read_text())["passed"]
            assert {"model.onnx", "model.safetensors"} <= {
                path.name for path in (here / budget).iterdir()
            }
            assert not (here / budget / "model.pt2").exists()
            run(here, "verify", budget, "--trust")
    number = front(here / "runs/mine")["front"][0]["trial"]
    out, _ = run(
        here, "export", "runs/mine", "--trial", str(number), "--out", "one", "--json", "--trust"
    )
    assert json.loads(out)["best"]["trial"] == number
    assert (here / "runs/mine/dense/model.safetensors").stat().st_mtime_ns == stamp
    run(here, "prune", "mine.yaml", "--plan", "one/plan.json", "--out", "pruned", "-q")
    out, _ = run(here, "measure", "pruned", "--json", "--trust")
    assert (
        json.loads(out)["measured"][0]["score"]["params"]
        == json.loads((here / "one" / "score.json").read_text())["params"]
    )


@pytest.mark.slow
def test_dictionary_batches_and_a_metric_to_minimise(here: Path) -> None:
    run(here, "check", "named.yaml")
    out, _ = run(here, "search", "named.yaml", "--json")
    result = json.loads(out)
    assert result["best"]["score"]["latency_ratio_high"] <= 0.8
    metrics = [each["score"]["metric"] for each in result["front"]]
    assert metrics == sorted(metrics)
    assert front(here / "runs/named")["metric"] == {"name": "wrongness", "goal": "minimize"}
    model = autoprune.load(here / "runs/named/best", trust=True)
    assert model(image=torch.randn(2, 3, 16, 16))["logits"].shape == (2, 4)


@pytest.mark.slow
def test_a_changed_study_is_refused_and_fresh_keeps_the_old_folder(here: Path) -> None:
    run(here, "search", "mine.yaml", "--trials", "3", "-q")
    _, said = run(here, "search", "mine.yaml", "--set", "recovery.epochs=1", status=2)
    assert "recovery.epochs: 3 -> 1" in said and "--fresh" in said
    run(here, "search", "mine.yaml", "--set", "recovery.epochs=1", "--trials", "3", "--fresh", "-q")
    assert (here / "runs/mine.1/best/score.json").exists() and (
        here / "runs/mine/best/score.json"
    ).exists()
    stamp = (here / "runs/mine/dense/model.safetensors").stat().st_mtime_ns
    changed = (
        "search",
        "mine.yaml",
        "--set",
        "recovery.epochs=1",
        "--budget",
        "flops=70%",
        "--trials",
        "4",
        "--timeout",
        "5m",
    )
    _, said = run(here, *changed)
    assert (
        re.search(r"going on with runs/mine: \d+ trials are done", said)
        and (here / "runs/mine/dense/model.safetensors").stat().st_mtime_ns == stamp
    )


@pytest.mark.slow
def test_exit_three_says_what_was_reachable(here: Path) -> None:
    _, said = run(here, "search", "mine.yaml", "--budget", "flops=0.1%", status=3)
    assert "most-pruned plan" in said and not (here / "runs/mine/dense").exists()
    _, said = run(here, "check", "mine.yaml", "--budget", "flops=0.1%", status=3)
    assert "over the limit of 0.1%" in said


@pytest.mark.slow
def test_a_large_network_goes_through(tmp_path: Path) -> None:
    out, _ = run(tmp_path, "search", "resnet18_synthetic", "--trials", "3", "--json")
    result = json.loads(out)
    assert result["best"]["score"]["latency_ratio_high"] <= 0.6
    assert json.loads((tmp_path / "runs/resnet18_synthetic/best/verification.json").read_text())[
        "passed"
    ]
