"""The training loop on tiny models: reproducible, scheduled, distilled, masked, and loud where it breaks."""

import math
import random
from dataclasses import replace

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from autoprune.errors import InputError, ModelError, TrainingError
from autoprune.task import Data, Metric, Recipe, Task
from autoprune.training import loop, losses, schedule
from autoprune.training.batches import concatenate, standard_error


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LONG = Recipe(epochs=15, batch_size=16, learning_rate=2e-2, device="cpu")


def points(count=65, seed=0):
    """Two classes of points in four dimensions, apart along the first."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    x = torch.randn(count, 4, generator=generator)
    x[:, 0] += 4.0 * labels - 2.0
    return TensorDataset(x, labels)


def accuracy(outputs, targets):
    return float((outputs.argmax(1) == targets).double().mean())


def make_task(data=None, loss=functional.cross_entropy, recipe=None):
    return Task(
        build=net,
        data=data or Data(points(), points(33, seed=1), points(17, seed=2)),
        loss=loss,
        metric=Metric("accuracy", accuracy),
        training=recipe or Recipe(epochs=3, batch_size=16, learning_rate=1e-2, device="cpu"),
    )


def net(norm=True, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(8) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(4, 8), middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))


def state(model):
    return torch.cat([tensor.detach().double().flatten() for tensor in model.state_dict().values()])


def test_it_learns_and_ends_in_eval_mode():
    task = make_task(recipe=LONG)
    model = net()
    loop.train(model, task, task.training, seed=0)
    assert not any(module.training for module in model.modules())
    assert loop.evaluate(model, task, "validation", "cpu").metric >= 0.9


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_every_optimizer_lowers_the_loss(optimizer):
    task = make_task(recipe=LONG)
    model = net()
    before = loop.evaluate(model, task, "train", "cpu").loss
    loop.train(model, task, replace(task.training, optimizer=optimizer), seed=0)
    assert loop.evaluate(model, task, "train", "cpu").loss < 0.5 * before


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_leaves_fp32_weights(precision):
    task = make_task(recipe=LONG)
    model = net()
    loop.train(model, task, replace(task.training, precision=precision), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert loop.evaluate(model, task, "validation", "cpu").metric >= 0.9


def test_the_same_seed_gives_identical_weights_and_another_seed_others():
    task = make_task()
    results = []
    for seed, disturb in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(disturb)
        model = net(dropout=0.5)
        torch.rand(disturb * 7)
        loop.train(model, task, task.training, seed=seed)
        results.append(state(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_global_random_states_are_left_as_they_were():
    task = make_task()
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
    wanted = (torch.rand(1).item(), random.random(), numpy.random.rand())
    model = net(dropout=0.5)
    torch.manual_seed(5), random.seed(5), numpy.random.seed(5)
    loop.train(model, task, task.training, seed=1)
    loop.recalibrate(model, task, device="cpu")
    loop.evaluate(model, task, "validation", "cpu")
    assert (torch.rand(1).item(), random.random(), numpy.random.rand()) == wanted


def test_tensor_batches_are_those_of_a_data_loader():
    data = points(21)
    task = make_task(Data(data, data), recipe=Recipe(batch_size=8, device="cpu"))
    ours = [target for _, _, target in task.batches("train", seed=9)]
    loader = DataLoader(data, 8, shuffle=True, generator=torch.Generator().manual_seed(9))
    assert [len(target) for target in ours] == [8, 8, 5]
    assert sorted(torch.cat(ours).tolist()) == sorted(torch.cat([y for _, y in loader]).tolist())
    plain = [x for (x,), _, _ in task.batches("train")]
    assert torch.equal(torch.cat(plain), data.tensors[0])
    assert task.steps("train") == len(loader) == 3


def test_a_shuffled_epoch_depends_on_the_seed_alone():
    task = make_task()
    first, again, other = (
        [y.tolist() for _, _, y in task.batches("train", seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_data_loaders_brought_by_the_user_repeat_too():
    task = make_task(Data(DataLoader(points(), 16, shuffle=True), DataLoader(points(33, 1), 16)))
    results = []
    for _ in range(2):
        model = net()
        loop.train(model, task, task.training, seed=0)
        results.append(state(model))
    assert torch.equal(*results)


def test_batch_norm_survives_a_last_batch_of_one():
    assert len(points()) % 16 == 1
    steps = []
    task = make_task()
    loop.train(net(norm=True), task, task.training, seed=0, report=steps.append)
    assert len(steps) == 3 * 4  # the fifth batch of each epoch is left out
    steps.clear()
    loop.train(net(norm=False), task, task.training, seed=0, report=steps.append)
    assert len(steps) == 3 * 5


def test_progress_reaches_one_in_equal_steps():
    steps = []
    task = make_task(Data(points(64), points(33)))
    loop.train(net(), task, task.training, seed=0, report=steps.append)
    assert steps == pytest.approx([(step + 1) / 12 for step in range(12)])


def test_masks_step_after_every_optimiser_step():
    class Half:
        def __init__(self, model):
            self.model, self.seen = model, []

        def step(self, progress):
            self.seen.append(progress)
            with torch.no_grad():
                self.model[0].weight[:, 2:] = 0

    task = make_task()
    model = net()
    masks = Half(model)
    loop.train(model, task, task.training, seed=0, masks=masks)
    assert model[0].weight[:, 2:].abs().sum() == 0
    assert masks.seen[-1] == pytest.approx(1.0, abs=0.1) and len(masks.seen) == 12


def test_a_loss_that_is_not_finite_names_epoch_and_step():
    def loss(output, target):
        return functional.cross_entropy(output, target) * (
            math.nan if seen.append(1) or len(seen) == 7 else 1
        )

    seen = []
    model = net()
    with pytest.raises(TrainingError, match=r"nan in epoch 2, step 2"):
        loop.train(
            model, make_task(Data(points(80), points()), loss), Recipe(3, 16, device="cpu"), seed=0
        )
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_loss_of_several_numbers_is_refused():
    task = make_task(
        loss=lambda output, target: functional.cross_entropy(output, target, reduction="none")
    )
    with pytest.raises(ModelError, match=r"one number.*shape \(16,\)"):
        loop.train(net(), task, task.training, seed=0)


def test_a_frozen_model_is_refused():
    task = make_task()
    with pytest.raises(ModelError, match="requires_grad"):
        loop.train(net().requires_grad_(False), task, task.training, seed=0)


def test_interruption_passes_through():
    def interrupt(progress):
        raise KeyboardInterrupt

    task, model = make_task(), net()
    with pytest.raises(KeyboardInterrupt):
        loop.train(model, task, task.training, seed=0, report=interrupt)
    assert not model.training


def test_an_iterator_is_refused_and_an_iterable_data_set_is_not():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(x, y) for x, y in points()])

    task = make_task(Data(Stream(), points()), recipe=LONG)
    assert task.steps("train") == 5
    model = net()
    loop.train(model, task, task.training, seed=0)
    assert loop.evaluate(model, task, "validation", "cpu").metric >= 0.9
    with pytest.raises(ModelError, match="iterator"):
        make_task(Data(iter([]), points())).steps("train")


def test_distillation_alone_pulls_towards_the_teacher():
    """With wrong labels and weight 1, only the teacher is followed; its mode and weights stay."""
    task = make_task(recipe=LONG)
    teacher = net(seed=1)
    loop.train(teacher, task, task.training, seed=0)
    teacher.train()
    before = state(teacher)
    x, y = points().tensors
    wrong = make_task(Data(TensorDataset(x, 1 - y), points(33, 1)), recipe=LONG)
    student = net(seed=2)
    loop.train(student, wrong, replace(task.training, distill=1.0), seed=0, teacher=teacher)
    assert loop.evaluate(student, task, "validation", "cpu").metric >= 0.9
    assert teacher.training and torch.equal(state(teacher), before)


def test_distance_is_scaled_kl_for_cross_entropy_and_mse_elsewhere():
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    p, q = (teacher / 4).softmax(1), (student / 4).softmax(1)
    by_hand = (p * (p / q).log()).sum(1).mean() * 16
    for loss in (functional.cross_entropy, nn.CrossEntropyLoss(), losses.resolve("cross_entropy")):
        assert losses.distillation(loss, 4.0)(student, teacher) == pytest.approx(
            float(by_hand), rel=1e-4
        )
    assert losses.distillation(functional.mse_loss, 4.0)(student, teacher) == functional.mse_loss(
        student, teacher
    )


def test_weight_decay_leaves_biases_and_norms_alone():
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm((1, 8)), nn.Linear(8, 2))
    groups = loop.optimizer_of(model, Recipe(weight_decay=0.1)).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [
        (0.1, 2),
        (0.0, 4),
    ]


def test_evaluate_calls_the_metric_once_on_everything():
    calls = []

    def function(outputs, targets):
        calls.append((outputs["scores"].shape, targets["label"].shape, targets["id"]))
        return 0.25

    class Named(nn.Module):
        def forward(self, x):
            return {"scores": x[:, :2]}

    data = [
        {"x": torch.ones(3, 4), "labels": {"label": torch.zeros(3), "id": "a"}},
        {"x": torch.ones(2, 4), "labels": {"label": torch.zeros(2), "id": "b"}},
    ]
    loader = DataLoader(data, batch_size=None)
    task = replace(
        make_task(Data(loader, loader), lambda output, target: output["scores"].sum()),
        metric=Metric("mine", function, "minimize"),
    )
    quality = loop.evaluate(Named(), task, "validation", "cpu")
    assert calls == [((5, 2), (5,), ["a", "b"])]
    assert quality.metric == 0.25 and quality.loss == pytest.approx((6 * 3 + 4 * 2) / 5)


def test_evaluate_averages_the_loss_over_samples_and_gives_the_mode_back():
    task, model = make_task(), net(dropout=0.5)
    model.train()
    model[1].eval()
    quality = loop.evaluate(model, task, "validation", "cpu")
    assert [module.training for module in model] == [True, False, True, True, True]
    model.eval()
    x, y = task.data.validation.tensors
    assert quality.loss == pytest.approx(functional.cross_entropy(model(x), y).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [functional.cross_entropy, nn.CrossEntropyLoss(), "cross_entropy"])
def test_a_tempered_loss_does_not_count_how_confident_a_model_is(loss):
    task, model = make_task(loss=losses.resolve(loss)), net()
    plain, tempered = (
        loop.evaluate(model, task, "validation", "cpu", tempered=each).loss
        for each in (False, True)
    )
    model[4].weight.data *= 4
    model[4].bias.data *= 4
    confident, again = (
        loop.evaluate(model, task, "validation", "cpu", tempered=each).loss
        for each in (False, True)
    )
    assert (
        again == pytest.approx(tempered, rel=1e-5)
        and tempered < plain
        and abs(confident - plain) > 1e-3
    )

    class Own(nn.CrossEntropyLoss):
        def forward(self, output, target):
            logits, _ = output.unbind(1)  # of more than logits
            return logits.square().mean()

    own = make_task(loss=losses.resolve(Own()))
    assert loop.evaluate(model, own, "validation", "cpu", tempered=True) == loop.evaluate(
        model, own, "validation", "cpu"
    )
    # who knows of logits?
    distance = make_task(loss=lambda output, target: functional.cross_entropy(output, target))
    assert loop.evaluate(model, distance, "validation", "cpu", tempered=True).loss == pytest.approx(
        confident
    )


def test_evaluate_refuses_what_is_not_finite_and_what_is_no_number():
    task = make_task()
    model = net()
    model[4].weight.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="loss on the validation data is nan"):
        loop.evaluate(model, task, "validation", "cpu")
    with pytest.raises(ModelError, match="one number"):
        loop.evaluate(
            net(), replace(task, metric=Metric("m", lambda o, t: "high")), "validation", "cpu"
        )
    with pytest.raises(ModelError, match="empty"):
        loop.evaluate(net(), make_task(Data(points(), points(0))), "validation", "cpu")


def test_joined_keeps_what_does_not_fit_in_lists():
    assert concatenate([torch.ones(2, 3), torch.ones(1, 3)]).shape == (3, 3)
    assert concatenate([torch.tensor(1.0), torch.tensor(2.0)]).tolist() == [1.0, 2.0]
    assert [part.shape for part in concatenate([torch.ones(2, 3), torch.ones(2, 4)])] == [
        (2, 3),
        (2, 4),
    ]
    assert concatenate([(torch.ones(1), "a"), (torch.ones(1), "b")])[1] == ["a", "b"]


def test_recalibrate_takes_plain_averages_and_touches_nothing_else():
    task = make_task(Data(points(64), points()))
    model = net()
    model[1].running_mean.fill_(100.0)
    model[1].momentum = 0.3
    model.train()
    before = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "running" not in name
    }
    loop.recalibrate(model, task, device="cpu")
    inner = model[0](task.data.train.tensors[0])
    # four equal batches: the mean over all
    assert torch.allclose(model[1].running_mean, inner.mean(0), atol=1e-5)
    after = {name: tensor for name, tensor in model.state_dict().items() if "running" not in name}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model[1].momentum == 0.3 and model.training and model[1].training


def test_recalibrate_without_batch_norm_reads_no_data():
    class Forbidden:
        def __iter__(self):
            raise AssertionError("must not be read")

    model = net(norm=False)
    before = state(model)
    loop.recalibrate(model, make_task(Data(Forbidden(), points())), device="cpu")
    assert torch.equal(state(model), before)


def test_a_device_that_is_not_there_is_bad_input():
    assert loop.device("cpu").type == "cpu"
    with pytest.raises(InputError, match="quantum"):
        loop.device("quantum")


def test_the_learning_rate_warms_up_and_ends_at_zero():
    values = [schedule.learning_rate(step / 200) for step in range(201)]
    assert (
        values[0] == 0.0 and max(values) == values[10] == 1.0 and values[200] == pytest.approx(0.0)
    )
    assert values[:11] == sorted(values[:11]) and values[10:] == sorted(values[10:], reverse=True)


def test_the_standard_error_of_an_accuracy_is_the_binomial_one():
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(40):
        right = (torch.rand(400, generator=generator) < 0.9).float()
        found.append(standard_error(lambda outputs, targets: float(outputs.mean()), right, right))
    assert sum(found) / len(found) == pytest.approx((0.9 * 0.1 / 400) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(10), [1, 2]),  # not tensors
        (torch.zeros(10), torch.zeros(9)),
        (torch.zeros(3), torch.zeros(3)),  # too few
        (torch.tensor(1.0), torch.zeros(10)),
        (torch.zeros(10), torch.arange(10)),  # the metric wants all of them
    ],
)
def test_no_standard_error_where_a_metric_takes_no_parts(outputs, targets):
    def metric(outputs, targets):
        if len(outputs) < 10:
            raise ValueError("all ten")
        return 0.5

    assert standard_error(metric, outputs, targets) is None


@pytest.mark.promise("options")
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize(
    "other",
    [
        {"momentum": 0.0},
        {"schedule": "linear"},
        {"schedule": "constant"},
        {"warmup": 0.5},
        {"weight_decay": 0.9},
    ],
    ids=str,
)
def test_every_key_of_a_recipe_changes_the_training(optimizer, other):
    usual = replace(make_task().training, optimizer=optimizer)
    weights = []
    for recipe in (usual, replace(usual, **other)):
        model = net()
        loop.train(model, make_task(recipe=recipe), recipe, seed=0)
        weights.append(state(model))
    assert float((weights[0] - weights[1]).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("name", "middle", "last"), [("cosine", 0.5, 0.0), ("linear", 0.5, 0.0), ("constant", 1, 1)]
)
def test_a_schedule_begins_at_the_end_of_the_warmup(name, middle, last):
    found = [schedule.learning_rate(progress, name, 0.2) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert found == pytest.approx([0.0, 0.5, 1.0, middle, last])
    assert schedule.learning_rate(0.0, name, 0.0) == 1.0  # no warm-up at all
