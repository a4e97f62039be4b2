"""What `autoprune.prune` and `search` say to a Python caller: clear errors, groups left uncut, shares that differ."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from models import member
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import autoprune
from autoprune.errors import InputError, ModelError, PlanError, StudyError
from autoprune.plan import Choice, Plan

X, Y = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(40).long()


def network() -> nn.Sequential:
    """A batch norm after the first of two convolutions, and a hidden linear layer."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(256, 20), nn.ReLU(), nn.Linear(20, 4)
    ).eval()


def widths(model: nn.Module) -> list[int]:
    return [model[0].out_channels, model[3].out_channels, model[6].out_features]  # type: ignore[index]


def test_a_group_that_a_criterion_cannot_rank_is_left_uncut_and_named() -> None:
    with pytest.warns(
        UserWarning, match=r"3:units is left uncut: .*16 of 16 units have none\n.*6:units"
    ) as told:
        smaller = autoprune.prune(network(), X[:2], 0.5, criterion="batchnorm")
    assert widths(smaller) == [8, 16, 20] and len(told) == 1 and told[0].filename == __file__
    with pytest.raises(PlanError, match="nothing to rank it by"):
        autoprune.prune(
            network(), X[:2], {"6": {"technique": "neuron", "ratio": 0.5, "criterion": "batchnorm"}}
        )
    with pytest.raises(PlanError, match="nothing can be cut: 0:units"):
        autoprune.prune(
            nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)),
            torch.randn(2, 4),
            0.5,
            criterion="batchnorm",
        )
    both = {"*": {"technique": "structured", "ratio": 0.5, "criterion": "batchnorm"}}
    with pytest.warns(UserWarning, match="3:units is left uncut"):
        assert widths(autoprune.prune(network(), X[:2], both)) == [8, 16, 20]


def test_a_generator_of_batches_is_read_once_and_serves_criterion_and_repair() -> None:
    pairs = [(X[at : at + 10], Y[at : at + 10]) for at in range(0, 40, 10)]
    read: list[int] = []

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            read.append(1)
            yield pairs[(len(read) - 1) % 4]

    def mended(batches: Any) -> nn.Module:
        return autoprune.prune(
            network(),
            X[:2],
            0.5,
            criterion="taylor",
            loss="cross_entropy",
            batches=batches,
            repair=True,
        )

    once, again = mended(iter(pairs)), mended(pairs)
    assert all(
        torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True)
    )
    mended(endless())
    assert len(read) == 52  # as many as hold 512 inputs


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.LazyLinear(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x.flatten(1)))


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (X, network(), "swapped"),
        (Lazy, X, r"the class Lazy; give an instance of it, as in Lazy\(\)"),
        (Lazy(), X, r"no weights yet \(hidden.weight, hidden.bias\)"),
        ("net", X, "must be a torch.nn.Module, got a str"),
        (
            torch.compile(network(), backend="eager"),
            X,
            "the model is compiled .*prune the original",
        ),
        (nn.Sequential(torch.compile(network(), backend="eager")), X, "the module '0' is compiled"),
    ],
    ids=["swapped", "class", "lazy", "text", "compiled", "compiled inside"],
)
def test_what_is_no_model_to_prune_is_refused(model: Any, inputs: Any, message: str) -> None:
    for call in (
        lambda: autoprune.prune(model, inputs, 0.5),
        lambda: autoprune.groups(model, inputs),
    ):
        with pytest.raises(ModelError, match=message):
            call()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_models_are_refused() -> None:
    for make in (torch.jit.script, lambda model: torch.jit.trace(model, X[:2])):
        with pytest.raises(ModelError, match="scripted or traced"):
            autoprune.prune(make(network()), X[:2], 0.5)


@pytest.mark.parametrize("plan", ["0.5", None, torch.tensor(0.5), [0.5]])
def test_what_is_no_plan_is_refused_with_what_came(plan: Any) -> None:
    with pytest.raises(
        PlanError, match=rf"plan is a ratio.*a Plan.*got .*\({type(plan).__name__}\)"
    ):
        autoprune.prune(network(), X[:2], plan)


