"""What recovery starts from and how it trains: repaired layers, cuts in iterations, masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_search import TASK, Listens, study
from torch import Tensor, nn

from autoprune.plan import Choice, Plan
from autoprune.pruning.pruned import apply
from autoprune.pruning.repair import Reference
from autoprune.score import Score
from autoprune.searching import evaluate
from autoprune.searching.evaluate import Evaluator
from autoprune.searching.preparation import importance, prepare
from autoprune.task import Recipe, Task


def evaluator(recovery: Recipe, *, frozen: str = "", listener: Listens | None = None) -> Evaluator:
    asked = study(recovery=recovery)
    ready = prepare(asked)
    for name, parameter in ready.model.named_parameters():
        parameter.requires_grad_(name != frozen)
    scores = importance(asked, ready.model, ready.coupling)
    return Evaluator(asked, ready, Score(1.0, flops=10**9), scores, listener or Listens())


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The tensors of every model that a training begins with."""
    found, train = list[dict[str, Tensor]](), evaluate.train

    def noted(model: nn.Module, *given: Any, **options: Any) -> None:
        found.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        train(model, *given, **options)

    monkeypatch.setattr(evaluate, "train", noted)
    return found


RECIPE: dict[str, Any] = {"batch_size": 25, "learning_rate": 0.01}
CUT = Plan({"0:units": Choice("structured", 0.5)})


def test_training_starts_from_repaired_layers_or_as_cut(starts: list[dict[str, Tensor]]) -> None:
    for repair in (True, False):
        given = evaluator(Recipe(epochs=1, repair=repair, **RECIPE))
        model, coupling = given.prepared.model, given.prepared.coupling
        assert given(CUT, 1).candidate.stage == "trained"
        pruned = apply(model, coupling, CUT, given.importance)
        repaired = Reference(model, TASK.batches("train", seed=0)).repair(pruned.model, pruned.cuts).state_dict()
        wanted, other = pruned.model.state_dict(), repaired
        if repair:
            wanted, other = other, wanted
        begun = starts[-1]
        assert all(torch.equal(begun[name], tensor) for name, tensor in wanted.items())
        assert not torch.allclose(begun["3.weight"], other["3.weight"])  # what the cut layer feeds


def test_what_is_frozen_is_not_repaired(starts: list[dict[str, Tensor]]) -> None:
    given = evaluator(Recipe(epochs=1, repair=True, **RECIPE), frozen="3.weight")
    done = given(CUT, 1)
    cut = apply(given.prepared.model, given.prepared.coupling, CUT, given.importance).model.state_dict()
    assert done.model is not None and torch.equal(done.model.state_dict()["3.weight"], cut["3.weight"])
    assert torch.equal(starts[-1]["3.weight"], cut["3.weight"])
    assert not torch.equal(starts[-1]["3.bias"], cut["3.bias"])


def test_weights_that_are_masked_stay_zero_when_repaired(starts: list[dict[str, Tensor]]) -> None:
    given = evaluator(Recipe(epochs=1, repair=True, **RECIPE))
    plan = Plan({"0:units": Choice("structured", 0.5), "3:weights": Choice("weight", 0.5)})
    given(plan, 1)
    begun, cut = starts[-1]["3.weight"], apply(given.prepared.model, given.prepared.coupling, plan, given.importance)
    masked = cut.model.state_dict()["3.weight"] == 0
    assert int(masked.sum()) == masked.numel() // 2
    assert torch.equal(begun == 0, masked)


def test_without_epochs_the_repaired_model_is_what_comes_out() -> None:
    given = evaluator(Recipe(epochs=0, repair=True, **RECIPE))
    done = given(CUT, 1)
    assert done.candidate.stage == "trained" and done.model is not None
    bare = evaluator(Recipe(epochs=0, **RECIPE))(CUT, 1)
    assert done.candidate.score.loss is not None and bare.candidate.score.loss is not None
    assert done.candidate.score.loss != bare.candidate.score.loss


@pytest.mark.parametrize(
    ("iterations", "epochs", "choices", "parts"),
    [
        (1, 6, {"0:units": "structured"}, [6]),
        (2, 6, {"0:units": "structured"}, [2, 4]),
        (3, 6, {"0:units": "structured", "3:weights": "sparse"}, [1, 1, 4]),
        (2, 2, {"0:units": "structured"}, [2]),  # too few to part
        (2, 6, {"3:weights": "weight"}, [6]),  # no units go
    ],
)
def test_units_go_in_iterations_with_training_between(
    monkeypatch: pytest.MonkeyPatch, iterations: int, epochs: int, choices: dict[str, str], parts: list[int]
) -> None:
    train, seen, shares = evaluate.train, list[tuple[int, int]](), list[float]()

    def noted(model: nn.Module, task: Task, recipe: Recipe, **options: Any) -> None:
        seen.append((recipe.epochs, model[0].out_channels))  # type: ignore[index, arg-type]
        train(model, task, recipe, **options)

    monkeypatch.setattr(evaluate, "train", noted)
    listener = Listens()
    monkeypatch.setattr(listener, "progress", shares.append)
    given = evaluator(Recipe(epochs=epochs, iterations=iterations, **RECIPE), listener=listener)
    done = given(Plan({key: Choice(name, 0.5) for key, name in choices.items()}), 1)
    assert done.candidate.stage == "trained" and done.model is not None
    assert [each for each, _ in seen] == parts
    widths = [width for _, width in seen]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == len(widths)
    assert widths[-1] == (4 if "0:units" in choices else 8) == done.model[0].out_channels  # type: ignore[index]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) == 6 * epochs
    if "3:weights" in choices:
        assert int((done.model[3].weight == 0).sum()) == done.model[3].weight.numel() // 2  # type: ignore[index, union-attr, arg-type]
