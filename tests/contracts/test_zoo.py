"""Laws that every bundled model, data set and metric keeps; a new file is tested by being there."""

import inspect

import pytest
import torch
from torch import nn

from autoprune import plugins
from autoprune.errors import ModelError
from autoprune.task import Data

METRICS = plugins.import_reference("autoprune.zoo.metrics:GOALS")
SMALL = {
    "synthetic": {"shape": [2, 16, 16], "classes": 3, "size": 30},
    "digits_cnn": {"width": 8, "hidden": 16},
}
SHAPES = {"digits_cnn": (1, 8, 8)}


def make(kind, name):
    return plugins.load(kind, name)(**SMALL.get(name, {}))


@pytest.mark.parametrize("name", plugins.names("model"))
def test_a_model_is_a_module_of_its_arguments_and_the_seed(name):
    torch.manual_seed(0)
    first = make("model", name)
    torch.manual_seed(0)
    second = make("model", name)
    assert isinstance(first, nn.Module)
    again = second.state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.state_dict().items())
    parameters = inspect.signature(plugins.load("model", name)).parameters.values()
    assert all(parameter.default is not parameter.empty for parameter in parameters)


@pytest.mark.parametrize("name", plugins.names("model"))
def test_a_models_outputs_do_not_depend_on_the_batch(name):
    torch.manual_seed(0)
    model = make("model", name).eval()
    x = torch.randn(5, *SHAPES[name])
    assert torch.allclose(model(x)[:2], model(x[:2]), atol=1e-5)


@pytest.mark.parametrize("name", plugins.names("dataset"))
def test_a_data_set_is_the_same_every_time_and_its_parts_are_apart(name):
    first, second = make("dataset", name), make("dataset", name)
    assert isinstance(first, Data)
    seen = set()
    for part in ("train", "validation", "test"):
        (x, y), (again, labels) = getattr(first, part).tensors, getattr(second, part).tensors
        assert torch.equal(x, again) and torch.equal(y, labels)
        assert x.dtype == torch.float32 and y.dtype == torch.int64 and len(x) == len(y) > 0
        rows = {row.numpy().tobytes() for row in x}
        assert not rows & seen
        seen |= rows


@pytest.mark.parametrize("name", plugins.names("dataset"))
def test_a_data_set_has_every_class_in_every_part_and_is_normalised(name):
    data = make("dataset", name)
    classes = data.train.tensors[1].unique().tolist()
    assert classes == list(range(len(classes))) and len(classes) > 1
    for part in (data.validation, data.test):
        assert part.tensors[1].unique().tolist() == classes
    assert data.train.tensors[0].mean().abs() < 0.5 and 0.5 < data.train.tensors[0].std() < 2


def test_the_digits_are_split_by_class():
    data = plugins.load("dataset", "digits")()
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1074, 355, 368]
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        shares = part.tensors[1].bincount() / sum(other.tensors[1].bincount() for other in parts)
        assert ((shares - share).abs() < 0.02).all()


def test_the_synthetic_images_can_be_told_apart_by_their_class_mean():
    data = plugins.load("dataset", "synthetic")(shape=[3, 32, 32], classes=4, size=64)
    x, y = data.train.tensors
    means = torch.stack([x[y == label].mean(0) for label in range(4)]).flatten(1)
    tests, labels = data.test.tensors
    assert (torch.cdist(tests.flatten(1), means).argmin(1) == labels).double().mean() > 0.95
    other = plugins.load("dataset", "synthetic")(shape=[3, 32, 32], classes=4, size=64, seed=1)
    assert not torch.equal(other.train.tensors[0], x)


def test_the_digits_network_is_residual_and_staged():
    model = plugins.load("model", "digits_cnn")()
    assert [name for name, _ in model.named_children()] == [
        "stem",
        "stage1",
        "stage2",
        "pool",
        "head",
        "fc",
    ]
    # with no branch left, the path alone carries the input
    for conv in (model.stage1.conv2, model.stage2.conv2):
        nn.init.zeros_(conv.weight)
    model.eval()
    x = torch.randn(2, 64, 8, 8).relu()
    assert torch.equal(model.stage1(x), x)
    assert model.stage2(x).shape == (2, 128, 4, 4) and model.stage2(x).abs().sum() > 0


def test_metrics_by_hand():
    def metric(name):
        return plugins.import_reference(f"autoprune.zoo.metrics:{name}")

    logits = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 1, 2], [5, 0, 0]])
    labels = torch.tensor([0, 1, 1, 2])  # predicted 0, 1, 2, 0
    assert metric("accuracy")(logits, labels) == 0.5
    assert metric("accuracy")({"logits": logits}, labels) == 0.5
    assert metric("accuracy")(logits, torch.eye(3)[labels]) == 0.5
    assert metric("f1")(logits, labels) == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    ranked = torch.arange(7.0).repeat(4, 1)
    assert metric("top5_accuracy")(ranked, torch.tensor([6, 2, 1, 0])) == 0.5
    assert metric("top5_accuracy")(logits, labels) == 1.0
    assert metric("accuracy")(torch.tensor([1.0, -1, 2, -2]), torch.tensor([1, 0, 0, 1])) == 0.5
    assert metric("accuracy")(torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4).long()) <= 1.0
    assert metric("mse")(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])) == 2.5
    assert metric("mae")(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])) == 1.5


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"loss"}))
def test_a_metric_refuses_shapes_it_would_broadcast(name):
    with pytest.raises(ModelError, match=name):
        plugins.import_reference(f"autoprune.zoo.metrics:{name}")(torch.ones(4, 3), torch.ones(7))


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"loss"}))
def test_a_metric_is_best_where_the_outputs_are_right(name):
    metric = plugins.import_reference(f"autoprune.zoo.metrics:{name}")
    if METRICS[name] == "minimize":
        labels = torch.arange(7.0)
        assert metric(labels, labels) == 0.0 < metric(labels + 1, labels)
    else:
        labels, right = torch.arange(7), torch.eye(7)
        assert metric(right, labels) == 1.0 > metric(-right, labels)
