"""Processes that measure: none outlives its parent, a crash or a hang of one is an error with the place named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from autoprune.errors import ModelError
from autoprune.measuring.timing import child, subprocesses
from autoprune.target import Target

CHILD = """
import os, pathlib, signal, subprocess, sys, time
from autoprune.measuring.timing import child
child.bound_to_parent()
kind, place = sys.argv[1:]
if kind == "hang":
    pathlib.Path(place).write_text(str(os.getpid()))
    time.sleep(60)
elif kind == "fail":
    sys.exit("said\\nlast words")
elif kind == "segfault":
    os.kill(os.getpid(), signal.SIGSEGV)
elif kind == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
PARENT = "import sys; from autoprune.measuring.timing import child; child.run('measures', sys.argv[1:], 'it', 60)"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "measures.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def wait_for(done: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


@pytest.mark.promise("leftovers")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_measuring_process_ends_with_its_parent(module: Path, number: signal.Signals) -> None:
    note = module / "pid"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(module), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "hang", str(note)], env=environment)
    assert wait_for(lambda: note.exists() and bool(note.read_text()))
    measuring = psutil.Process(int(note.read_text()))
    parent.send_signal(number)
    assert parent.wait(20) == -number
    assert wait_for(
        lambda: not measuring.is_running() or measuring.status() == psutil.STATUS_ZOMBIE
    )


@pytest.mark.promise("trial-faults")
@pytest.mark.parametrize(
    ("kind", "said"),
    [("fail", "it failed: last words"), ("segfault", "it was ended by SIGSEGV, in the runtime"),
     ("killed", "it was ended by SIGKILL, the system does that where memory runs out")],
)  # fmt: skip
def test_a_crash_is_an_error_with_the_place(module: Path, kind: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        child.run("measures", [kind, ""], "it", 60)


@pytest.mark.promise("limits-of-time")
def test_what_hangs_is_ended(module: Path) -> None:
    note = module / "pid"
    with pytest.raises(ModelError, match="did not end within 4 s: a call of the model hangs"):
        child.run("measures", ["hang", str(note)], "it", 4)
    assert note.exists() and not psutil.pid_exists(int(note.read_text()))


def test_an_interrupt_ends_what_is_measured(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = module / "pid"
    wait = subprocess.Popen.communicate

    def interrupted(self: subprocess.Popen[str], *args: object, **options: object) -> object:
        if "measures" not in self.args:  # type: ignore[operator]
            return wait(self)
        assert wait_for(note.exists)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child.run("measures", ["hang", str(note)], "it", 60)
    assert wait_for(lambda: not psutil.pid_exists(int(note.read_text())))


def test_a_latency_names_the_process_that_failed(tmp_path: Path) -> None:
    from autoprune.task import Inputs

    (tmp_path / "broken.onnx").write_bytes(b"none")
    import torch

    with pytest.raises(
        ModelError, match="a process that measures the latency failed: ONNX Runtime cannot open"
    ):
        subprocesses.fresh(
            tmp_path / "broken.onnx", None, Inputs((torch.zeros(1, 3),)), Target(), 1, 0.01
        )
