"""What recovery starts from and how it trains: repaired layers, cuts in iterations, masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_search import TASK, Listens, images, quick, study
from torch import Tensor, nn
from torch.utils.data import DataLoader

from autoprune.plan import Choice, Plan
from autoprune.pruning.pruner import Pruned
from autoprune.pruning.reconstruction.reconstruct import Reference
from autoprune.score import Score, better
from autoprune.searching.evaluating import recovery as recovering
from autoprune.searching.evaluating.evaluator import Evaluator
from autoprune.searching.evaluating.preparation import prepare
from autoprune.task import Recipe, Task
from autoprune.training import loop

__all__ = ["quick"]  # a fixture that every test here uses


def evaluator(
    recovery: Recipe, *, frozen: str = "", listener: Listens | None = None, task: Task = TASK
) -> Evaluator:
    asked = study(recovery=recovery, task=task)
    ready = prepare(asked)
    for name, parameter in ready.model.named_parameters():
        parameter.requires_grad_(name != frozen)
    pruner = ready.pruner(asked)
    return Evaluator(asked, ready, Score(1.0, flops=10**9), pruner, listener or Listens())


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The tensors of every model that a training begins with."""
    found, train = list[dict[str, Tensor]](), recovering.train

    def noted(model: nn.Module, *given: Any, **options: Any) -> None:
        found.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        train(model, *given, **options)

    monkeypatch.setattr(recovering, "train", noted)
    return found


RECIPE: dict[str, Any] = {"batch_size": 25, "learning_rate": 0.01}
CUT = Plan({"0:units": Choice("structured", 0.5)})


def test_training_starts_from_repaired_layers_or_as_cut(starts: list[dict[str, Tensor]]) -> None:
    for repair in (True, False):
        given = evaluator(Recipe(epochs=1, repair=repair, **RECIPE))
        model = given.prepared.model
        assert given(CUT, 1).candidate.stage == "trained"
        pruned = given.pruner.apply(CUT)
        repaired = (
            Reference(model, TASK.batches("train", seed=0))
            .repair(pruned.model, pruned.cuts)
            .state_dict()
        )
        wanted, other = pruned.model.state_dict(), repaired
        if repair:
            wanted, other = other, wanted
        begun = starts[-1]
        assert all(torch.equal(begun[name], tensor) for name, tensor in wanted.items())
        assert not torch.allclose(begun["3.weight"], other["3.weight"])  # what the cut layer feeds


@pytest.mark.parametrize("frozen", ["3.weight", "3.bias"])
def test_a_layer_that_is_frozen_in_part_is_not_repaired(
    starts: list[dict[str, Tensor]], frozen: str
) -> None:
    given = evaluator(Recipe(epochs=1, repair=True, **RECIPE), frozen=frozen)
    done = given(CUT, 1)
    cut = given.pruner.apply(CUT).model.state_dict()
    assert done.model is not None and torch.equal(done.model.state_dict()[frozen], cut[frozen])
    assert all(torch.equal(starts[-1][name], cut[name]) for name in ("3.weight", "3.bias"))
    assert not torch.equal(starts[-1]["6.weight"], cut["6.weight"])


def test_weights_that_are_masked_stay_zero_when_repaired(starts: list[dict[str, Tensor]]) -> None:
    given = evaluator(Recipe(epochs=1, repair=True, **RECIPE))
    plan = Plan({"0:units": Choice("structured", 0.5), "3:weights": Choice("weight", 0.5)})
    given(plan, 1)
    begun, cut = (
        starts[-1]["3.weight"],
        given.pruner.apply(plan),
    )
    masked = cut.model.state_dict()["3.weight"] == 0
    assert int(masked.sum()) == masked.numel() // 2
    assert torch.equal(begun == 0, masked)


@pytest.mark.parametrize(
    "plan",
    [CUT, Plan({"3:weights": Choice("sparse", 0.8)}), Plan({"3:weights": Choice("weight", 0.8)})],
)
def test_without_epochs_the_repaired_model_is_what_comes_out(plan: Plan) -> None:
    done = evaluator(Recipe(epochs=0, repair=True, **RECIPE))(plan, 1)
    given = evaluator(Recipe(epochs=0, **RECIPE))
    model = given.prepared.model
    pruned = given.pruner.apply(plan)
    reference = Reference(model, TASK.batches("train", seed=0))
    if "sparse" in str(plan.to_json()):
        pruned = given.pruner.apply(plan, gradual=True)
        pruned.fill(reference.repair)
        wanted = pruned.finish().state_dict()
    else:
        wanted = reference.repair(pruned.finish(), pruned.cuts).state_dict()
    assert done.candidate.stage == "trained" and done.model is not None
    weights = {name: tensor for name, tensor in done.model.state_dict().items() if "weight" in name}
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights.items())
    bare = given(plan, 1).model
    assert bare is not None and not torch.equal(bare.state_dict()["3.weight"], weights["3.weight"])


