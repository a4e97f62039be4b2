"""The dense model: taken as it is where it knows its task, trained where it guesses or where that is asked for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from small_search import TASK, Listens, build, quick, study
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from autoprune.run import Run
from autoprune.searching.commands import check
from autoprune.searching.evaluating import baseline
from autoprune.searching.evaluating.preparation import prepare
from autoprune.task import Data, Metric, Recipe, Task
from autoprune.training.chance import guesses
from autoprune.training.loop import train

__all__ = ["quick"]  # a fixture that every test here uses


@dataclass(frozen=True)
class Case:
    """Inputs with targets that can be learnt from them, a net, a loss."""

    build: Callable[[], nn.Module]
    data: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Any, Any], Tensor]


def perceptron(outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs))


def classes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=generator)
    return x, x[:, :4].argmax(dim=1)


def rare(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, 0] > 1.5).long()  # one of fifteen


def values(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=generator)
    return x, 5 + 2 * x[:, :1]


def tokens(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randint(0, 8, (count, 5), generator=generator)
    return x, (x + 1) % 8


class Next(nn.Module):
    """(N, tokens) -> logits (N, 8, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x)).transpose(1, 2)


class Own(nn.Module):
    """Gives its own loss, as models of Hugging Face do: the target is among the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.cross_entropy(self.layer(x), x[:, :4].argmax(dim=1)).view(1)


def constant() -> nn.Module:
    """Its last layer starts from zero, so that every output is the same."""
    made = perceptron(4)()
    nn.init.zeros_(made[2].weight)  # type: ignore[index]
    nn.init.zeros_(made[2].bias)  # type: ignore[index]
    return made


CASES = {
    "classes": Case(perceptron(4), classes, functional.cross_entropy),
    "rare class": Case(perceptron(2), rare, functional.cross_entropy),
    "regression": Case(perceptron(1), values, functional.mse_loss),
    "tokens": Case(Next, tokens, functional.cross_entropy),
    "a loss of its own": Case(Own, classes, lambda output, target: output.mean()),
    "starts from zero": Case(constant, classes, functional.cross_entropy),
}


def task_of(case: Case) -> Task:
    generator = torch.Generator().manual_seed(3)
    data = Data(*(TensorDataset(*case.data(count, generator)) for count in (600, 300)))
    metric = Metric("none", lambda outputs, targets: 0.0)  # what the metric says has no part in it
    return Task(
        case.build, data, case.loss, metric, Recipe(epochs=6, learning_rate=0.03, device="cpu")
    )


@pytest.mark.promise("pretrained")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_net_as_drawn_guesses_and_one_that_has_learnt_does_not(case: Case) -> None:
    task = task_of(case)
    for seed in range(3):
        torch.manual_seed(seed)
        model = task.build()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert guesses(model, task)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        train(model, task, task.training, seed=0)
        assert not guesses(model, task)


def test_validation_data_in_the_order_of_its_classes_is_no_trap() -> None:
    task = task_of(CASES["classes"])
    x, y = task.data.validation.tensors
    sorted_ = replace(
        task, data=replace(task.data, validation=TensorDataset(x[y.argsort()], y[y.argsort()]))
    )
    model = task.build()
    assert guesses(model, sorted_)
    train(model, task, task.training, seed=0)
    assert not guesses(model, sorted_)


def pretrained() -> nn.Module:
    torch.manual_seed(0)
    model = build()
    train(model, TASK, TASK.training, seed=0)
    return model


@pytest.fixture(scope="module")
def learnt() -> nn.Module:
    return pretrained()


def established(
    task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[str], nn.Module]:
    """What a search trained and noted before its first trial, in this order, and the dense model."""
    events, trained, listener = list[str](), baseline.train, Listens()

    def noted(*given: Any, **options: Any) -> None:
        events.append(f"training after {len(listener.notes)} notes")
        trained(*given, **options)

    monkeypatch.setattr(baseline, "train", noted)
    asked = study(task=task)
    ready = prepare(asked)
    baseline.establish(asked, ready, Run(folder), listener)
    return events, listener.notes, ready.model


@pytest.mark.promise("pretrained")
@pytest.mark.parametrize(
    ("mode", "knows", "trains", "says"),
    [
        ("auto", True, False, "comes with weights that know the task and is taken as it is"),
        ("auto", False, True, "guesses as yet, so it is trained first, 3 epochs"),
        ("always", True, True, "trained first, 3 epochs, as task.training.baseline says"),
        ("never", True, False, "taken as it is, as task.training.baseline says"),
        ("never", False, False, "taken as it is, as task.training.baseline says"),
    ],
)
def test_a_baseline_is_trained_where_it_guesses_or_that_is_asked_for(
    mode: Literal["auto", "always", "never"],
    knows: bool,
    trains: bool,
    says: str,
    learnt: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = replace(TASK, build=(lambda: copy.deepcopy(learnt)) if knows else build, baseline=mode)
    assert says in check(study(task=task)).origin
    events, notes, model = established(task, tmp_path, monkeypatch)
    assert events == (["training after 1 notes"] if trains else [])
    assert says in notes[0]
    if knows and not trains:
        wanted = learnt.state_dict()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    warned = [note for note in notes if note.startswith("WARNING: the dense model guesses")]
    assert bool(warned) == (mode == "never" and not knows)
    kept = check(study(task=task)).seconds
    assert kept is not None and kept > 0
