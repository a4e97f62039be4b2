import json
import logging
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from marks import slow_but
from torch import nn

from autoprune.errors import InputError, ModelError
from autoprune.measuring.measure import measure, time_artefact
from autoprune.measuring.timing import contention, latency, subprocesses
from autoprune.measuring.timing.latency import Latency, compare, compare_anew, median_interval
from autoprune.target import Target
from autoprune.task import Inputs


def spin(milliseconds):
    def call():
        end = time.perf_counter_ns() + milliseconds * 1e6
        while time.perf_counter_ns() < end:
            pass

    return call


def test_ratio_of_known_functions():
    result = compare(spin(0.2), spin(0.4))
    assert result.ratio == pytest.approx(0.5, rel=0.05)
    assert result.ms == pytest.approx(0.2, rel=0.1)
    assert result.ratio_low <= result.ratio <= result.ratio_high
    assert result.ms_low <= result.ms <= result.ms_high


def test_alone_there_is_no_ratio():
    result = compare(spin(0.1))
    assert (result.ratio, result.ratio_low, result.ratio_high) == (None, None, None)
    assert result.ms == pytest.approx(0.1, rel=0.2)


def test_slow_functions_get_the_fewest_calls_even_over_the_budget():
    result = compare(spin(5), spin(5), budget_s=0.01)
    assert 12 <= result.calls <= 40


@pytest.fixture
def lasting(monkeypatch):
    """Makes functions that last so many nanoseconds, on a clock that only they move: what is timed is exact."""
    now = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now[0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0] / 1e9)
    # on that clock nobody else works: else what others do now counts in it
    still = psutil.cpu_times(percpu=True)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: still)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)

    def lasting(nanoseconds):
        def call():
            now[0] += nanoseconds() if callable(nanoseconds) else nanoseconds

        return call

    return lasting


def test_settled_means_the_interval_is_within_one_percent(lasting):
    result = compare(lasting(300), lasting(1000))
    assert result.settled
    assert result.ratio == result.ratio_low == result.ratio_high == 0.3
    draws = np.random.default_rng(0)
    noisy = lasting(lambda: int(draws.uniform(100, 2000)))
    result = compare(noisy, lasting(1000), budget_s=0.0)
    assert not result.settled
    assert result.ratio_high - result.ratio_low > 0.02 * result.ratio


def test_models_are_prepared_several_times_and_their_figures_merged(lasting):
    prepared = []

    def prepare():
        # as where it lies in memory has it
        prepared.append(200_000 if len(prepared) % 2 else 100_000)
        return [lasting(prepared[-1]), lasting(200_000)]

    result = compare_anew(prepare, budget_s=1.2)
    assert len(prepared) == 10 and result.processes == 1
    assert result.ratio == pytest.approx(0.75)
    # so far are they apart, which no calls of one would show
    assert result.ratio_high - result.ratio_low > 0.35
    assert not result.settled


@pytest.mark.parametrize("slow", ["prepare", "call"])
def test_models_are_prepared_once_where_that_or_a_few_calls_take_the_time(lasting, slow):
    prepared = []

    def prepare():
        prepared.append(1)
        lasting(200_000_000 if slow == "prepare" else 0)()
        return [lasting(50_000_000 if slow == "call" else 100_000)] * 2

    compare_anew(prepare, budget_s=0.3 if slow == "call" else 0.2)
    assert len(prepared) == 1


