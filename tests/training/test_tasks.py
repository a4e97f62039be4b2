"""A task's section of a study -> Task: every reference is resolved, and every failure names its key."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from autoprune import plugins
from autoprune.errors import InputError, MissingPackage, ModelError, StudyError
from autoprune.reading import values
from autoprune.task import Data, Recipe
from autoprune.training import data, losses, tasks
from autoprune.training.weights import load_weights

RECIPE = Recipe(batch_size=4, device="cpu")
DIGITS = {"model": "zoo:digits_cnn", "data": "zoo:digits"}

MINE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
import {layers}

def build(width=4):
    return {layers}.make(width)

def nothing():
    return "no module"

def broken():
    raise RuntimeError("the file is gone")

def data(count=6, parts=("train", "validation")):
    return {{part: TensorDataset(torch.ones(count, 3), torch.zeros(count).long()) for part in parts}}

def rows():
    rows = [{{"a": torch.ones(3), "b": torch.ones(1), "labels": torch.tensor(1)}}] * 5
    return {{"train": rows, "validation": rows}}

def triples():
    rows = [(torch.ones(3), torch.ones(3), 1)] * 5
    return {{"train": rows, "validation": rows}}

def iterator():
    return {{"train": iter([]), "validation": [1]}}

def adapt(batch):
    first, second, target = batch
    return (first,), {{"bias": second}}, target

def loss(output, target):
    return output.sum()

def perplexity(outputs, targets):
    return 7.0

number = 3
"""


@pytest.fixture
def mine(tmp_path, request):
    """A folder with the user's modules, under names that no other test uses, and the name of the first."""
    name, layers = f"mine_{abs(hash(request.node.name))}", f"layers_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MINE.format(layers=layers))
    (tmp_path / f"{layers}.py").write_text(
        "from torch import nn\n\ndef make(width):\n    return nn.Linear(3, width)\n"
    )
    path = list(sys.path)
    yield tmp_path, name
    sys.path[:] = path
    for module in (name, layers):
        sys.modules.pop(module, None)


def build(section, folder):
    return tasks.build(section, [folder], RECIPE)


def refused(section, folder, key, *words):
    with pytest.raises(StudyError) as caught:
        build(section, folder).build()
    assert caught.value.key == key, str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_bundled_task(tmp_path):
    task = build(DIGITS | {"model": {"name": "zoo:digits_cnn", "args": {"width": 8}}}, tmp_path)
    assert task.build()(task.calibration(5).args[0]).shape == (5, 10)
    assert (task.metric.name, task.metric.goal, task.sources) == ("accuracy", "maximize", ())
    assert task.digest() == build(dict(task.description), tmp_path).digest()


def test_the_users_own_functions(mine):
    folder, name = mine
    section = {
        "model": {"name": f"{name}:build", "args": {"width": 5}},
        "data": {"name": f"{name}:triples"},
        "adapter": f"{name}:adapt",
        "loss": f"{name}:loss",
        "metric": {"name": "perplexity", "function": f"{name}:perplexity", "goal": "minimize"},
    }
    task = build(section, folder)
    assert task.build().out_features == 5
    args, kwargs, target = next(task.batches("train"))
    assert (len(args), list(kwargs), target.tolist()) == (1, ["bias"], [1, 1, 1, 1])
    assert task.loss(torch.ones(3), None) == 3 and task.metric.function(None, None) == 7.0
    assert task.metric.goal == "minimize"
    assert {path.name.split("_")[0] for path in task.sources} == {"mine", "layers"}


def test_the_digest_follows_what_the_users_module_imports(mine):
    folder, name = mine
    section = {"model": f"{name}:build", "data": f"{name}:data"}
    before = build(section, folder).digest()
    layers = next(folder.glob("layers_*.py"))
    layers.write_text(layers.read_text() + "# changed\n")
    assert build(section, folder).digest() != before


def test_dictionary_batches(mine):
    folder, name = mine
    args, kwargs, target = next(
        build({"model": f"{name}:build", "data": f"{name}:rows"}, folder).batches("train")
    )
    assert (
        args == ()
        and kwargs["a"].shape == (4, 3)
        and kwargs["b"].shape == (4, 1)
        and target.tolist() == [1] * 4
    )