def test_too_little_data_to_repair_on_is_said_and_training_starts_as_cut(
    starts: list[dict[str, Tensor]],
) -> None:
    listener = Listens()
    few = replace(TASK, data=replace(TASK.data, train=images(1, 0)))
    given = evaluator(
        Recipe(epochs=2, repair=True, distill=0.5, **RECIPE), listener=listener, task=few
    )
    plan = Plan({"3:weights": Choice("weight", 0.5)})
    given(plan, 1), given(plan, 2)
    assert [note for note in listener.notes if "reconstruct" in note] == [
        "layers are not reconstructed after a cut: "
        "a reconstruction needs at least 2 inputs, one of them to judge by, better some hundred; "
        "got 1"
    ]
    cut = given.pruner.apply(plan).model.state_dict()
    assert all(torch.equal(starts[-1][name], tensor) for name, tensor in cut.items())


def test_a_loader_that_shuffles_by_the_global_state_repairs_alike() -> None:
    shuffled = replace(
        TASK, data=replace(TASK.data, train=DataLoader(TASK.data.train, 25, shuffle=True))
    )
    found = []
    for seed in (1, 2):
        given = evaluator(Recipe(epochs=0, repair=True, **RECIPE), task=shuffled)
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        done = given(Plan({"0:units": Choice("structured", 0.5, "taylor")}), 1)
        assert done.model is not None and torch.equal(torch.get_rng_state(), state)
        found.append(done.model.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_only_the_first_of_several_cuts_is_repaired(
    monkeypatch: pytest.MonkeyPatch, starts: list[dict[str, Tensor]]
) -> None:
    solved = list[int]()
    fill = Pruned.fill

    def noted(pruned: Pruned, *given: Any, **options: Any) -> None:
        solved.append(len(starts))
        fill(pruned, *given, **options)

    given = evaluator(Recipe(epochs=6, repair=True, iterations=2, **RECIPE))
    monkeypatch.setattr(
        recovering.Recovery, "untrained_model", lambda self, plan, repair: self.model
    )
    monkeypatch.setattr(Pruned, "fill", noted)
    assert given(CUT, 1).candidate.stage == "trained"
    assert (solved, len(starts)) == ([0], 2)


@pytest.mark.parametrize(
    ("iterations", "epochs", "choices", "parts"),
    [
        (1, 6, {"0:units": "structured"}, [6]),
        (2, 6, {"0:units": "structured"}, [2, 4]),
        (3, 6, {"0:units": "structured", "3:weights": "sparse"}, [1, 1, 4]),
        (2, 2, {"0:units": "structured"}, [2]),  # too few to part
        (2, 6, {"3:weights": "weight"}, [2, 4]),
        (2, 6, {"3:weights": "sparse"}, [2, 4]),
        (2, 6, {"3:weights": "sparse(end=0.5)"}, [6]),  # a schedule of its own
    ],
)
def test_units_go_in_iterations_with_training_between(
    monkeypatch: pytest.MonkeyPatch,
    iterations: int,
    epochs: int,
    choices: dict[str, str],
    parts: list[int],
) -> None:
    train, seen, shares = recovering.train, list[tuple[int, int]](), list[float]()

    def noted(model: nn.Module, task: Task, recipe: Recipe, **options: Any) -> None:
        seen.append((recipe.epochs, model[0].out_channels))  # type: ignore[index, arg-type]
        train(model, task, recipe, **options)

    monkeypatch.setattr(recovering, "train", noted)
    listener = Listens()
    monkeypatch.setattr(listener, "progress", shares.append)
    given = evaluator(Recipe(epochs=epochs, iterations=iterations, **RECIPE), listener=listener)
    done = given(Plan({key: Choice(name, 0.5) for key, name in choices.items()}), 1)
    assert done.candidate.stage == "trained" and done.model is not None
    assert [each for each, _ in seen] == parts
    widths = [width for _, width in seen]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == (len(widths) if "0:units" in choices else 1)
    assert widths[-1] == (4 if "0:units" in choices else 8) == done.model[0].out_channels  # type: ignore[index]
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) == 6 * epochs
    if "3:weights" in choices:
        assert int((done.model[3].weight == 0).sum()) == done.model[3].weight.numel() // 2  # type: ignore[index, union-attr, arg-type]


PLANS = {
    "structured": CUT,
    "weight": Plan({"3:weights": Choice("weight", 0.8)}),
    "sparse": Plan({"3:weights": Choice("sparse", 0.8)}),
    "gradual": Plan({"3:weights": Choice("sparse(end=0.5, initial=0.5)", 0.8)}),
    "n_of_m": Plan({"3:weights": Choice("n_of_m", 0.5)}),
    "mixed": Plan({"0:units": Choice("structured", 0.25), "3:weights": Choice("sparse", 0.5)}),
}


