"""Masks through training: the schedule, nesting, exact final ratio, zeros that stay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import member
from torch import nn

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruned, Pruner
from autoprune.pruning.techniques.sparse import Sparse


def prepared(
    technique: str, ratio: float = 0.8, name: str = "perceptron", **more: Choice
) -> tuple[nn.Module, Pruned]:
    model, inputs = member(name).make()
    coupling = discover(model, inputs)
    plan = Plan(
        {"0:weights": Choice(technique, ratio)}
        | {key.replace("__", ":"): choice for key, choice in more.items()}
    )
    return model, Pruner(model, coupling, Importance(model, coupling)).apply(plan, gradual=True)


def zeros(model: nn.Module, name: str = "0.weight") -> int:
    return int((dict(model.named_parameters())[name] == 0).sum())


def train(pruned: Pruned, steps: int) -> list[torch.Tensor]:
    """Patterns after every step."""
    optimizer = torch.optim.AdamW(pruned.model.parameters(), lr=0.05)
    x, patterns = torch.randn(16, 6), []
    for step in range(steps):
        optimizer.zero_grad()
        (pruned.model(x) - 1).square().mean().backward()
        optimizer.step()
        pruned.masks.step((step + 1) / steps)
        patterns.append((dict(pruned.model.named_parameters())["0.weight"] != 0).clone())
    return patterns


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("technique", ["weight", "sparse"])
def test_the_final_ratio_is_exact(technique: str, ratio: float) -> None:
    model, pruned = prepared(technique, ratio)
    train(pruned, 10)
    finished = pruned.finish()
    size = 14 * 6
    assert zeros(finished) == min(round(size * ratio), size - 1)
    assert pruned.masks.masks == []
    assert zeros(model) == 0


def test_a_gradual_mask_follows_its_schedule() -> None:
    _, pruned = prepared("sparse(end=0.7)")
    assert zeros(pruned.model) == 0
    patterns = train(pruned, 20)
    for step, pattern in enumerate(patterns):
        assert int((~pattern).sum()) == round(84 * 0.8 * Sparse(end=0.7).share((step + 1) / 20))
    counts = [int(pattern.sum()) for pattern in patterns]
    assert counts == sorted(counts, reverse=True)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    st.floats(0, 0.4),
    st.floats(0.5, 1),
    st.floats(0, 1),
    st.floats(0.5, 5),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_share_of_a_schedule_rises_to_one(
    begin: float, end: float, initial: float, power: float, first: float, second: float
) -> None:
    sparse = Sparse(begin, end, initial, power)
    low, high = sorted((first, second))
    assert 0.0 <= sparse.share(low) <= sparse.share(high) <= 1.0
    assert sparse.filled(low) <= sparse.filled(high)
    assert sparse.share(begin) == pytest.approx(initial) and sparse.filled(0.0) == pytest.approx(
        initial
    )
    assert sparse.share(end) == sparse.share(1.0) == sparse.filled(1.0) == 1.0
    assert begin == 0 or sparse.share(begin * 0.99) == 0.0


def test_the_share_of_a_schedule_by_hand() -> None:
    assert Sparse(end=0.7).share(0.35) == pytest.approx(1 - 0.5**3)
    assert Sparse(0.2, 0.6, initial=0.5, power=2).share(0.4) == pytest.approx(1 - 0.5 * 0.5**2)
    assert Sparse().share(0.0) == 1.0  # full before training begins


@pytest.mark.promise("options")
@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("begin=0.8, end=0.2", "got begin=0.8 and end=0.2"),
        ("end=1.5", "shares of the training"),
        ("begin=-0.1, end=0.5", "got begin=-0.1"),
        ("initial=1.2", "a share of what goes; got 1.2"),
        ("power=0", "a power of more than 0; got 0"),
        ("start=0.1", "did you mean|settings: begin, end, initial, power"),
    ],
)
def test_a_wrong_schedule_is_bad_input(setting: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        plugins.create("technique", f"sparse({setting})")


def test_a_gradual_mask_zeroes_the_smallest_of_the_current_weights() -> None:
    _, pruned = prepared("sparse", 0.5)
    weight = dict(pruned.model.named_parameters())["0.weight"]
    with torch.no_grad():
        weight.copy_(torch.arange(1.0, 85).flip(0).view(14, 6))
    pruned.masks.step(1.0)
    assert bool((weight.flatten()[:42] != 0).all()) and zeros(pruned.model) == 42


def test_a_fixed_mask_is_there_from_the_start_and_stays() -> None:
    _, pruned = prepared("weight")
    first = dict(pruned.model.named_parameters())["0.weight"] != 0
    assert int((~first).sum()) == round(84 * 0.8)
    for pattern in train(pruned, 8):
        assert torch.equal(pattern, first)


@pytest.mark.parametrize("technique", ["weight", "sparse"])
def test_final_foretells_finish(technique: str) -> None:
    _, pruned = prepared(technique)
    train(pruned, 3)
    foretold = pruned.masks.final()["0.weight"].clone()
    assert torch.equal(dict(pruned.finish().named_parameters())["0.weight"] != 0, foretold)


def test_masks_act_on_what_the_cut_left() -> None:
    _, pruned = prepared(
        "weight", 0.5, **{"0__units": Choice("neuron", 0.5), "3__weights": Choice("weight", 0.25)}
    )
    shapes = {name: tuple(parameter.shape) for name, parameter in pruned.model.named_parameters()}
    assert shapes["0.weight"] == (7, 6) and shapes["3.weight"] == (10, 7)
    assert zeros(pruned.model) == 21 and zeros(pruned.model, "3.weight") == round(70 * 0.25)


def test_taylor_masks_use_the_gradients_cut_alike() -> None:
    model, inputs = member("perceptron").make()
    coupling = discover(model, inputs)
    gradients = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    plan = Plan(
        {"0:units": Choice("neuron", 0.5, "l1"), "3:weights": Choice("weight", 0.5, "taylor")}
    )
    pruned = Pruner(model, coupling, Importance(model, coupling, lambda need: gradients)).apply(
        plan
    )
    cut = (
        Pruner(model, coupling, Importance(model, coupling))
        .apply(Plan({"0:units": Choice("neuron", 0.5, "l1")}))
        .model
    )
    weight = dict(cut.named_parameters())["3.weight"].detach()
    masked = dict(pruned.model.named_parameters())["3.weight"].detach()
    assert set(masked[masked != 0].tolist()) == set(
        weight.flatten()[weight.flatten().abs().argsort()[35:]].tolist()
    )


def test_a_shared_weight_is_masked_once_for_both_layers() -> None:
    model, inputs = member("TiedWeights").make()
    coupling = discover(model, inputs)
    pruned = (
        Pruner(model, coupling, Importance(model, coupling))
        .apply(Plan({"first:weights": Choice("sparse", 0.5)}))
        .finish()
    )
    assert zeros(pruned, "first.weight") == 50 and pruned.second.weight is pruned.first.weight
