"""A run's folder as others may have left it: with links out of it, with a kill's leftovers, on a full disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autoprune import cli, scratch
from autoprune.errors import InputError
from autoprune.run import Run, write_whole
from autoprune.searching.interrupt import Interrupt

WRITTEN = {  # every place that a run writes to
    ".lock": False,
    ".scratch": True,
    "study.yaml": False,
    "study.journal": False,
    "front.json": False,
    "trials.csv": False,
    "run.log": False,
    "dense": True,
    "dense/model.safetensors": False,
    "dense/score.json": False,
    "trials": True,
    "trials/3": True,
    "trials/3/plan.json": False,
    "trials/3/model.safetensors": False,
    "trials/3/score.json": False,
    "cache": True,
    "cache/trained": True,
    "cache/trained/0123.json": False,
    "best": True,
    "best/score.json": False,
    ".best.old.x1": True,
    ".front.json.x1": False,
    "trials/.score.json.x1": False,
    "latency=30%": True,
    "latency=30%/front.json": False,
}


@pytest.mark.promise("links")
@pytest.mark.parametrize("place", WRITTEN)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_a_run_is_refused_and_its_target_left(
    place: str, dangling: bool, tmp_path: Path
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    path = folder / place
    path.parent.mkdir(parents=True)
    if not dangling and WRITTEN[place]:
        outside.mkdir()
        (outside / ".front.json.theirs").write_text("theirs")
    elif not dangling:
        outside.write_text("theirs")
    path.symlink_to(outside)
    with pytest.raises(InputError) as refused, Run(folder).lock():
        Run(folder).sweep()
    assert place in str(refused.value) and str(outside) in str(refused.value)
    if dangling:
        assert not outside.exists()
    else:
        kept = outside / ".front.json.theirs" if WRITTEN[place] else outside
        assert kept.read_text() == "theirs"


@pytest.mark.promise("links")
@pytest.mark.parametrize(
    "place", [".lock", "study.journal", "cache/trained/0123.json", "dense/score.json"]
)
def test_a_pipe_in_a_run_is_refused_at_once(place: str, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(InputError, match="a pipe"), Run(tmp_path).lock():
        pass


@pytest.mark.promise("links")
def test_a_file_that_is_another_ones_too_is_not_written(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    for path in (run.folder / ".lock", run.front, run.study):
        os.link(theirs, path)
    with run.lock():
        run.write_json(run.front, {})
        run.write_yaml(run.study, {})
    assert theirs.read_text() == "theirs"
    os.link(theirs, run.journal)
    with pytest.raises(InputError, match="hard link"), run.lock():
        pass
    assert theirs.read_text() == "theirs"


@pytest.mark.promise("links")
def test_the_lock_of_others_content_is_not_emptied_and_the_runs_own_link_is_known(
    tmp_path: Path,
) -> None:
    (tmp_path / ".lock").write_text("notes")
    (tmp_path / "study.journal").write_text("")
    # as a killed Optuna leaves it
    (tmp_path / "study.journal.lock").symlink_to(tmp_path / "study.journal")
    with Run(tmp_path).lock():
        pass
    assert (tmp_path / ".lock").read_text() == "notes"


@pytest.mark.promise("leftovers")
def test_the_sweep_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    run = Run(tmp_path)
    left = [
        ".front.json.a1",
        "dense/.score.json.b2",
        "latency=30%/.trials.csv.c3",
        "trials/3/.plan.json.d4",
    ]
    kept = ["front.json", "dense/score.json", ".notes", "best/.score.json.x/deeper/.front.json.e5"]
    for name in (*left, *kept, ".best.f6/model.onnx", ".scratch/autoprune-x/candidate"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with run.lock():
        run.sweep()
        there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert there - {".lock"} == {*kept[:3]}


@pytest.mark.promise("leftovers")
def test_temporary_folders_lie_in_the_run_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (system := tmp_path / "system").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(system))
    run = Run(tmp_path / "run")
    with run.lock(), scratch.folder() as folder:
        assert folder.is_relative_to(run.folder / ".scratch") and not any(system.iterdir())
        assert folder.stat().st_mode & 0o077 == 0
    assert not (run.folder / ".scratch").exists()
    with scratch.folder() as folder:
        assert folder.parent == system
    assert not any(system.iterdir())


KILLED = """
import os, signal
from pathlib import Path
from autoprune import scratch
with scratch.folder() as folder:
    (folder / "model").write_text("x")
    print(folder, flush=True)
    {then}
"""


@pytest.mark.promise("leftovers")
def test_the_next_process_removes_what_a_killed_one_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", KILLED.format(then="os.kill(os.getpid(), signal.SIGKILL)")]
    left = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    ).stdout.strip()
    assert (Path(left) / "model").exists()
    (tmp_path / "autoprune-link").symlink_to(tmp_path / "theirs")
    (tmp_path / "autoprune-young").mkdir()  # its process has made it and not locked it yet
    living = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(then="input()")],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert living.stdout is not None
    other = Path(living.stdout.readline().strip())
    with scratch.folder():
        assert (
            not Path(left).exists()
            and (other / "model").exists()
            and (tmp_path / "autoprune-young").exists()
        )
    living.communicate("\n")
    assert not other.exists()


@pytest.mark.promise("leftovers")
@pytest.mark.parametrize(
    "name", ["study.journal.lock", "study.journal.lock71431f34-1611-4f3a-9578-3acf95f9b5a5.rename"]
)
def test_a_lock_of_optunas_that_a_kill_left_is_no_foreign_link(name: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.journal.write_text("")
    link = tmp_path / name
    link.symlink_to(run.journal)
    with run.lock():
        run.sweep()
    assert not os.path.lexists(link) and run.journal.exists()
    (tmp_path / f"{name}.other").symlink_to(run.journal)
    with pytest.raises(InputError, match="is a link to"), run.lock():
        pass


@pytest.mark.promise("leftovers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_end_is_the_first_step_of_two(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert interrupt.requested
    assert signal.getsignal(number) is before


@pytest.mark.promise("leftovers")
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_leaves_the_old_file(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.write_json(run.front, {"a": 1})

    def full(_: int) -> None:
        raise OSError(kind, os.strerror(kind))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="front") as failed:
        write_whole(run.front, lambda temporary: temporary.write_text("half"))
    assert failed.value.errno == kind
    monkeypatch.undo()
    assert run.front.read_text() == '{\n  "a": 1\n}\n' and [
        each.name for each in tmp_path.iterdir()
    ] == ["front.json"]


@pytest.mark.promise("leftovers")
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_full_disk_is_one_line(
    kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(kind, os.strerror(kind), str(tmp_path / "front.json"))

    monkeypatch.setattr("autoprune.config.read", full)
    ended = CliRunner().invoke(cli.app, ["check", "digits"])
    assert ended.exit_code == 2 and ended.stderr.count("\n") == 1
    assert "front.json" in ended.stderr and os.strerror(kind) in ended.stderr


@pytest.mark.promise("leftovers")
def test_a_disk_that_is_full_while_weights_are_written_is_told_as_such(tmp_path: Path) -> None:
    save = f"""
import resource, sys
from pathlib import Path
from torch import nn
from autoprune.searching.evaluating.baseline import save_weights
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_weights(nn.Linear(100, 100), Path({str(tmp_path)!r}) / "model.safetensors")
except OSError as error:
    print(error.errno, error.filename)
"""
    said = subprocess.run(
        [sys.executable, "-c", save], capture_output=True, text=True, check=False
    ).stdout
    assert said.split() == [str(errno.EFBIG), str(tmp_path / "model.safetensors")]
    assert list(tmp_path.iterdir()) == []