def test_any_kind_of_number_is_a_ratio() -> None:
    assert widths(autoprune.prune(network(), X[:2], numpy.float32(0.5))) == [8, 8, 10]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"multiple_of": 0}, "multiple_of is a whole number of at least 1; got 0"),
        ({"multiple_of": "8"}, "got '8'"),
        ({"multiple_of": -1}, "got -1"),
        ({"batches": 3}, "data loader, or a list of .*got 3"),
        ({"batches": (X, Y)}, r"single batch: wrap it in a list, as in batches=\[\(x, y\)\]"),
        ({"batches": [X, Y]}, "single batch"),
        ({"batches": X}, "wrap a single batch"),
        ({"batches": {"x": X, "labels": Y}}, "wrap a single batch"),
        ({"batches": TensorDataset(X, Y)}, r"DataLoader\(data_set"),
        ({"batches": [(X, Y)], "adapter": 3}, "adapter must be a function; got 3"),
        ({"batches": [(X, Y)], "loss": 3}, "loss must be a function; got 3"),
        ({"criterion": None}, "criterion is a name, as in 'l1'; got None"),
        ({"criterion": "lamp"}, "a ratio cuts units, and lamp ranks single weights; give patterns"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_arguments_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        autoprune.prune(network(), X[:2], 0.5, **given)


def test_the_pattern_that_the_lamp_message_gives_works() -> None:
    pattern = {"*": {"technique": "weight", "ratio": 0.5, "criterion": "lamp"}}
    smaller = autoprune.prune(network(), X[:2], pattern)
    assert int((smaller[6].weight == 0).sum()) == 256 * 20 // 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trials": 0}, "^argument trials: must be at least 1; got 0"),
        (
            {"space": {"default": {"techniqes": []}}},
            "^argument space, at 'default.techniqes': unknown key",
        ),
        (
            {"space": {"layers": {"conv.*": {"techniques": ["weight"]}}}},
            "^argument space, at 'layers.conv.*': the pat",
        ),
        ({"budget": {"latensy": "50%"}}, "^argument budget, at 'latensy'"),
        ({"budget": 3}, "^budget is a dictionary"),
        ({"objectives": "latency"}, "^objectives is a list of names; got 'latency'"),
        ({"formats": ["foo"]}, "^argument formats: unknown format 'foo'"),
        ({"metric": "accurcy"}, "^argument metric: unknown metric 'accurcy'"),
        (
            {"metric": lambda outputs, targets: 0.0},
            "^argument goal: a metric of your own needs its goal",
        ),
        ({"train": None}, "^there is no train data"),
        ({"train": (X, Y)}, r"^the train data is a tuple of tensors; give TensorDataset"),
        ({"model": Lazy}, "^model is the class Lazy"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_errors_of_a_search_name_the_argument(
    given: dict[str, Any], message: str, tmp_path: Any
) -> None:
    data = TensorDataset(X, Y)
    arguments = {
        "model": network(),
        "train": data,
        "validation": data,
        "out": tmp_path / "run",
        "trials": 1,
    } | given
    with pytest.raises(InputError, match=message):
        autoprune.search(**arguments)


def test_errors_of_a_target_name_the_argument() -> None:
    with pytest.raises(StudyError, match=r"^argument target, at 'runtim': unknown key"):
        autoprune.measure(network(), X[:2], {"runtim": "eager"})


def test_a_share_far_from_the_ratio_asked_for_is_told() -> None:
    model, inputs = member("group_norm").make()
    (group,) = [each for each in autoprune.groups(model, inputs) if each.cells > 1]
    cell = group.size // group.cells
    ratio = 0.45 / cell  # less than half a unit of each cell: none goes
    said = rf"{group.key}: asked {ratio:.2f}, removed 0.00 \(of {group.size} units in {group.cells} cells"
    with pytest.warns(UserWarning, match=said):
        autoprune.prune(model, inputs, Plan({group.key: Choice("structured", ratio)}))
    with pytest.warns(
        UserWarning, match=r"6:weights: asked 0.10, removed 0.00 \(n_of_m removes in steps of 1/4\)"
    ):
        autoprune.prune(network(), X[:2], {"6": {"technique": "n_of_m", "ratio": 0.1}})
    with pytest.warns(UserWarning, match=r"0:units: asked 0.30, removed 0.50 \(of 16 units\)"):
        autoprune.prune(network(), X[:2], 0.3, multiple_of=8)


def test_nothing_is_said_where_the_shares_are_those_asked_for() -> None:
    model = network()
    with torch.no_grad():
        model[6].weight[:, :200] = 0.0  # zeros that were there before are not the plan's
    plan = {
        "0": {"technique": "structured", "ratio": 0.25},
        "6": {"technique": "weight", "ratio": 0.5},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoprune.prune(model, X[:2], plan)
        autoprune.prune(model, X[:2], 0.5, batches=DataLoader(TensorDataset(X, Y), 10), repair=True)
