"""The log of a run: what was said, bounded, and no way out of the folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_screening import screening, searched
from small_search import Listens, quick

from autoprune.errors import InputError
from autoprune.run import Run
from autoprune.searching import logbook
from autoprune.searching.callback import Quiet
from autoprune.searching.search import search as run_search

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

__all__ = ["quick"]  # a fixture that every test here uses


@pytest.mark.promise("probes")
def test_a_run_keeps_a_log_of_what_was_said(tmp_path: Path) -> None:
    listener = Listens()
    searched(tmp_path, listener)
    log = tmp_path / "log.txt"
    said = log.read_text()
    lines = said.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ", line) for line in lines)
    assert all(note in said for note in listener.notes) and all(
        what in said for _, what in listener.began
    )
    assert (
        "verifying the groups" in lines[1] and sum("ends, screened" in line for line in lines) == 11
    )
    searched(tmp_path)
    assert log.read_text().startswith(said) and len(log.read_text()) > len(said)
    shorter = Run(tmp_path / "other")
    with pytest.raises(InputError):  # what is refused leaves nothing
        run_search(screening({"flops": "150%"}), shorter)
    assert not (shorter.folder / "log.txt").exists()


@pytest.mark.promise("probes")
def test_a_log_is_bounded_follows_no_link_and_ends_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logbook, "_MOST", 4000)
    book = logbook.Logbook(Quiet(), tmp_path / "log.txt", "a search")
    book.open()
    for number in range(300):
        book.note(f"note {number}\nof two lines \x1b[31m")
        assert (tmp_path / "log.txt").stat().st_size <= 4000
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[-1].endswith("note 299\\nof two lines \\x1b[31m") and all(
        line.startswith("20") for line in lines
    )
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    listener = Listens()
    linked = logbook.Logbook(listener, tmp_path / "link", "a search")
    linked.open()
    linked.note("here")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (
        len(listener.notes) == 2
        and "cannot be written" in listener.notes[0]
        and listener.notes[1] == "here"
    )
