"""A damaged journal: what was found before the damage stands, what follows keeps its number, nothing is cut unsaid."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autoprune.errors import InputError
from autoprune.plan import Choice, Plan
from autoprune.score import Score
from autoprune.searching.optuna_study import storage
from autoprune.searching.optuna_study.journal_lines import whole

FLOATS = {"a:ratio": optuna.distributions.FloatDistribution(0, 0.9)}
TRIALS = 12


def journal(folder: Path) -> tuple[Path, list[int]]:
    """A journal of trials as a search writes it, and where in it each trial ends."""
    path, ends = folder / "study.journal", list[int]()
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))), study_name="tiny [50%]"
    )
    study.set_user_attr("version", 2)
    for ratio in (0.1, 0.5, 0.8):
        study.enqueue_trial({"a:ratio": ratio})
    for number in range(TRIALS):
        trial = study.ask(FLOATS)
        plan = Plan({"a:units": Choice("structured", 0.1 + number / 100)})
        trial.set_user_attr("plan", plan.to_json())
        trial.set_user_attr("score", Score(metric=number / 10, flops=number).to_json())
        trial.set_user_attr("reason", None)
        trial.set_user_attr("stage", "screened")
        study.tell(trial, number / 10)
        ends.append(path.stat().st_size)
    return path, ends


def finished(path: Path) -> dict[int, Any]:
    """What the mended journal holds of every trial that has ended whole."""
    backend = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.load_study(storage=backend, study_name="tiny [50%]")
    return {
        trial.number: (trial.values, trial.params, trial.user_attrs)
        for trial in study.trials
        if trial.state == TrialState.COMPLETE and len(trial.user_attrs) == 4
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[int], dict[int, Any]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path, ends = journal(tmp_path_factory.mktemp("whole"))
    return path.read_bytes(), ends, finished(path)


def damaged(content: bytes, draw: random.Random, kind: str) -> tuple[bytes, int]:
    """The content damaged at a random place, which is given too."""
    place = draw.randrange(len(content))
    if kind == "cut":
        return content[:place], place
    if kind == "flipped":
        changed = bytes([content[place] ^ 1 << draw.randrange(8)])
        return content[:place] + changed + content[place + 1 :], place
    if kind == "zeroed":
        return content[:place] + b"\0" * min(40, len(content) - place) + content[
            place + 40 :
        ], place
    return content[:place] + content[place + draw.randrange(1, 60) :], place


@pytest.mark.promise("journal")
@pytest.mark.parametrize("kind", ["cut", "flipped", "zeroed", "missing"])
def test_damage_anywhere_costs_no_trial_that_ended_before_it(
    kind: str, written: tuple[bytes, list[int], dict[int, Any]], tmp_path: Path
) -> None:
    content, ends, trials = written
    draw, path = random.Random(kind), tmp_path / "study.journal"
    for _ in range(40):
        broken, place = damaged(content, draw, kind)
        path.write_bytes(broken)
        first = content.index(b"\n")
        try:
            said = storage.mend(path)
        except InputError:
            # the line that names the study: nothing is left
            assert place <= first and path.read_bytes() == broken
            continue
        if kind != "cut" and place <= first:
            continue  # the study has another name now
        got = finished(path) if path.stat().st_size else {}
        before = [number for number, end in enumerate(ends) if end <= place]
        assert all(got.get(number) == trials[number] for number in before), place
        wrong = [number for number in got if got[number] != trials[number]]
        assert len(wrong) <= 1 and (kind == "cut" or len(got) >= TRIALS - 3), (
            place,
            wrong,
            sorted(got),
        )
        copies = sorted(tmp_path.glob("study.journal.damaged-*"))
        assert (said is not None) == bool(copies)
        if copies:
            assert copies[0].read_bytes() == broken and copies[0].name in str(said)
            copies[0].unlink()


@pytest.mark.promise("journal")
@pytest.mark.parametrize("line", range(0, 40, 3))
def test_a_line_lost_in_the_middle_costs_one_trial_at_most(
    line: int, written: tuple[bytes, list[int], dict[int, Any]], tmp_path: Path
) -> None:
    content, _, trials = written
    lines = content.splitlines(keepends=True)
    path = tmp_path / "study.journal"
    lines[line + 1] = lines[line + 1].replace(b'"op_code":4', b'"op_c').replace(b"{", b"(")
    path.write_bytes(b"".join(lines))
    assert storage.mend(path)
    got = finished(path)
    assert sum(got.get(number) != trials[number] for number in trials) <= 1  # that of the line


@pytest.mark.promise("journal")
def test_a_torn_end_is_kept_beside_and_a_second_one_too(tmp_path: Path) -> None:
    path, _ = journal(tmp_path)
    content = path.read_bytes()
    assert storage.mend(path) is None and path.read_bytes() == content
    for number, tail in enumerate(
        (b'{"op', b'{"op_code":2}', b"\x00\x00\x00", b"7\n", b"\n", b'{"a":1}x\n{"b'), 1
    ):
        path.write_bytes(content + tail)
        said = storage.mend(path)
        copy = tmp_path / f"study.journal.damaged-{number}"
        assert (
            path.read_bytes() == content
            and copy.read_bytes() == content + tail
            and copy.name in str(said)
        )


@pytest.mark.promise("journal")
@pytest.mark.parametrize("content", [b"garbage\n" * 9, b"\0" * 100, b'{"op_code":5}\n', b"[1]\n"])
def test_a_journal_of_which_nothing_stands_is_refused_and_left(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no line of this run"):
        storage.mend(path)
    assert path.read_bytes() == content and [each.name for each in tmp_path.iterdir()] == [
        "study.journal"
    ]


@pytest.mark.promise("journal")
def test_an_empty_journal_is_one_that_begins(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_bytes(b"")
    assert storage.mend(tmp_path / "study.journal") is None and whole(b"") == (b"", 0)


@pytest.mark.promise("journal")
def test_what_only_reads_a_damaged_journal_changes_nothing(tmp_path: Path) -> None:
    path, _ = journal(tmp_path)
    path.write_bytes(path.read_bytes() + b'{"torn')
    content = path.read_bytes()
    found, damage = storage.open_journal(path, change=False)
    (study,) = optuna.get_all_study_summaries(storage=found)
    assert study.n_trials == TRIALS and damage is not None
    assert path.read_bytes() == content and [each.name for each in tmp_path.iterdir()] == [
        "study.journal"
    ]