@pytest.mark.parametrize(
    ("model", "key", "words"),
    [
        (None, "task.model", ["reference"]),
        ("digits_cnn", "task.model", ["zoo:digits_cnn", "did you mean"]),
        ("zoo:digit_cnn", "task.model", ["did you mean 'digits_cnn'"]),
        ("torchvision:resnet81", "task.model", ["did you mean 'resnet18'"]),
        ({"name": "zoo:digits_cnn", "arguments": {}}, "task.model", ["args"]),
        ({"name": "zoo:digits_cnn", "args": [1]}, "task.model.args", ["mapping"]),
        (
            {"name": "zoo:digits_cnn", "args": {"widht": 8}},
            "task.model.args",
            ["widht", "did you mean 'width'"],
        ),
        ({"name": "zoo:digits_cnn", "args": {"width": 0}}, "task.model", ["at least 1"]),
        ({"name": "torchvision:resnet18", "args": {"nclasses": 8}}, "task.model", ["nclasses"]),
        ("MINE:build_it", "task.model", ["did you mean 'build'"]),
        ("MINE:nothing", "task.model", ["torch.nn.Module", "str"]),
        ("MINE:number", "task.model", ["int"]),
        ("MINE:broken", "task.model", ["RuntimeError", "the file is gone", "line"]),
        ("no_such_module_here:build", "task.model", ["no module"]),
    ],
)
def test_wrong_models(mine, model, key, words):
    folder, name = mine
    model = model.replace("MINE", name) if isinstance(model, str) else model
    refused({"model": model, "data": f"{name}:data"}, folder, key, *words)


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ("digits", "task.data", ["no folder", "did you mean 'zoo:digits'"]),
        ("zoo:digit", "task.data", ["did you mean 'digits'"]),
        ("torchvision:CIFAR1O", "task.data", ["did you mean 'CIFAR10'"]),
        ("torchvision:CIFAR10", "task.data.args", ["root", "download"]),
        ("torchvision:FakeData", "task.data", ["no train and test", "my_module"]),
        (
            {"name": "torchvision:CIFAR10", "args": {"root": "nowhere"}},
            "task.data",
            ["RuntimeError", "download"],
        ),
        (
            {"name": "torchvision:MNIST", "args": {"root": "x", "rott": 1}},
            "task.data.args",
            ["rott", "'root'"],
        ),
        ({"name": "zoo:synthetic", "args": {"shape": [3]}}, "task.data", ["shape"]),
        ({"name": "MINE:data", "args": {"count": 0}}, "task.data", ["train data is empty"]),
        ({"name": "MINE:data", "args": {"parts": ["train"]}}, "task.data", ["no validation data"]),
        (
            {"name": "MINE:data", "args": {"parts": ["train", "valid"]}},
            "task.data",
            ["did you mean 'validation'"],
        ),
        ("MINE:broken", "task.data", ["the file is gone"]),
        ("MINE:nothing", "task.data", ["str"]),
        ("MINE:iterator", "task.data", ["iterator"]),
        ("MINE:triples", "task.data", ["adapter"]),
    ],
)
def test_wrong_data(mine, given, key, words):
    folder, name = mine
    given = {"name": given} if isinstance(given, str) else given
    given = given | {"name": given["name"].replace("MINE", name)}
    refused({"model": f"{name}:build", "data": given}, folder, key, *words)


@pytest.mark.parametrize(
    ("key", "value", "where", "words"),
    [
        ("loss", "cross_entrpy", "task.loss", ["did you mean 'cross_entropy'"]),
        ("loss", "relu", "task.loss", ["unknown loss"]),
        ("loss", "MINE:number", "task.loss", ["int"]),
        ("metric", "acuracy", "task.metric.name", ["did you mean 'accuracy'"]),
        ("metric", {"name": "accuracy", "goal": "minimize"}, "task.metric.goal", ["higher"]),
        (
            "metric",
            {"name": "accuracy", "goal": "up"},
            "task.metric.goal",
            ["maximize or minimize"],
        ),
        ("metric", {"name": "p", "function": "MINE:perplexity"}, "task.metric.goal", ["goal"]),
        (
            "metric",
            {"name": "p", "function": "MINE:none", "goal": "minimize"},
            "task.metric.function",
            ["none"],
        ),
        (
            "metric",
            {"name": "p", "function": "MINE:number", "goal": "minimize"},
            "task.metric.function",
            ["3"],
        ),
        ("adapter", "MINE:number", "task.adapter", ["int"]),
        ("adapter", "MINE:loss", "task.adapter", ["failed with TypeError"]),
        ("adapter", "builtins:list", "task.adapter", ["must return"]),
        ("weights", "gone.safetensors", "task.weights", ["gone.safetensors"]),
    ],
)
def test_wrong_other_parts(mine, key, value, where, words):
    folder, name = mine
    if isinstance(value, str):
        value = value.replace("MINE", name)
    else:
        value = {each: text.replace("MINE", name) for each, text in value.items()}
    refused({"model": f"{name}:build", "data": f"{name}:data", key: value}, folder, where, *words)


