"""A model in the precision it ships in: its file, its metric, and a search that judges by them."""

import json
import shutil
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import autoprune
from autoprune import plugins
from autoprune.errors import InputError, ModelError, VerificationError
from autoprune.exporting import shipped
from autoprune.exporting.verify import verify
from autoprune.measuring.measure import artefact, measure
from autoprune.measuring.onnx_slicing.slicer import export
from autoprune.measuring.quantization import convert, fit_to_dtype, outputs_for
from autoprune.measuring.runtime_module import Deployed
from autoprune.plugins import load
from autoprune.target import Target
from autoprune.task import Inputs, Recipe, Task, default_adapter
from autoprune.training import data, judging, losses, tasks
from autoprune.training.loop import evaluate, train

INT8 = Target(name="int8", dtype="int8")
IMAGES = Inputs.of(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def task():
    build = partial(load("model", "digits_cnn"), width=16, hidden=32)
    loss = losses.resolve("cross_entropy")
    return Task(
        build=build,
        data=data.check_data(load("dataset", "digits")()),
        loss=loss,
        metric=tasks.metric("accuracy", loss),
        training=Recipe(epochs=4, device="cpu", learning_rate=3e-3),
        adapter=default_adapter,
    )


@pytest.fixture(scope="module")
def trained(task):
    torch.manual_seed(0)
    model = task.build()
    train(model, task, task.training, seed=0)
    return model.eval()


def operators(content):
    return [node.op_type for node in onnx.load_from_string(content).graph.node]


def arrays(inputs):
    return [tensor.numpy() for tensor in inputs.tensors()]


def test_fp32_is_the_file_itself_and_others_keep_inputs_and_outputs():
    content = export(load("model", "digits_cnn")().eval(), IMAGES)
    assert convert(content, "fp32", []) is content
    before = onnx.load_from_string(content).graph
    for dtype, share in (("fp16", 0.55), ("int8", 0.35)):
        converted = convert(content, dtype, [arrays(IMAGES)])
        after = onnx.load_from_string(converted).graph
        assert [(v.name, v.type.tensor_type.elem_type) for v in (*after.input, *after.output)] == [
            (v.name, v.type.tensor_type.elem_type) for v in (*before.input, *before.output)
        ]
        assert len(converted) < share * len(content)


def test_weights_have_a_scale_for_each_channel_and_batch_norms_are_folded():
    content = export(load("model", "digits_cnn")(width=16).eval(), IMAGES)
    quantised = convert(content, "int8", [arrays(IMAGES)])
    assert "BatchNormalization" in operators(content) and "BatchNormalization" not in operators(
        quantised
    )
    kinds = {each.name: each for each in onnx.load_from_string(quantised).graph.initializer}
    weights = [
        t for t in kinds.values() if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    ]
    assert len(weights) == 6
    for weight in weights:
        assert list(kinds[weight.name.replace("_quantized", "_scale")].dims) == [weight.dims[0]]
    points = [kinds[node.input[2]] for node in onnx.load_from_string(quantised).graph.node
              if node.op_type == "QuantizeLinear"]  # fmt: skip
    assert {point.data_type for point in points} == {onnx.TensorProto.UINT8}
    symmetric = onnx.load_from_string(
        convert(content, "int8", [arrays(IMAGES)], symmetric=True)
    ).graph
    kinds = {each.name: onnx.numpy_helper.to_array(each) for each in symmetric.initializer}
    points = [kinds[node.input[2]] for node in symmetric.node if node.op_type == "QuantizeLinear"]
    assert points and all(point.dtype == np.int8 and not point.any() for point in points)


def test_only_what_a_runtime_does_not_do_itself_is_converted():
    content = export(load("model", "digits_cnn")().eval(), IMAGES)

    class Converts:
        converts = ("int8",)

    assert fit_to_dtype(content, Converts(), Target(dtype="bf16"), [IMAGES]) is content
    assert "QuantizeLinear" in operators(fit_to_dtype(content, Converts(), INT8, [IMAGES]))
    assert fit_to_dtype(content, object(), INT8, [IMAGES]) is content


def test_what_cannot_be_converted_is_refused():
    content = export(nn.Linear(4, 2).eval(), Inputs.of(torch.randn(2, 4)))
    with pytest.raises(InputError, match="fp16 or int8; got 'int4'"):
        convert(content, "int4", [])
    with pytest.raises(InputError, match="at least one batch"):
        convert(content, "int8", [])
    with pytest.raises(ModelError, match="cannot be converted to int8"):
        convert(b"no graph", "int8", [[np.zeros((1, 4), np.float32)]])
    with pytest.raises(InputError, match=r"has no method outputs.*Give dtype fp32"):
        outputs_for(object(), INT8)


@pytest.mark.slow
def test_int8_keeps_the_accuracy_of_a_trained_net(task, trained):
    plain = evaluate(trained, task, "validation", "cpu")
    assert plain.metric > 0.9
    found = judging.judge(trained, task, INT8, "validation")
    assert found.metric >= plain.metric - 0.02
    assert found.loss != plain.loss and found.loss == pytest.approx(plain.loss, abs=0.05)
    # calibrated on the same inputs each time
    assert judging.judge(trained, task, INT8, "validation") == found
    same = judging.judge(trained, task, Target(), "validation", "cpu")
    assert (same.metric, same.loss) == (plain.metric, plain.loss)


def test_a_broken_quantisation_shows_in_the_metric(task, trained):
    """The metric is that of the file: scales taken from noise a thousand times too small leave nothing of the net."""
    narrow = convert(export(trained, IMAGES), "int8", [[1e-3 * IMAGES.args[0].numpy()]])
    assert judging.judge(trained, task, INT8, "validation", artefact=narrow).metric < 0.5


def test_the_module_keeps_nesting_and_fills_up_small_batches():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return {"logits": self.fc(x), "more": (x * 2, None)}

    model, target = Nested().eval(), Target(runtime="eager", dtype="bf16")
    module = Deployed(artefact(model, Inputs.of(torch.randn(2, 4)), target), model, target)
    for count in (3, 5, 2, 1):
        x = torch.randn(count, 4)
        found, expected = module(x), model(x)
        assert found["logits"].shape == (count, 3) and found["more"][1] is None
        assert torch.allclose(found["logits"], expected["logits"], atol=0.05)
        assert torch.allclose(found["more"][0], 2 * x, atol=0.05)


def test_outputs_without_rows_are_not_cut():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x).sum()

    model, target = Summed().eval(), Target(runtime="eager", dtype="bf16")
    module = Deployed(model, model, target)
    module(torch.randn(3, 4))
    with pytest.raises(ModelError, match="no row for each input"):
        module(torch.randn(2, 4))


