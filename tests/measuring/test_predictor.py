import json

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import InputError
from autoprune.measuring.onnx_slicing.slicer import Slicer
from autoprune.measuring.prediction.features import TERMS
from autoprune.measuring.prediction.predictor import Predictor
from autoprune.measuring.timing import latency
from autoprune.measuring.timing.latency import Latency
from autoprune.pruning.coupling.verify import discover
from autoprune.target import Target
from autoprune.task import Inputs

INPUTS = Inputs.of(torch.randn(2, 3, 12, 12))


class Chain(nn.Module):
    """Four convolutions of 48, 64, 64 and 96 channels with a residual connection, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(48, 64, 3, padding=1)
        self.c, self.d = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 96, 3, padding=1)
        self.fc = nn.Linear(96, 10)

    def forward(self, x):
        x = torch.relu(self.b(torch.relu(self.a(x))))
        x = torch.relu(x + self.c(x))
        return self.fc(torch.relu(self.d(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    model = Chain().eval()
    return model, discover(model, INPUTS)


A, B, D = "a:units", "b:units", "d:units"


class Device:
    """Takes time for blocks of `step` channels, for calls, and for tensors written; noise of 1 % of what it takes."""

    def __init__(self, step=8, noise=0.01):
        self.step, self.noise, self.random = step, noise, np.random.default_rng(0)

    def ms(self, a, b, d):
        def up(width):
            return -(-width // self.step) * self.step

        work = 27 * up(a) + 9 * (up(a) * up(b) + up(b) * up(b) + up(b) * up(d))
        return 0.3 + 1e-5 * work * 1.44 + 1e-3 * (a + b + b + d)

    def __call__(self, widths):
        widths = {
            key: int(kept.sum()) if hasattr(kept, "sum") else kept for key, kept in widths.items()
        }
        a, b, d = widths.get(A, 48), widths.get(B, 64), widths.get(D, 96)
        ms = self.ms(a, b, d) * float(np.exp(self.noise * self.random.standard_normal()))
        ratio, reach = ms / self.ms(48, 64, 96), 1.96 * self.noise
        return Latency(ms, ms, ms, ratio, ratio * (1 - reach), ratio * (1 + reach), 40, True)


def unseen(count, seed=1):
    random = np.random.default_rng(seed)
    return [
        {A: random.integers(5, 49), B: random.integers(7, 65), D: random.integers(10, 97)}
        for _ in range(count)
    ]


def made(chain, device, plans, seed=0):
    model, coupling = chain
    return Predictor.profile(
        coupling, model, INPUTS.rows(1), device, budget_s=1e9, seed=seed, plans=plans
    )


def errors(predictor, device, plans):
    exact = Device(device.step, 0.0)
    return np.array([predictor.predict(plan).ratio / exact(plan).ratio - 1 for plan in plans])


@pytest.fixture(scope="module")
def staircase(chain):
    device = Device()
    return device, made(chain, device, 40)


def test_a_staircase_is_learned_to_the_noise(staircase):
    device, predictor = staircase
    off = np.abs(errors(predictor, device, unseen(60)))
    assert off.mean() <= 0.015 and off.max() <= 0.08
    flops = predictor.layout.features([predictor.layout.row(plan) for plan in unseen(60)])[0][
        :, TERMS.index("work")
    ]
    exact = np.array([Device(8, 0.0)(plan).ratio for plan in unseen(60)])
    assert np.abs(flops.sum(1) / exact - 1).mean() >= 8 * off.mean()


def test_the_interval_covers_measurements_and_is_not_wide(staircase):
    device, predictor = staircase
    plans = unseen(100)
    found, measured = predictor.predict_all(plans), [device(plan).ratio for plan in plans]
    covered = np.mean(
        [each.low <= ratio <= each.high for each, ratio in zip(found, measured, strict=True)]
    )
    assert covered >= 0.9
    assert np.median([(each.high - each.low) / each.ratio for each in found]) <= 0.12


def test_the_ratio_alone_is_that_of_the_whole_prediction(staircase):
    _, predictor = staircase
    plans = unseen(20)
    for plan, each in zip(plans, predictor.predict_all(plans), strict=True):
        assert predictor.ratio(plan) == pytest.approx(each.ratio, rel=1e-9)


def test_milliseconds_are_the_ratio_of_the_dense_models(staircase):
    device, predictor = staircase
    assert predictor.dense_ms == pytest.approx(device.ms(48, 64, 96), rel=1e-6)
    found = predictor.predict({A: 24})
    assert found.ms == pytest.approx(found.ratio * predictor.dense_ms)
    assert predictor.predict({}).ratio == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("step", [8, 16])
def test_the_widths_that_a_device_likes(chain, step):
    predictor = made(chain, Device(step, 0.003), 60)
    for key, size in ((B, 64), (D, 96)):
        assert predictor.step_widths(key) == list(range(step, size + 1, step))


def test_a_device_without_steps_likes_every_width(chain):
    predictor = made(chain, Device(1, 0.003), 60)
    assert len(predictor.step_widths(B)) >= 56


def test_measured_candidates_correct_it(chain):
    device = Device(noise=0.05)
    predictor = made(chain, device, 8)
    before = np.abs(errors(predictor, device, unseen(60))).mean()
    for plan in unseen(40, seed=2):
        predictor.observe(plan, device(plan))
    after = np.abs(errors(predictor, device, unseen(60))).mean()
    assert predictor.measured == 48
    assert after <= 0.6 * before and after <= 0.03


def test_what_no_term_explains_is_corrected_near_what_was_measured(chain):
    device = Device()
    predictor = made(chain, device, 12)
    plan, near = {A: 24, B: 32, D: 48}, {A: 24, B: 32, D: 56}
    apart = predictor.predict(near).ratio
    slower = device(plan).ratio * 1.2
    predictor.observe(plan, Latency(1, 1, 1, slower, slower * 0.999, slower * 1.001, 40, True))
    assert predictor.predict(near).ratio > apart * 1.02


def test_uniformly_smaller_is_never_predicted_much_slower(staircase):
    _, predictor = staircase
    plans = [
        {A: round(48 * s), B: round(64 * s), D: round(96 * s)} for s in np.linspace(0.1, 1, 60)
    ]
    ratios = [each.ratio for each in predictor.predict_all(plans)]
    assert np.max(np.maximum.accumulate(ratios) / ratios) <= 1.03


def test_the_record_gives_the_same_predictions(staircase):
    _, predictor = staircase
    again = Predictor.from_json(json.loads(json.dumps(predictor.to_json())))
    assert again.predict_all(unseen(5)) == predictor.predict_all(unseen(5))
    assert again.step_widths(D) == predictor.step_widths(D)
    with pytest.raises(InputError, match="version 7"):
        Predictor.from_json(predictor.to_json() | {"version": 7})


def test_a_seed_decides_which_plans_are_measured(chain):
    first, second, other = (made(chain, Device(), 6, seed) for seed in (0, 0, 1))
    assert first.to_json() == second.to_json()
    assert first.to_json() != other.to_json()


def test_the_budget_ends_the_profile(chain):
    model, coupling = chain
    assert Predictor.profile(coupling, model, INPUTS.rows(1), Device(), budget_s=0.0).measured == 6


def test_kept_units_and_widths_say_the_same(chain, staircase):
    _, predictor = staircase
    kept = torch.zeros(64, dtype=torch.bool)
    kept[::2] = True
    assert predictor.predict({B: kept, "b:weights": torch.ones(4)}) == predictor.predict({B: 32})


def test_wrong_plans_and_latencies_are_refused(staircase):
    _, predictor = staircase
    with pytest.raises(InputError, match="unknown group 'e:units'"):
        predictor.predict({"e:units": 3})
    with pytest.raises(InputError, match="from 1 to 64, got 65"):
        predictor.predict({B: 65})
    with pytest.raises(InputError, match="given for 3"):
        predictor.predict({B: torch.ones(3, dtype=torch.bool)})
    with pytest.raises(InputError, match="unknown group 'z:units'"):
        predictor.step_widths("z:units")
    with pytest.raises(InputError, match="got ratio nan"):
        predictor.observe({}, Latency(1, 1, 1, float("nan"), 1, 1, 40, True))


def test_a_small_net_on_onnx_runtime(chain):
    model, coupling = chain
    from autoprune.measuring.runtimes.onnxruntime import OnnxRuntime

    slicer, inputs, runtime = Slicer(model, INPUTS), INPUTS.rows(1), OnnxRuntime()
    dense = runtime.prepare(slicer.dense, inputs, Target())

    def measure(keep):
        return latency.compare(
            runtime.prepare(slicer.cut(coupling.cuts(keep)), inputs, Target()), dense, budget_s=0.05
        )

    predictor = Predictor.profile(coupling, model, inputs, measure, budget_s=3, plans=30)
    large, middle, small = (
        {A: round(48 * s), B: round(64 * s), D: round(96 * s)} for s in (1, 0.5, 0.25)
    )
    found = predictor.predict_all([large, middle, small])
    assert found[0].ratio > found[1].ratio > found[2].ratio > 0
    assert found[0].ratio == pytest.approx(1.0, abs=0.1)
    assert all(each.low <= each.ratio <= each.high for each in found)