def test_a_missing_package_is_named(mine):
    folder, name = mine
    (folder / f"needs_{name}.py").write_text("import no_such_package_at_all\n")
    with pytest.raises(MissingPackage, match="no_such_package_at_all"):
        build({"model": f"needs_{name}:build", "data": f"{name}:data"}, folder)


def test_torchvision_models_are_untrained_unless_asked(tmp_path):
    section = DIGITS | {"model": {"name": "torchvision:squeezenet1_1", "args": {"num_classes": 3}}}
    assert build(section, tmp_path).build()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def images(folder, classes, each, size=(12, 10)):
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(each):
            Image.new("RGB", size, (40 * number + index, 90, 200 - index)).save(
                folder / name / f"{index}.png"
            )


def test_a_folder_of_class_folders_is_split(tmp_path):
    images(tmp_path / "flowers", ["a", "b"], 10)
    section = DIGITS | {"data": {"name": "flowers", "args": {"size": 8, "validation": 0.3}}}
    task = build(section, tmp_path)
    assert (len(task.data.train), len(task.data.validation), task.data.test) == (14, 6, None)
    assert not {*task.data.train.indices} & {*task.data.validation.indices}
    assert {*task.data.train.indices} | {*task.data.validation.indices} == set(range(20))
    assert task.data.train.indices == build(section, tmp_path).data.train.indices
    assert next(task.batches("train"))[0][0].shape == (4, 3, 8, 8)


def test_a_folder_with_splits_is_normalised_by_its_training_part(tmp_path):
    for part, each in (("train", 6), ("val", 3), ("test", 2)):
        images(tmp_path / "flowers" / part, ["a", "b"], each)
    task = build(DIGITS | {"data": {"name": "flowers", "args": {"size": 8}}}, tmp_path)
    assert [len(getattr(task.data, part)) for part in ("train", "validation", "test")] == [12, 6, 4]
    every = torch.stack([task.data.train[index][0] for index in range(12)])
    assert every[:, 0].mean().item() == pytest.approx(0, abs=1e-5)
    assert every[:, 0].std().item() == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ({"validation": 2}, "task.data.args.validation"),
        ({"size": "big"}, "task.data.args.size"),
        ({"mean": [0.5]}, "task.data.args"),
        ({"sise": 4}, "task.data.args"),
    ],
)
def test_wrong_arguments_of_a_folder(tmp_path, args, key):
    images(tmp_path / "flowers", ["a", "b"], 4)
    refused(DIGITS | {"data": {"name": "flowers", "args": args}}, tmp_path, key)


def test_folders_whose_classes_differ_or_that_hold_none_are_refused(tmp_path):
    images(tmp_path / "flowers" / "train", ["a", "b"], 2)
    images(tmp_path / "flowers" / "val", ["a", "c"], 2)
    refused(DIGITS | {"data": "flowers"}, tmp_path, "task.data", "'c'")
    (tmp_path / "empty").mkdir()
    refused(DIGITS | {"data": "empty"}, tmp_path, "task.data", "FileNotFoundError")


def test_torchvision_data_with_a_train_flag(tmp_path, monkeypatch):
    from torchvision import datasets

    class MNIST(torch.utils.data.Dataset):
        def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
            self.root, self.count, self.transform = root, 40 if train else 10, transform

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            return self.transform(Image.new("L", (28, 28), 2 * index)), index % 10

    monkeypatch.setattr(datasets, "MNIST", MNIST)
    (tmp_path / "here").mkdir()
    section = DIGITS | {
        "data": {"name": "torchvision:MNIST", "args": {"root": "here", "validation": 0.25}}
    }
    found = build(section, tmp_path).data
    assert [len(part) for part in (found.train, found.validation, found.test)] == [30, 10, 10]
    assert found.test.root == str(tmp_path / "here")
    assert found.train[0][0].shape == (1, 28, 28) and found.train[0][0].dtype == torch.float32


