"""Progress: the time left, and what is written of a search's events."""

from __future__ import annotations

import io
import os
import threading

import pytest
from rich.console import Console

from autoprune.latency_figures import LatencyFigures
from autoprune.plan import Plan
from autoprune.reporting import progress, words
from autoprune.score import Candidate, Score
from autoprune.searching.callback import CLOSING_S, FRESH_S
from autoprune.searching.time_limit import TimeLimit


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))


class Now:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def candidate(number: int, **figures: float) -> Candidate:
    return Candidate(number, Plan(), Score(**figures), True, "trained")


def drawn(listener: progress.Silent, now: Now, stream: io.StringIO) -> str:
    with listener:
        listener.on_plan(200.0, 5)
        listener.on_step(0, "training the dense model")
        now.seconds += 20
        listener.on_step(1, "training")
        now.seconds += 10
        listener.progress(0.5)
        listener.on_trial(
            candidate(1, metric=0.9, latency=LatencyFigures(ratio=0.5)),
            candidate(1, metric=0.9, latency=LatencyFigures(ratio=0.5)),
        )
        now.seconds += 10
        listener.note("[watch] out")
        listener.on_trial(
            candidate(2, metric=0.8, latency=LatencyFigures(ratio=0.4)),
            candidate(1, metric=0.9, latency=LatencyFigures(ratio=0.5)),
        )
    return stream.getvalue()


def test_time_left_is_the_plans_until_a_trial_has_ended_and_then_theirs():
    now = Now()
    clock = progress.Clock(now)
    assert clock.left() is None
    clock.plan(400.0, 41)
    now.seconds += 100  # the dense model
    clock.move(0.9)
    assert clock.left() == 300.0
    clock.move(1)
    now.seconds += 5
    clock.move(1.5)
    assert clock.left() == 295.0
    now.seconds += 5
    clock.move(2)
    assert clock.left() == 390.0 + CLOSING_S  # 39 trials of 10 s
    clock.move(41)
    assert clock.left() == CLOSING_S


def test_a_resumed_search_counts_its_own_trials_only():
    now = Now()
    clock = progress.Clock(now)
    clock.plan(None, 40)
    clock.move(30)
    now.seconds += 8
    clock.move(32)
    assert clock.left() == 32.0 + CLOSING_S  # 8 trials of 4 s


@pytest.mark.promise("figures")
def test_an_estimate_says_that_the_machine_is_busy(monkeypatch):
    assert (
        words.busy() is None
        and progress.estimate(60.0, 5) == "5 trials, about 1 min 0 s to 3 min 0 s in all"
    )
    monkeypatch.setattr(os, "getloadavg", lambda: (float((os.cpu_count() or 1) + 3), 0.0, 0.0))
    assert "this machine is busy (load" in progress.estimate(60.0, 5)


@pytest.mark.promise("limits-of-time")
def test_a_time_limit_keeps_what_training_and_the_closing_take():
    now = Now()
    limit = TimeLimit(300.0, now)
    now.seconds += 20
    limit.prepared()
    assert limit.closing_s == CLOSING_S and limit.shortfall(10.0, 5.0) is None
    judging = 300 - CLOSING_S - 4 * (5 + FRESH_S)
    now.seconds = 100 + judging - 1
    assert not limit.over_for_judging(5.0, 4) and not limit.over()
    now.seconds += 2
    assert limit.over_for_judging(5.0, 4) and not limit.over()
    now.seconds = 100 + 300 - CLOSING_S + 1
    assert limit.over()
    unlimited = TimeLimit(None, now)
    assert (
        not unlimited.over()
        and not unlimited.over_for_judging(5.0, 4)
        and unlimited.shortfall(9.0, 9.0) is None
    )


@pytest.mark.promise("limits-of-time")
def test_a_time_limit_that_cannot_be_kept_says_what_the_least_is():
    now = Now()
    limit = TimeLimit(20.0, now)
    now.seconds += 40
    limit.prepared()
    assert limit.closing_s == 40  # what took long to prepare takes long to export
    said = limit.shortfall(8.0, 5.0)
    assert (
        said is not None
        and f"less than the least that this search takes, about {40 + 8 + 5 + FRESH_S + 40:.0f} s"
        in said
    )
    assert limit.over() and limit.over_for_judging(5.0, 4)
    half = TimeLimit(100.0, now)
    now.seconds += (100 - CLOSING_S) / 2 - 1
    # judging has half of what is left, however long training takes
    assert not half.over_for_judging(1000.0, 4)


def test_lines_give_a_line_for_each_trial():
    stream, now = io.StringIO(), Now()
    text = drawn(progress.Lines(Console(file=stream, width=200), progress.Clock(now)), now, stream)
    best = "best: trial 1, metric 0.9000, latency 50.0 % of dense"
    assert text.splitlines() == [
        "5 trials, about 3 min 20 s to 10 min 0 s in all",
        "training the dense model",
        f"trial 1 of 5: metric 0.9000, latency 50.0 % of dense; {best}; about 1 min 0 s left",
        "[watch] out",
        f"trial 2 of 5: metric 0.8000, latency 40.0 % of dense; {best}; about 50 s left",
    ]


def test_the_bar_shows_trial_step_best_and_time_left_without_a_thread():
    stream, now = io.StringIO(), Now()
    before = threading.active_count()
    bar = progress.Bar(Console(file=stream, width=200, force_terminal=True), progress.Clock(now))
    with bar:
        assert threading.active_count() == before
    text = drawn(bar, now, stream)
    for part in (
        "training the dense model",
        "trial 1 of 5: training",
        "best: trial 1",
        "left",
        "[watch] out",
    ):
        assert part in text


def test_what_is_shown_follows_the_console():
    assert isinstance(progress.shown(Console(file=io.StringIO())), progress.Lines)
    assert isinstance(
        progress.shown(Console(file=io.StringIO(), force_terminal=True)), progress.Bar
    )
    assert type(progress.shown(Console(file=io.StringIO()), quiet=True)) is progress.Silent


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (200, "3 min 20 s"), (3900, "1 h 5 min")],
)
def test_spans(seconds, text):
    assert words.span(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (999, "999"), (1234, "1.23K"), (1_230_000, "1.23M"), (3e9, "3G")],
)
def test_counts(value, text):
    assert words.count(value) == text


def test_figures_carry_their_interval_and_unit():
    score = Score(latency=LatencyFigures(ms=12.345, ms_low=12.1, ms_high=12.9, ratio=0.5))
    assert words.latency(score) == "12.3 ms [12.1, 12.9]"
    assert words.ratio(score) == "50 %"
    assert words.size(1_234_567) == "1.23 MB"
