"""Lowering: sparse layers compute what the dense ones do, and are chosen where they are measured faster."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autoprune.budget import Budget
from autoprune.errors import InputError, MissingPackage, ModelError
from autoprune.exporting import lowered
from autoprune.exporting.export import Finished, export
from autoprune.exporting.load import load
from autoprune.exporting.verify import verify
from autoprune.files import read_mapping
from autoprune.measuring import measure
from autoprune.measuring.sparse_kernels.choose import LayerRecord
from autoprune.measuring.sparse_kernels.kernels import fitting, patterns
from autoprune.measuring.sparse_kernels.layers import (
    LoweredConv2d,
    LoweredLayer,
    LoweredLinear,
    densify,
    lowered_layers,
)
from autoprune.measuring.sparse_kernels.lower import Lowered, lower, openvino_config, rebuild, rows
from autoprune.measuring.timing import latency
from autoprune.measuring.timing.latency import Latency
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.searching.evaluating import costs
from autoprune.space import Space
from autoprune.study import Settings, Study
from autoprune.target import Target
from autoprune.task import Data, Inputs, Metric, Recipe, Task

CPU = torch.device("cpu")
EAGER = Target("eager_here", runtime="eager_sparse")
needs_mkl = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="torch's CPU has tiles in MKL alone"
)
KERNELS = ["csr", *(pytest.param(name, marks=needs_mkl) for name in ("bsr4", "bsr16", "bsr32"))]


def pruned_(layer: nn.Module, share: float, side: int = 1) -> nn.Module:
    """`layer` with that share of its weights zero, in tiles of `side` x `side`."""
    with torch.no_grad():
        flat = layer.weight.view(len(layer.weight), -1)
        keep = torch.rand(flat.shape[0] // side, flat.shape[1] // side) >= share
        flat.mul_(keep.repeat_interleave(side, 0).repeat_interleave(side, 1))
    return layer


def off(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def answer(ratio: float, high: float | None = None) -> Latency:
    return Latency(ratio, ratio, ratio, ratio, ratio, high or ratio, 12, True)


@pytest.fixture
def always_faster(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every comparison says that the first is twice as fast; gives the list that it counts comparisons in."""
    count: list[int] = []

    def compare(
        candidate: Any, dense: Any = None, *, budget_s: float = 0.4, threads: int = 1
    ) -> Latency:
        count.append(1)
        candidate()
        return answer(0.5)

    monkeypatch.setattr(latency, "compare", compare)
    return count


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "shape", [(64,), (1, 64), (16, 64), (1, 1, 64), (2, 7, 64), (2, 2, 3, 64), (3, 33, 64)]
)
def test_a_lowered_linear_layer_is_the_dense_one(
    kernel: str, bias: bool, shape: tuple[int, ...]
) -> None:
    for share in (0.0, float(torch.rand(())), 0.95, 1.0):
        layer = pruned_(nn.Linear(64, 96, bias), share).eval()
        if share == 1.0:
            layer.weight.data[0, 0] = 1.0  # an output that is not zero, to compare with
        x = torch.randn(shape)
        with torch.no_grad():
            found, expected = LoweredLinear(kernel, layer)(x), layer(x)
        assert off(found, expected) <= 1e-5
        assert found.is_contiguous()


CONVOLUTIONS = {
    "pointwise": {"kernel_size": 1},
    "strided": {"kernel_size": 1, "stride": 2},
    "padded": {"kernel_size": 3, "padding": 1},
    "odd": {"kernel_size": (3, 1), "padding": (0, 2), "stride": (2, 1), "dilation": (2, 1)},
}


