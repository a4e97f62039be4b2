"""The run's folder: whole-or-not-at-all writes, lock, caches, moving away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.errors import InputError
from autoprune.run import Run, write_whole


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    Run.write_json(path, {"a": 1})

    def half(temporary: Path) -> None:
        temporary.write_text('{"a": ')
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, half)
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["front.json"]


def test_a_reader_sees_the_old_file_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x.txt"
    write_whole(path, lambda temporary: temporary.write_text("old"))
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        seen.append(path.read_text())

    with open(path) as reader:
        write_whole(path, write)
        assert reader.read() == "old"  # whoever has it open reads on in the old one
    assert seen == ["old"] and path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_writer_may_replace_the_temporary_file(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        other = temporary.with_name("other")
        other.write_text("x")
        os.replace(other, temporary)

    write_whole(tmp_path / "model.onnx", write)
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_what_is_no_json_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Run.write_json(tmp_path / "score.json", {"metric": float("nan")})
    assert os.listdir(tmp_path) == []


def test_yaml_keeps_its_order(tmp_path: Path) -> None:
    Run.write_yaml(tmp_path / "study.yaml", {"version": 1, "b": [1], "a": None})
    assert (tmp_path / "study.yaml").read_text() == "version: 1\nb:\n- 1\na: null\n"


def test_cache(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    assert run.recall("scores", "abc") is None
    run.cache("scores", "abc", {"metric": 0.5})
    assert run.recall("scores", "abc") == {"metric": 0.5}
    assert run.recall("latency", "abc") is None


def test_paths_are_all_under_the_folder(tmp_path: Path) -> None:
    run = Run(tmp_path)
    paths = (run.study, run.journal, run.dense, run.front, run.table, run.best, run.trial(3))
    assert all(path.is_relative_to(tmp_path) for path in paths) and len(set(paths)) == 7


def test_the_lock_is_exclusive_and_released(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with run.lock(), pytest.raises(InputError, match=r"--out"), Run(tmp_path / "run").lock():
        pass
    with run.lock():
        pass
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock():
        pass


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path: Path) -> None:
    code = (
        f"import os, signal; from pathlib import Path; from autoprune.run import Run\n"
        f"with Run(Path({str(tmp_path)!r})).lock(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with Run(tmp_path).lock():
        pass


def test_moving_away_deletes_nothing(tmp_path: Path) -> None:
    moved = []
    for content in "abc":
        run = Run(tmp_path / "mine")
        run.write_json(run.front, content)
        moved.append(run.move_away())
    assert [path.name for path in moved] == ["mine.1", "mine.2", "mine.3"]
    assert [json.loads((path / "front.json").read_text()) for path in moved] == ["a", "b", "c"]
    assert not (tmp_path / "mine").exists()