def test_candidate_and_dense_take_turns_and_the_order_alternates():
    calls = []
    compare(lambda: calls.append("c"), lambda: calls.append("d"), budget_s=0.0)
    pairs = ["".join(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert set(pairs) == {"cd", "dc"}
    assert pairs[-4:] in (["cd", "dc"] * 2, ["dc", "cd"] * 2)


def test_median_interval_covers_the_median_19_times_in_20():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = median_interval(random.exponential(size=101))
        covered += low <= math.log(2) <= high
    assert 0.93 <= covered / 400 <= 0.99


@pytest.mark.parametrize("between", [0.0, 0.01, 0.1])
def test_the_interval_over_processes_covers_whatever_differs_between_them(between):
    random, covered = np.random.default_rng(0), 0
    for _ in range(300):
        medians = 0.5 * (1 + random.normal(0, between, 5)) + random.normal(0, 0.005, 5)
        merged = Latency.merge([part(1.0, float(median), 1.96 * 0.005) for median in medians])
        covered += merged.ratio_low <= 0.5 <= merged.ratio_high
    assert covered / 300 >= 0.93


def test_it_says_how_it_was_taken():
    result = compare(spin(0.1), spin(0.1), budget_s=0.05)
    assert result.ms <= result.p90_ms <= result.p99_ms
    assert f"{result.calls} interleaved calls in 1 process" in result.taken
    assert "in 2 processes" in Latency.merge([result, result]).taken


def scripted(monkeypatch, *milliseconds):
    """Functions that take the given times in turn, on a clock that nothing else moves."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now[0])

    def function(times):
        def call():
            now[0] += next(times) * 1e6

        return call

    return [function(times) for times in milliseconds]


def test_what_lasts_longer_than_a_pair_cancels(monkeypatch):
    drift = [float(each) for each in np.random.default_rng(0).uniform(1, 2, 100_000)]
    result = compare(
        *scripted(monkeypatch, iter(drift), (2 * each for each in drift)), budget_s=0.05
    )
    assert result.ratio == pytest.approx(0.5) and result.ratio_low == pytest.approx(
        result.ratio_high
    )
    assert result.ms_high > result.ms_low


def test_the_interval_covers_the_ratio(monkeypatch):
    covered = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        noisy = [
            iter((scale * np.exp(random.normal(0, 0.2, 100_000))).tolist()) for scale in (1, 2)
        ]
        result = compare(*scripted(monkeypatch, *noisy), budget_s=0.01)
        covered += result.ratio_low <= 0.5 <= result.ratio_high
    assert covered >= 34


class Machine:
    """Two cores and a clock that only calls move; other processes take `others` cores for the first `seconds`."""

    def __init__(self, monkeypatch, others, seconds):
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(contention, "cores", lambda: [0, 1])
        monkeypatch.setattr(
            contention, "busy_s", lambda cores: self.now + others * min(self.now, seconds)
        )
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter_ns", lambda: round(self.now * 1e9))

    def call(self, milliseconds, crowded):
        def call():
            self.now += (crowded if self.now < self.seconds else milliseconds) / 1e3

        return call


def test_the_busy_time_of_all_processes_holds_this_ones():
    cores = contention.cores()
    assert 1 <= len(cores) <= os.cpu_count()
    busy, own, begin = contention.busy_s(cores), time.process_time(), time.perf_counter()
    while time.process_time() - own < 0.3:
        pass
    assert (
        0.2 <= contention.busy_s(cores) - busy <= len(cores) * (time.perf_counter() - begin) + 0.1
    )


@pytest.mark.parametrize(
    ("threads", "others", "aside"), [(2, 1.0, True), (2, 0.1, False), (1, 1.0, False)]
)
def test_calls_beside_others_on_the_same_cores_are_set_aside_and_made_up_for(
    monkeypatch, threads, others, aside
):
    machine = Machine(monkeypatch, others, 0.7)
    candidate, dense = machine.call(1.0, 4.0 if aside else 1.0), machine.call(2.0, 2.0)
    result = compare(candidate, dense, budget_s=0.4, threads=threads)
    assert (result.set_aside > 40) is aside and not result.crowded
    assert result.ratio == pytest.approx(0.5)
    assert ("set aside" in result.taken) is aside
    assert (machine.now > 0.7) is aside  # it settles at once where nothing disturbs


def test_without_quiet_every_call_counts_and_that_is_said(monkeypatch):
    machine = Machine(monkeypatch, 1.0, 1e9)
    result = compare(machine.call(1.0, 1.0), machine.call(2.0, 2.0), budget_s=0.2, threads=2)
    assert result.crowded and result.set_aside == 0 and "beside other jobs" in result.taken
    assert 5 * 0.2 <= machine.now < 5 * 0.2 + 0.2  # patience has an end


@pytest.mark.parametrize("budget_s", [0.15, 0.3, 0.4, 1.5])
def test_each_layout_is_looked_at_for_long_enough_to_see_other_jobs(monkeypatch, budget_s):
    machine = Machine(monkeypatch, 1.0, 1e9)
    prepare = [machine.call(1.0, 1.0), machine.call(2.0, 2.0)]
    assert compare_anew(lambda: prepare, budget_s=budget_s, threads=2).crowded


def part(ms, ratio, reach=0.0):
    return Latency(ms, ms - reach, ms + reach, ratio, ratio - reach, ratio + reach, 10, True)


def test_merge_takes_the_interval_over_processes():
    merged = Latency.merge([part(1.0, 0.5), part(1.2, 0.6), part(1.1, 0.55)])
    assert (merged.ms, merged.ratio) == (pytest.approx(1.1), pytest.approx(0.55))
    assert (merged.calls, merged.processes) == (30, 3)
    assert merged.ratio_low == pytest.approx(0.55 - 4.303 * 0.05 / math.sqrt(3))
    assert merged.ratio_high == pytest.approx(0.55 + 4.303 * 0.05 / math.sqrt(3))
    # no narrower than what the calls inside leave open
    same = Latency.merge([part(1.0, 0.5, 0.1)] * 4)
    assert (same.ratio_low, same.ratio_high) == (pytest.approx(0.45), pytest.approx(0.55))
    assert Latency.merge([part(1.0, 0.5, 0.1)]) == part(1.0, 0.5, 0.1)


def test_merge_of_measurements_alone_has_no_ratio():
    alone = Latency(1.0, 0.9, 1.1, None, None, None, 10, True)
    assert Latency.merge([alone, alone]).ratio is None
    with pytest.raises(ValueError, match="nothing to merge"):
        Latency.merge([])


def test_the_interval_holds_for_another_hour_too():
    draw, covered = np.random.default_rng(0), 0
    for drift in draw.normal(0.5, 0.0045 * 0.5, 200):
        parts = [part(1.0, float(each), 0.001) for each in draw.normal(drift, 0.006 * 0.5, 12)]
        found = Latency.merge(parts).at_any_time()
        covered += found.ratio_low <= 0.5 <= found.ratio_high
    assert 184 <= covered < 200  # 92 to 100 %; without room for the drift 70 %
    wide = part(1.0, 0.5, 0.1)
    # what is wide already hardly grows
    assert wide.at_any_time().ratio_low == pytest.approx(0.4, abs=1e-3)
    assert (wide.at_any_time().ms_low, wide.at_any_time().ms_high) == (wide.ms_low, wide.ms_high)
    alone = Latency(1.0, 0.9, 1.1, None, None, None, 10, True)
    assert alone.at_any_time() == alone


class Small(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.second(torch.relu(self.conv(x))).mean((2, 3))


IMAGES = Inputs.of(torch.randn(2, 1, 12, 12))


@pytest.mark.parametrize("runtime", slow_but(["onnxruntime"], ["onnxruntime", "eager"]))
def test_measure_gives_every_cost_figure(runtime):
    small, dense = Small(16), Small(64)
    with torch.no_grad():
        small.conv.bias.zero_()
    threads = torch.get_num_threads()
    score = measure(small, IMAGES, Target(runtime=runtime), against=dense)
    assert score.params == 16 * 9 + 16 + 16 * 16 * 9 + 16
    assert score.nonzero_params == score.params - 16
    assert score.flops == 144 * (16 * 9 + 16 * 16 * 9)  # batch 1
    assert score.params * 4 < score.size_bytes < score.params * 4 + 20_000
    assert 0 < score.latency.ratio_low <= score.latency.ratio <= score.latency.ratio_high < 0.8
    assert torch.get_num_threads() == threads and small.training


@pytest.mark.slow
def test_fresh_processes_agree_with_this_one(tmp_path):
    from autoprune.measuring.onnx_slicing.slicer import export

    small, dense = export(Small(16), IMAGES), export(Small(64), IMAGES)
    (tmp_path / "dense.onnx").write_bytes(dense)
    apart = subprocesses.fresh(
        small, tmp_path / "dense.onnx", IMAGES, Target(), processes=2, budget_s=0.2
    )
    here = time_artefact(small, dense, IMAGES, Target(), budget_s=0.2)
    assert apart.ratio == pytest.approx(here.ratio, rel=0.25)
    for one in (
        subprocesses.fresh(small, small, IMAGES, Target(), processes=1, budget_s=1.0),
        apart,
    ):
        assert one.ratio_high - one.ratio_low >= 0.017 * one.ratio  # it may drift


@pytest.mark.parametrize(
    "crowded, ran, used, aside",
    [
        ("....", 4, 4, 0),
        ("#.#...", 6, 4, 20),  # made up for
        ("###.#.", 6, 2, 40),  # half of those asked for are left
        ("####.#", 6, 6, 0),  # less than that: all of them
    ],
)
def test_processes_that_find_no_quiet_are_made_up_for(monkeypatch, crowded, ran, used, aside):
    found = [
        replace(part(1.0, 0.4 if each == "#" else 0.3), crowded=each == "#", set_aside=1)
        for each in crowded
    ]
    left = list(found)
    monkeypatch.setattr(subprocesses, "measure_once", lambda _: left.pop(0))
    result = subprocesses.fresh(b"", None, IMAGES, Target(), processes=4)
    assert (len(found) - len(left), result.processes, result.set_aside - ran) == (ran, used, aside)
    assert result.crowded == (used == 6)
    if not result.crowded:
        assert result.ratio == pytest.approx(0.3)
        # they agree, but it may drift
        assert result.ratio_high == pytest.approx(0.3 * (1 + 1.96 * 0.0045))


def test_one_quiet_process_of_two_is_not_the_answer(monkeypatch):
    left = [replace(part(1.0, 0.4 if each == "#" else 0.3), crowded=each == "#") for each in "#.#"]
    monkeypatch.setattr(subprocesses, "measure_once", lambda _: left.pop(0))
    result = subprocesses.fresh(b"", None, IMAGES, Target(), processes=2)
    assert result.processes == 3 and result.crowded


def test_a_fresh_process_measures_a_module():
    target, inputs = Target(runtime="eager"), Inputs.of(torch.randn(1, 8))
    result = subprocesses.fresh(nn.Linear(8, 8), nn.Linear(8, 8), inputs, target, processes=1)
    assert result.ratio == pytest.approx(1.0, rel=0.25)


def test_a_module_that_cannot_be_pickled_is_measured_here_and_that_is_said(caplog):
    model = nn.Linear(4, 4)
    model.hook = lambda x: x
    with caplog.at_level(logging.WARNING, "autoprune"):
        result = subprocesses.fresh(
            model, None, Inputs.of(torch.randn(1, 4)), Target(runtime="eager"), processes=1
        )
    assert result.ms > 0
    assert "measured in this one" in caplog.text


def test_a_damaged_file_fails_with_the_reason():
    with pytest.raises(ModelError, match="cannot open the model"):
        subprocesses.fresh(b"no model", None, IMAGES, Target(), processes=1)


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(InputError, match="quantum"):
        time_artefact(
            nn.Linear(8, 8),
            None,
            Inputs.of(torch.randn(1, 8)),
            Target(device="quantum", runtime="eager"),
        )


def test_the_measuring_process_imports_no_torch_for_onnxruntime():
    code = (
        "import sys, json; import autoprune.measuring.timing.subprocesses; from autoprune import plugins; "
        "plugins.load('runtime', 'onnxruntime'); print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


def test_the_garbage_collector_is_back_on():
    import gc

    with pytest.raises(ZeroDivisionError):
        compare(lambda: 1 // 0)
    assert gc.isenabled()
    assert latency.PRECISION == 0.01