def test_torchvision_data_with_split_names(tmp_path, monkeypatch):
    from torchvision import datasets

    class SVHN(torch.utils.data.Dataset):
        def __init__(self, root, split="train", transform=None):
            if split not in ("train", "test"):
                raise ValueError(
                    f"Unknown value '{split}' for argument split. Valid values are train, test."
                )
            self.count, self.transform = {"train": 20, "test": 5}[split], transform

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            return self.transform(Image.new("RGB", (8, 8), (index, 2, 3))), 0

    monkeypatch.setattr(datasets, "SVHN", SVHN)
    found = build(
        DIGITS | {"data": {"name": "torchvision:SVHN", "args": {"root": "."}}}, tmp_path
    ).data
    assert [len(part) for part in (found.train, found.validation, found.test)] == [18, 2, 5]


def test_losses_read_the_main_output_and_custom_ones_the_raw():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    wanted = functional.cross_entropy(logits, labels)
    for given in ("cross_entropy", functional.cross_entropy, nn.CrossEntropyLoss()):
        assert losses.resolve(given)({"logits": logits}, labels) == wanted
    assert (
        losses.resolve(lambda output, target: output["logits"].sum())({"logits": logits}, labels)
        == logits.sum()
    )
    with pytest.raises(InputError, match="unknown loss"):
        losses.resolve("softmax")


def test_the_metric_named_loss_is_the_tasks_loss():
    found = tasks.metric("loss", functional.mse_loss)
    assert found.goal == "minimize"
    assert found.function(torch.ones(4), torch.zeros(4)) == 1.0


def test_the_schema_and_the_zoo_know_the_same_names():
    goals = plugins.import_reference("autoprune.zoo.metrics:GOALS")
    assert goals == values.METRICS
    for name in values.LOSSES:
        assert callable(losses.resolve(name))


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("wrapped", ["safetensors", "plain", "state_dict", "parallel", "old"])
def test_weights_load_bit_for_bit(tmp_path, wrapped):
    source, target = small(), small()
    state = source.state_dict()
    path = tmp_path / ("weights.safetensors" if wrapped == "safetensors" else "weights.pt")
    if wrapped == "safetensors":
        save_file(dict(state), path)
    elif wrapped == "old":
        torch.save(
            {name: tensor for name, tensor in state.items() if "num_batches" not in name}, path
        )
    else:
        prefix = "module." if wrapped == "parallel" else ""
        renamed = {prefix + name: tensor for name, tensor in state.items()}
        torch.save(renamed if wrapped == "plain" else {"state_dict": renamed, "epoch": 3}, path)
    load_weights(target, path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in target.state_dict().items())


def test_weights_that_do_not_fit_are_all_listed_and_nothing_is_loaded(tmp_path):
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = small().state_dict()
    state["0.weight"] = torch.zeros(5, 3)
    state["3.bias"] = state.pop("2.bias")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelError) as caught:
        load_weights(model, tmp_path / "weights.pt")
    for part in ("missing: 2.bias", "not expected: 3.bias", "0.weight (file (5, 3), model (4, 3))"):
        assert part in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = small().state_dict()
    state["0.bias"][1] = float("nan")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"not finite: 0\.bias"):
        load_weights(small(), tmp_path / "weights.pt")


@pytest.mark.parametrize("content", ["pickled", "torn", "text", "list"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_that_hold_no_weights_are_refused_and_never_run(tmp_path, content, suffix):
    path = tmp_path / f"weights.{suffix}"
    if content == "pickled":
        torch.save(small(), path)
    elif content == "list":
        torch.save([1, 2], path)
    elif content == "text":
        path.write_text("not weights at all")
    else:
        save_file(small().state_dict(), path) if suffix == "safetensors" else torch.save(
            small().state_dict(), path
        )
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="weights"):
        load_weights(small(), path)


def test_given_data_may_be_a_mapping_or_data():
    parts = {
        part: TensorDataset(torch.ones(3, 2), torch.zeros(3)) for part in ("train", "validation")
    }
    assert isinstance(data.check_data(parts), Data) and data.check_data(Data(**parts)).test is None


def test_the_sources_of_a_module_leave_out_what_has_no_file(tmp_path, monkeypatch):
    from autoprune.training.references import sources

    (tmp_path / "from_the_root.py").write_text(
        "import sys\nimport _imp\n\ndef build():\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("from_the_root")
    assert "from_the_root.py" in {
        path.name for path in sources(["from_the_root:build"], [Path("/")])
    }