@pytest.mark.parametrize("kernel", KERNELS[:3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("window", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("shape", [(32, 9, 8), (1, 32, 9, 8), (3, 32, 9, 8), (1, 32, 5, 5)])
def test_a_lowered_convolution_is_the_dense_one(
    kernel: str, bias: bool, window: dict[str, Any], shape: tuple[int, ...]
) -> None:
    layer = pruned_(nn.Conv2d(32, 48, bias=bias, **window), 0.7).eval()
    x = torch.randn(shape)
    for each in (x, x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x):
        with torch.no_grad():
            assert off(LoweredConv2d(kernel, layer)(each), layer(each)) <= 1e-5


def test_an_image_of_one_pixel_is_one_column() -> None:
    layer = pruned_(nn.Conv2d(32, 48, 1), 0.7).eval()
    x = torch.randn(1, 32, 1, 1)
    with torch.no_grad():
        assert off(LoweredConv2d("csr", layer)(x), layer(x)) <= 1e-5


def test_tiles_and_two_of_four_are_seen_in_the_zeros() -> None:
    def weight(side: int) -> Tensor:
        return pruned_(nn.Linear(128, 128), 0.8, side).weight

    assert fitting(weight(1), CPU) == ("csr",)
    if torch.backends.mkl.is_available():
        assert fitting(weight(4), CPU) == ("csr", "bsr4")
        assert fitting(weight(32), CPU) == ("csr", "bsr4", "bsr16", "bsr32")
        assert patterns((weight(16) != 0).view(128, 16, 8)) == ("csr", "bsr4", "bsr16")
    assert fitting(weight(4)[:127], CPU) == ("csr",)  # 127 rows are no tiles
    assert fitting(weight(4).half(), CPU) == ()
    assert "semi_structured" not in fitting(weight(1), CPU)  # CUDA's alone


class Net(nn.Module):
    """A 1x1 and a 3x3 convolution, and two linear layers, one of them called with two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pruned_(nn.Conv2d(8, 16, 1), 0.8)
        self.wide = pruned_(nn.Conv2d(16, 16, 3, padding=1), 0.9)
        self.fc = pruned_(nn.Linear(16, 16), 0.9)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(torch.relu(self.conv(x))).flatten(2).transpose(1, 2)
        return self.head(self.fc(self.fc(x).mean(1)))


IMAGES = Inputs.of(torch.randn(2, 8, 6, 6))


def test_layers_with_zeros_are_lowered_and_the_model_computes_the_same(
    always_faster: list[int],
) -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = lower(model, IMAGES, EAGER)
    assert result.kernels == {"conv": "csr", "wide": "csr", "fc": "csr"} and result.used
    assert [each.layer for each in result.records] == ["conv", "wide", "fc"]
    assert result.records[2].inputs == ((1, 36, 16), (1, 16))
    assert type(model.fc) is nn.Linear and model.training and not result.model.training
    with torch.no_grad():
        assert off(result.model(IMAGES.args[0]), model.eval()(IMAGES.args[0])) <= 1e-5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [row["speed_up"] for row in rows(result)] == [2.0, 2.0, 2.0]


def test_dense_weights_stay_dense() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    result = lower(model, Inputs.of(torch.randn(1, 16)), EAGER)
    assert (result.records, result.kernels, result.used, result.ratio) == ((), {}, False, None)
    assert not list(lowered_layers(result.model))
    pruned_(model[0], 0.1)
    (record,) = lower(model, Inputs.of(torch.randn(1, 16)), EAGER).records
    assert (
        record.kernel == "dense" and record.note == "fewer than 30% zeros" and record.tried is None
    )


def test_only_an_interval_that_is_clear_of_dense_is_a_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = nn.Sequential(pruned_(nn.Linear(16, 16), 0.9)), Inputs.of(torch.randn(1, 16))
    for ratio, high, kernel, note in (
        (0.90, 0.98, "csr", ""),
        (0.90, 0.985, "dense", "zero gain"),
        (1.10, 1.20, "dense", "zero gain"),
    ):
        monkeypatch.setattr(
            latency, "compare", lambda *_, ratio=ratio, high=high, **__: answer(ratio, high)
        )
        (record,) = lower(model, inputs, EAGER).records
        assert (record.kernel, record.note) == (kernel, note)
        assert record.tried == {"csr": ratio} and record.dense_ms == pytest.approx(1.0)
        assert record.speed_up == (pytest.approx(1 / ratio) if kernel == "csr" else 1.0)


def test_the_winner_of_the_first_look_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = iter([0.5, 1.3])  # lucky once
    monkeypatch.setattr(latency, "compare", lambda *_, **__: answer(next(ratios)))
    (record,) = lower(
        nn.Sequential(pruned_(nn.Linear(16, 16), 0.9)), Inputs.of(torch.randn(1, 16)), EAGER
    ).records
    assert record.kernel == "dense" and record.ratio == 1.3


def test_a_lowered_model_that_is_not_faster_is_dropped(
    always_faster: list[int], monkeypatch: Any
) -> None:
    monkeypatch.setattr(measure, "time_artefact", lambda *_, **__: answer(0.97, 1.01))
    result = lower(Net(), IMAGES, EAGER)
    assert not result.used and result.kernels == {} and result.ratio == 0.97
    assert not list(lowered_layers(result.model))
    assert all(parameter.requires_grad for parameter in result.model.parameters())


def test_a_layer_that_was_measured_is_not_measured_again(always_faster: list[int]) -> None:
    model = Net()
    decisions: dict[str, dict[str, Any]] = {}
    first = lower(model, IMAGES, EAGER, decisions)
    measured = len(always_faster)
    stored = json.loads(json.dumps(decisions))
    second = lower(model, IMAGES, EAGER, stored)
    # the whole model alone, prepared up to ten times
    assert len(always_faster) - measured <= 10 < measured
    assert second.kernels == first.kernels and len(decisions) == 3
    lower(model, IMAGES, replace(EAGER, batch=2), stored)
    assert len(stored) == 6  # other inputs are other decisions


def test_a_record_goes_through_json_and_rebuilds_the_same_model(always_faster: list[int]) -> None:
    model = Net().eval()
    result = lower(model, IMAGES, EAGER)
    record = json.loads(json.dumps(result.to_json()))
    again = rebuild(model, record)
    assert {name: layer.kernel for name, layer in lowered_layers(again)} == result.kernels
    with torch.no_grad():
        assert torch.equal(again(IMAGES.args[0]), result.model(IMAGES.args[0]))
    assert [LayerRecord.from_json(each) for each in record["layers"]] == list(result.records)
    assert record["target"] == EAGER.to_json()
    assert asdict(result.records[0])["kernel"] == "csr"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, "broken"),
        ({"kernels": ["fc"]}, "broken"),
        ({"kernels": {"gone": "csr"}}, "'gone'"),
        ({"kernels": {"fc": "magic"}}, "unknown kernel 'magic'"),
        ({"kernels": {"": "csr"}}, "is a Net"),
        ({"kernels": {"conv": "bsr32"}}, "cannot be lowered to 'bsr32'"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(record: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        rebuild(Net(), record)


def test_training_and_gradients_are_refused_and_raised_is_dense_again(
    always_faster: list[int],
) -> None:
    model, x = Net().eval(), IMAGES.args[0]
    result = lower(model, IMAGES, EAGER)
    result.model(x)  # without no_grad: all parameters are frozen
    with pytest.raises(ModelError, match=r"asked for a gradient.*lowered=False"):
        result.model(x.clone().requires_grad_())
    with pytest.raises(ModelError, match="training mode"):
        result.model.train()(x)
    dense = densify(result.model.eval())
    assert not list(lowered_layers(dense)) and densify(dense) is dense
    with torch.no_grad():
        assert torch.equal(dense(x), model(x))
    dense.train()(x).sum().backward()
    assert dense.fc.weight.grad is not None and dense.conv.weight.shape == (16, 8, 1, 1)


def test_the_state_dict_is_the_dense_model_s(always_faster: list[int]) -> None:
    model = Net()
    result = lower(model, IMAGES, EAGER)
    state = result.model.state_dict()
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    other = Net().eval()
    result.model.load_state_dict(other.state_dict())  # other zeros are packed anew
    with torch.no_grad():
        assert off(result.model(IMAGES.args[0]), other(IMAGES.args[0])) <= 1e-5
    del state["fc.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*fc\.weight"):
        result.model.load_state_dict(state)


def test_copies_and_pickles_go_on_computing(always_faster: list[int]) -> None:
    model = lower(Net(), IMAGES, EAGER).model
    with torch.no_grad():
        expected = model(IMAGES.args[0])
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        for each in (
            copy.deepcopy(model),
            torch.load(file, weights_only=False),
            model.double().float(),
        ):
            assert torch.equal(each(IMAGES.args[0]), expected)
    assert repr(model.fc).startswith("LoweredLinear(csr, (16, 16), ") and repr(model.fc).endswith(
        "% zeros)"
    )


def test_fused_encoder_layers_run_their_lowered_parts(always_faster: list[int]) -> None:
    model = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True).eval()
    for layer in (model.linear1, model.linear2):
        pruned_(layer, 0.9)
    inputs = Inputs.of(torch.randn(1, 5, 16))
    result = lower(model, inputs, EAGER)
    assert set(result.kernels) == {"linear1", "linear2"}
    calls: list[int] = []
    result.model.linear1.multiply = lambda columns: (
        calls.append(1)
        or LoweredLayer.multiply(  # type: ignore[func-returns-value]
            result.model.linear1, columns
        )
    )
    with torch.no_grad():
        assert off(result.model(*inputs.args), model(*inputs.args)) <= 1e-5
    assert calls == [1]
    assert (
        result.model.activation_relu_or_gelu == 0
        and densify(result.model).activation_relu_or_gelu == 1
    )


def test_layers_that_cannot_be_lowered_say_why(always_faster: list[int]) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied, self.other = pruned_(nn.Linear(8, 8), 0.9), nn.Linear(8, 8)
            self.other.weight = self.tied.weight
            self.watched, self.idle = pruned_(nn.Linear(8, 8), 0.9), pruned_(nn.Linear(8, 8), 0.9)
            self.watched.register_forward_hook(lambda module, args, output: output * 2)
            self.grouped = pruned_(nn.Conv2d(8, 8, 3, groups=2), 0.9)
            self.same = pruned_(nn.Conv2d(8, 8, 3, padding="same"), 0.9)
            self.own = pruned_(nn.Linear(8, 8), 0.9)
            self.own.forward = lambda x: x

        def forward(self, x: Tensor) -> Tensor:
            x = self.own(self.watched(self.other(self.tied(x))))
            return self.same(self.grouped(x[..., None, None].expand(-1, -1, 3, 3)))

    result = lower(Odd(), Inputs.of(torch.randn(1, 8)), EAGER)
    notes = {each.layer: each.note for each in result.records}
    assert notes == {
        "tied": "its weight is shared",
        "other": "its weight is shared",
        "watched": "it has hooks",
        "idle": "not called by the model's forward",
        "grouped": "a grouped convolution",
        "same": "its padding is not plain zeros in numbers",
        "own": "its forward is not torch's own",
    }
    assert not result.kernels and not always_faster


def test_threads_are_the_target_s_meanwhile_and_left_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def compare(*_: Any, **__: Any) -> Latency:
        seen.append(torch.get_num_threads())
        return answer(1.5)

    monkeypatch.setattr(latency, "compare", compare)
    before = torch.get_num_threads()
    lower(Net(), IMAGES, replace(EAGER, threads=before + 1))
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target(), "'onnxruntime'"),
        (replace(EAGER, dtype="bf16"), "'bf16'"),
        (replace(EAGER, device="quantum"), "quantum"),
        (replace(EAGER, device="cuda", dtype="int3"), "int3"),
    ],
)
def test_targets_without_sparse_kernels_are_refused(target: Target, said: str) -> None:
    with pytest.raises(InputError, match=said):
        lower(Net(), IMAGES, target)


def test_openvino_gets_the_rate_that_every_sparse_layer_reaches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10), nn.Linear(10, 10))
    with torch.no_grad():
        model[0].weight[:8], model[1].weight[:6], model[2].weight[:2] = 0, 0, 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "openvino" or None)
    assert openvino_config(model) == {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": pytest.approx(0.6)}
    assert openvino_config(nn.Linear(10, 10)) == {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="openvino"):
        openvino_config(model)


def test_costs_of_a_lowered_model_are_the_dense_one_s(always_faster: list[int]) -> None:
    model = Net()
    result = lower(model, IMAGES, EAGER)
    assert measure.costs(result.model, IMAGES) == measure.costs(model, IMAGES)
    # for ONNX the dense layers are exported
    assert measure.measure(result.model, IMAGES, Target()).size_bytes > 0


def study(target: Target) -> Study:
    x, y = torch.randn(40, 8, 6, 6), torch.randint(0, 4, (40,))
    data = Data(TensorDataset(x, y), TensorDataset(x[:20], y[:20]))
    model = Net().eval()
    metric = Metric("accuracy", lambda out, y: float((out.argmax(1) == y).float().mean()))
    section = {"model": "python", "training": {}}
    task = Task(
        Net,
        data,
        nn.functional.cross_entropy,
        metric,
        Recipe(device="cpu"),
        given=model,
        description=section,
    )
    resolved = {"version": 1, "name": "tiny", "task": section}
    return Study(
        "tiny",
        task,
        Space(),
        target,
        Budget(),
        Settings(),
        Recipe(),
        ("safetensors",),
        Path.cwd(),
        resolved=resolved,
    )


def exported(folder: Path, target: Target) -> nn.Module:
    made = study(target)
    model = made.task.given
    assert model is not None
    score = measure.costs(model, IMAGES.rows(1)).evolve(metric=0.5, size_bytes=1)
    export(made, Finished(Plan({}), model, model, score, score), folder)
    return model


def test_an_artefact_for_the_eager_runtime_is_loaded_lowered(
    always_faster: list[int], tmp_path: Path
) -> None:
    model = exported(tmp_path / "best", EAGER)
    record = read_mapping(tmp_path / "best" / "lowering.json")
    assert record["kernels"] == {"conv": "csr", "wide": "csr", "fc": "csr"}
    assert "lowering.json" in read_mapping(tmp_path / "best" / "score.json")["files"]
    found, plain = load(tmp_path / "best", Net), load(tmp_path / "best", Net, lowered=False)
    assert {name: layer.kernel for name, layer in lowered_layers(found)} == record["kernels"]
    assert not list(lowered_layers(plain))
    with torch.no_grad():
        assert torch.equal(plain(IMAGES.args[0]), model(IMAGES.args[0]))
        assert off(found(IMAGES.args[0]), model(IMAGES.args[0])) <= 1e-5
    exported(tmp_path / "best", Target())  # replaced by one for another runtime: no record is left
    assert not (tmp_path / "best" / "lowering.json").exists()


def test_an_artefact_without_a_record_is_loaded_dense(tmp_path: Path) -> None:
    exported(tmp_path / "best", Target())
    assert not list(lowered_layers(load(tmp_path / "best", Net)))
    with pytest.raises(InputError, match=r"no lowering\.json"):
        load(tmp_path / "best", Net, lowered=True)
    (tmp_path / "best" / lowered.LOWERING).write_text("[")
    with pytest.raises(ModelError, match="cannot be read"):
        load(tmp_path / "best", Net)


def test_verify_runs_the_lowered_model(
    always_faster: list[int], tmp_path: Path, monkeypatch: Any
) -> None:
    from autoprune.exporting import checks

    seen: list[Any] = []
    monkeypatch.setattr(
        measure, "time_artefact", lambda candidate, *_, **__: seen.append(candidate) or answer(0.5)
    )
    made = study(EAGER)
    model = made.task.given
    assert model is not None
    quality = checks.loop.evaluate(model, made.task, "validation", device="cpu")
    score = measure.costs(model, IMAGES.rows(1)).evolve(metric=quality.metric, size_bytes=1)
    export(
        made,
        Finished(Plan({}), model, model, score, score.evolve(size_bytes=None)),
        tmp_path / "best",
    )
    result = verify(tmp_path / "best", task=made.task)
    passed = {check["name"]: check["passed"] for check in result["checks"]}
    assert passed["outputs of lowered"] and passed["latency"]
    assert len(list(lowered_layers(seen[-1]))) == 3


def test_a_search_times_sparse_plans_lowered(
    always_faster: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = study(EAGER)
    dense = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    inputs = Inputs.of(torch.randn(2, 16))
    coupling = discover(dense, inputs)
    seen: list[Any] = []
    monkeypatch.setattr(
        costs.measure,
        "time_artefact",
        lambda candidate, *_, **__: seen.append(candidate) or answer(0.5),
    )
    found = costs.Costs(made, dense, coupling, inputs)
    key = next(
        group.key for group in coupling.groups if group.level == "weights" and group.size == 512
    )
    whole = Pruner(dense, coupling, Importance(dense, coupling)).apply(Plan())
    found.latency(whole, found.score(whole))  # the dense model is timed once, for all plans
    seen.clear()
    for technique, layers in (("weight", 1), ("block(rows=4, columns=4)", 1)):
        plan = Pruner(dense, coupling, Importance(dense, coupling)).apply(
            Plan({key: Choice(technique, 0.75)})
        )
        found.latency(plan, found.score(plan))
        assert len(list(lowered_layers(seen[-1]))) == layers
    taken = len(seen)
    # for either plan the lowered model against its dense self, then against the dense model
    assert taken == 4
    found.latency(plan, found.score(plan))
    assert len(seen) == taken
    found.of_finished(plan.finish(), plan, found.score(plan), 0)
    assert len(list(lowered_layers(seen[-1]))) == 1


def test_a_real_measurement_of_a_wide_sparse_layer_is_kept_consistent() -> None:
    model = nn.Sequential(pruned_(nn.Linear(512, 512), 0.98))
    result = lower(model, Inputs.of(torch.randn(1, 512)), EAGER)
    (record,) = result.records
    assert isinstance(result, Lowered) and record.tried is not None and record.tried["csr"] > 0
    assert record.sparsity == pytest.approx(0.98, abs=0.005)
    assert (record.kernel == "csr") == (record.ratio_high is not None and record.ratio_high <= 0.98)
    assert result.used == bool(list(lowered_layers(result.model)))
