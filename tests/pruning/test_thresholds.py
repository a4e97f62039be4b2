"""One threshold over the weights of all layers; criteria that rank alike are one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_screening import scaling, screening
from small_search import quick
from torch import nn

import autoprune
from autoprune.errors import PlanError
from autoprune.group import Group
from autoprune.pruning.criteria.lamp import LAMP
from autoprune.pruning.thresholds import Threshold
from autoprune.searching.evaluating.preparation import prepare
from autoprune.searching.proposing.heuristics import proposals, thresholds
from autoprune.space import Options, Variable

__all__ = ["quick"]  # a fixture: short measurements


def layers() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: scale * torch.randn(size, 5, generator=generator) for name, scale, size in
            (("small", 0.1, 8), ("large", 2.0, 10), ("middle", 0.7, 6))}  # fmt: skip


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.77, 0.95])
def test_the_smallest_weights_of_the_whole_net_go(share: float) -> None:
    weights = layers()
    ratios = Threshold({name: weight.abs() for name, weight in weights.items()}).ratios(share)
    every = torch.cat([weight.flatten().abs() for weight in weights.values()])
    limit = every.sort().values[round(share * len(every)) - 1] if share else -1.0
    for name, weight in weights.items():
        gone = int((weight.abs() <= limit).sum())
        assert round(ratios[name] * weight.numel()) == min(gone, weight.numel() - 1)
    assert ratios["small"] >= ratios["middle"] >= ratios["large"]


def test_by_lamp_no_layer_loses_all_and_by_magnitude_one_may_lose_all_but_one() -> None:
    weights = layers()
    plain = Threshold({name: weight.abs() for name, weight in weights.items()}).ratios(0.5)
    adaptive = Threshold({name: LAMP().score(weight) for name, weight in weights.items()}).ratios(
        0.5
    )
    assert plain["small"] == 39 / 40 and max(adaptive.values()) < 0.8
    total = sum(adaptive[name] * weight.numel() for name, weight in weights.items())
    assert total == pytest.approx(0.5 * sum(weight.numel() for weight in weights.values()))


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Linear(6, 14), nn.ReLU(), nn.Linear(14, 10), nn.ReLU(), nn.Linear(10, 3)
    ).eval()
    with torch.no_grad():
        made[2].weight.mul_(0.2)
    return made


@pytest.mark.promise("options")
@pytest.mark.parametrize("technique", ["weight", "sparse"])
@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp"])
def test_a_pattern_of_global_scope_removes_its_share_of_all_weights(
    technique: str, criterion: str
) -> None:
    model = net()
    choice = {"technique": technique, "ratio": 0.5, "criterion": criterion, "scope": "global"}
    smaller = autoprune.prune(model, torch.randn(2, 6), {"*": choice})
    before = torch.cat([model[place].weight.detach().flatten() for place in (0, 2, 4)])
    after = torch.cat([smaller[place].weight.detach().flatten() for place in (0, 2, 4)])
    assert int((after == 0).sum()) == round(0.5 * len(after))
    if criterion != "lamp":
        assert float(before[after == 0].abs().max()) <= float(before[after != 0].abs().min())
    shares = [float((smaller[place].weight == 0).double().mean()) for place in (0, 2, 4)]
    assert max(shares) - min(shares) > 0.05  # a share of its own in each layer


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"technique": "neuron", "ratio": 0.5, "scope": "global"}, "for weight and sparse"),
        ({"technique": "n_of_m(m=2)", "ratio": 0.5, "scope": "global"}, "for weight and sparse"),
        ({"technique": "weight", "ratio": 0.5, "scope": "net"}, "layer, global; got 'net'"),
        ({"technique": "weight", "ratio": 1, "scope": "global"}, r"in \[0, 1\); got 1"),
    ],
)
def test_a_scope_that_cannot_be_is_refused(choice: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        autoprune.prune(net(), torch.randn(2, 6), {"*": choice})


@pytest.mark.promise("options")
@pytest.mark.parametrize("technique", ["weight", "sparse", "n_of_m"])
def test_criteria_that_rank_alike_come_to_one_plan(technique: str) -> None:
    group = Group("fc", "weights", ("fc",), ("linear",), (8, 8))
    variable = Variable(
        "fc:weights", (group,), Options((technique,), (0.0, 0.9), ("l2", "taylor", "l1", "lamp"))
    )
    named = ("l1", "l2", "lamp", "taylor")
    found = {name: variable.choices(technique, 0.5, name)["fc:weights"].criterion for name in named}
    assert found == {"l1": "l2", "l2": "l2", "lamp": "l2", "taylor": "taylor"}
    alone = Variable("fc:weights", (group,), Options((technique,), (0.0, 0.9), ("lamp",)))
    assert alone.choices(technique, 0.5, "lamp")["fc:weights"].criterion == "lamp"
    tiles = Variable("fc:weights", (group,), Options(("block(rows=4)",), (0.0, 0.9), ("l2", "l1")))
    # sums of tiles differ
    assert tiles.choices("block(rows=4)", 0.5, "l1")["fc:weights"].criterion == "l1"


@pytest.mark.promise("options")
def test_plans_by_one_threshold_are_among_the_first_and_keep_the_budget(tmp_path: Path) -> None:
    ready = prepare(screening())
    given = scaling(ready, tmp_path, nonzero_params="65%")
    solved = thresholds(ready, given)
    plans = [solve(1.0) for solve in solved]
    assert len(plans) == 2  # by magnitude and by LAMP, of `weight` alone
    for plan in plans:
        ratios = [choice.ratio for _, choice in plan]
        assert {choice.technique for _, choice in plan} == {"weight"} and len(ratios) == 2
        assert given.fits(plan) and max(ratios) - min(ratios) > 0.05
    assert plans[0] != plans[1]
    first = proposals(ready, given, solved)
    assert all(plan in first for plan in plans)
