"""A plan is shown by the units that it leaves, and they are those of the cut model."""

from __future__ import annotations

import pytest
import torch
from models import MEMBERS, Member
from rich.console import Console

from autoprune.group import Group
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.coupling import trace
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.pruning.widths import widths_of
from autoprune.reporting import tables, words
from autoprune.score import Candidate, Score
from autoprune.searching.records import _widths
from autoprune.space import Options, Space, uniform

HEADS = Group("attention", "units", ("attention",), ("attention",), (4,))
CHANNELS = Group("conv", "units", ("conv",), ("conv",), (128,), 2)
SINGLE = Group("conv", "weights", ("conv",), ("conv",), (8, 8))
BLOCK = Group("layer1.0", "blocks", ("layer1.0",), ("block",), (1,))
PLAN = Plan(
    {
        "attention:units": Choice("heads", 0.63),
        "conv:units": Choice("structured", 0.56),
        "conv:weights": Choice("weight", 0.8),
        "layer1.0:blocks": Choice("depth", 1.0),
    }
)


@pytest.mark.promise("figures")
@pytest.mark.parametrize(
    ("group", "said"),
    [
        (HEADS, "heads 4 → 1 (l1)"),
        (CHANNELS, "structured 128 → 56 (l1)"),
        (SINGLE, "weight -80 % (l1)"),
        (BLOCK, "depth: gone"),
    ],
    ids=lambda value: value.key if isinstance(value, Group) else "",
)
def test_a_choice_is_told_by_what_it_leaves(group: Group, said: str) -> None:
    assert words.choice(PLAN.choices[group.key], group) == said
    console = Console(record=True, width=200)
    console.print(*tables.treatment([group], [Candidate(1, PLAN, Score(), True, "trained")]))
    assert said in console.export_text()


def test_the_table_of_trials_says_the_widths() -> None:
    shown = _widths((HEADS, CHANNELS, SINGLE, BLOCK), PLAN)
    assert shown == "attention:units 4 → 1; conv:units 128 → 56; layer1.0:blocks gone"


@pytest.mark.promise("figures")
@pytest.mark.parametrize("row", MEMBERS[::4], ids=lambda row: row.name)
@pytest.mark.parametrize("ratio", [0.3, 0.63])
def test_the_widths_are_those_of_the_cut_model(row: Member, ratio: float) -> None:
    model, inputs = row.make()
    coupling = trace(model, inputs)
    variables = Space(Options(("structured", "neuron", "heads"))).resolve(coupling.groups)
    plan = uniform(variables, ("structured", "neuron", "heads"), ratio)
    keep = Pruner(model, coupling, Importance(model, coupling)).resolve(plan).kept
    alive = coupling.kept_mask(keep)
    kept = {key: int(alive[coupling.members[key].flatten()].sum()) for key in keep}
    said = widths_of(coupling.groups, plan)
    assert {key: before for key, (before, _) in said.items()} == {
        key: len(each) for key, each in keep.items()
    }
    if not coupling.narrow:
        assert {key: after for key, (_, after) in said.items()} == kept
    assert torch.tensor([kept[key] >= after for key, (_, after) in said.items()]).all()