@pytest.mark.slow
def test_measure_gives_size_and_latency_in_the_targets_dtype(trained):
    inputs = Inputs.of(IMAGES.args[0][:1])
    plain, small = (
        measure(trained, inputs, Target()),
        measure(trained, inputs, INT8, against=trained),
    )
    assert small.size_bytes < 0.5 * plain.size_bytes
    # to the dense model in the same dtype
    assert small.latency.ratio == pytest.approx(1.0, abs=0.3)


@pytest.fixture(scope="module")
def found(tmp_path_factory, task, trained):
    """A tiny search for int8, and its run."""
    folder = tmp_path_factory.mktemp("int8") / "run"
    return autoprune.search(
        trained, train=task.data.train, validation=task.data.validation, test=task.data.test,
        target={"runtime": "onnxruntime", "dtype": "int8"}, budget={"params": "60%"}, trials=3,
        recovery={"epochs": 1, "device": "cpu"}, formats=["safetensors", "onnx"], out=folder,
    )  # fmt: skip


@pytest.mark.slow
def test_a_search_judges_in_the_dtype_it_ships(found, task, trained):
    target = found.study.target
    assert target.dtype == "int8"
    dense = judging.judge(trained, task, target, "validation")
    assert found.dense.metric == dense.metric
    assert found.dense.size_bytes < 0.5 * len(export(trained, IMAGES))
    best = found.best
    assert best.score.metric == judging.judge(best.model, task, target, "validation").metric
    assert best.score.test_metric == judging.judge(best.model, task, target, "test").metric
    assert best.score.latency.ratio is not None


@pytest.mark.slow
def test_the_artefact_holds_the_file_that_the_target_runs(found, task):
    best = found.run / "best"
    record = json.loads((best / "score.json").read_text())
    assert record["runs"] == "model.int8.onnx" and "QuantizeLinear" in operators(
        (best / record["runs"]).read_bytes()
    )
    assert record["size_bytes"] == (best / record["runs"]).stat().st_size
    assert "QuantizeLinear" not in operators((best / "model.onnx").read_bytes())
    checked = {
        each["name"]: each
        for each in json.loads((best / "verification.json").read_text())["checks"]
    }
    assert checked["outputs of the target"]["passed"] and checked["metric"]["passed"]
    assert "in int8 on onnxruntime" in checked["metric"]["detail"]
    runtime = plugins.load("runtime", "onnxruntime")()
    inputs = task.calibration(64)
    (again,) = runtime.outputs(best / record["runs"], inputs, Target(dtype="int8"))(inputs)
    assert np.allclose(again, shipped.read(best)[0].numpy(), atol=1e-6)


@pytest.mark.slow
def test_verify_sees_another_file_in_its_place(found, task, tmp_path):
    folder = tmp_path / "best"
    shutil.copytree(found.run / "best", folder)
    record = json.loads((folder / "score.json").read_text())
    spoiled = convert(
        (folder / "model.onnx").read_bytes(), "int8", [[1e-3 * IMAGES.args[0].numpy()]]
    )
    (folder / record["runs"]).write_bytes(spoiled)
    with pytest.raises(
        VerificationError, match=r"outputs of the target: outputs are off by"
    ) as caught:
        verify(folder, task=task)
    assert "model.int8.onnx" in str(caught.value) and "(accuracy) is" in str(caught.value)