@pytest.mark.promise("reconstruction")
@pytest.mark.parametrize("rate", [1e-3, 2.0], ids=["trains", "destroys"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_trained_plan_is_never_worse_than_the_same_plan_untrained(
    plan: Plan, rate: float
) -> None:
    listener = Listens()
    given = evaluator(
        Recipe(epochs=2, repair=True, batch_size=25, learning_rate=rate), listener=listener
    )
    before = loop.evaluate(given.recovery.untrained_model(plan), TASK, "validation", error=True)
    done = given(plan, 1)
    assert done.model is not None
    after = loop.evaluate(done.model, TASK, "validation")
    score = done.candidate.score
    assert (score.metric, score.loss) == (after.metric, after.loss)
    assert not better(
        Score(metric=before.metric, loss=before.loss, metric_error=before.error), score, "maximize"
    )
    told = [note for note in listener.notes if "kept as it was before, reconstructed" in note]
    assert (score.weights == "repaired") == (len(told) == 1)
    assert score.weights == "trained" or after == replace(before, error=None)


@pytest.mark.promise("reconstruction")
@pytest.mark.parametrize("ratio", [0.8, 0.9])
def test_untrained_sparse_is_not_weight_by_another_name(ratio: float) -> None:
    given = evaluator(Recipe(epochs=0, repair=True, **RECIPE))
    plans = {name: Plan({"3:weights": Choice(name, ratio)}) for name in ("weight", "sparse")}
    models = {name: given.recovery.untrained_model(plan) for name, plan in plans.items()}
    zeros = {name: model[3].weight == 0 for name, model in models.items()}  # type: ignore[index]
    assert int(zeros["sparse"].sum()) == int(zeros["weight"].sum()) == round(8 * 16 * 9 * ratio)
    assert not torch.equal(zeros["sparse"], zeros["weight"])
    inputs, dense = TASK.data.validation.tensors[0], given.prepared.model
    with torch.no_grad():
        away = {
            name: float((model(inputs) - dense(inputs)).square().mean())
            for name, model in models.items()
        }
    assert away["sparse"] < 0.98 * away["weight"]


@pytest.mark.promise("options")
@pytest.mark.parametrize(("epochs", "name"), [(2, "structured"), (6, "sparse(end=0.5)")])
def test_iterations_that_cannot_be_are_told(epochs: int, name: str) -> None:
    listener = Listens()
    key = "0:units" if name == "structured" else "3:weights"
    evaluator(Recipe(epochs=epochs, iterations=2, **RECIPE), listener=listener)(
        Plan({key: Choice(name, 0.5)}), 7
    )
    assert [note for note in listener.notes if "iterations" in note] == [
        "trial 7 is cut at once, not in 2 iterations: "
        + (
            "2 epochs do not part"
            if epochs == 2
            else "its units, blocks or gradual masks go in one piece"
        )
    ]


def shallower(given: Evaluator, plan: Plan) -> Pruned:
    """A cut that another budget has trained, made up: the dense weights, but of what the plan cuts."""
    return given.pruner.apply(plan)


@pytest.mark.promise("budgets")
def test_a_deeper_plan_starts_from_a_trained_shallower_one_where_that_is_the_better_start(
    starts: list[dict[str, Tensor]],
) -> None:
    listener = Listens()
    given = evaluator(Recipe(epochs=2, repair=True, **RECIPE), listener=listener)
    gentle, deep = (Plan({"0:units": Choice("structured", ratio)}) for ratio in (0.25, 0.75))
    trained = shallower(given, gentle)
    loop.train(trained.model, TASK, Recipe(epochs=15, **RECIPE), seed=0)
    trained.model.eval()
    given(deep, 1, trained)
    left = given.pruner.apply(deep, after=trained).model.state_dict()
    assert all(torch.equal(starts[-1][name], left[name]) for name in left if "weight" in name)
    assert any("trained model of a looser budget" in note for note in listener.notes)
    assert not any("looser" in note for note in _notes_beside_a_worse_model(starts, deep, gentle))


def _notes_beside_a_worse_model(
    starts: list[dict[str, Tensor]], deep: Plan, gentle: Plan
) -> list[str]:
    """What is said where the dense model is trained and the shallower one is noise; the start is as without it."""
    listener = Listens()
    given = evaluator(Recipe(epochs=2, repair=True, **RECIPE), listener=listener)
    loop.train(given.prepared.model, TASK, Recipe(epochs=15, **RECIPE), seed=0)
    given.prepared.model.eval()
    noise = shallower(given, gentle)
    with torch.no_grad():
        for parameter in noise.model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    given(deep, 2, noise), given(deep, 3)
    assert all(torch.equal(starts[-2][name], starts[-1][name]) for name in starts[-1])
    return listener.notes


@pytest.mark.promise("budgets")
def test_what_has_lost_what_a_plan_keeps_is_no_start(starts: list[dict[str, Tensor]]) -> None:
    given = evaluator(Recipe(epochs=1, repair=True, **RECIPE))
    other = shallower(given, Plan({"3:units": Choice("structured", 0.5)}))
    given(CUT, 1, other), given(CUT, 2)
    assert all(torch.equal(starts[-2][name], starts[-1][name]) for name in starts[-1])
