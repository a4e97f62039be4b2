"""Whole residual blocks: found where zeroed parameters make an identity, gone without a trace in the rest."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import onnx
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import autoprune
from autoprune.errors import PlanError
from autoprune.group import Group
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.verify import discover, relative_error
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruned, Pruner
from autoprune.pruning.surgery.architecture import Architecture
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.reporting import tables
from autoprune.score import Candidate, Score
from autoprune.space import Options, Space
from autoprune.target import Target
from autoprune.task import Inputs


class Residual(nn.Module):
    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two(F.relu(self.norm(self.one(x)))))


class Net(nn.Module):
    """Three blocks that can go; `post`, whose norm after the sum cannot; `widen`, whose shapes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.stage = nn.Sequential(Residual(8), Residual(8, 0.01), Residual(8))
        self.post = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.after = nn.BatchNorm2d(8)
        self.widen = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU())
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.stem(x))
        x = self.widen(self.after(x + self.post(x)))
        return self.head(x.mean((2, 3)))


INPUTS = Inputs.of(torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def blocks(model: nn.Module, inputs: Inputs) -> list[Group]:
    return [group for group in discover(model, inputs).groups if group.level == "blocks"]


def test_each_block_that_can_go_is_a_group() -> None:
    found = blocks(net(), INPUTS)
    assert [group.key for group in found] == ["stage.0:blocks", "stage.1:blocks", "stage.2:blocks"]
    assert all(group.layers == (group.name,) and group.shape == (1,) for group in found)
    alone = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Residual(8)).eval()
    assert [group.key for group in blocks(alone, INPUTS)] == ["2:blocks"]


def test_a_removed_block_is_the_dense_one_with_its_branch_at_zero() -> None:
    model = net()
    coupling = discover(model, INPUTS)
    pruned = Pruner(model, coupling, Importance(model, coupling)).apply(
        Plan({"stage.1:blocks": Choice("depth", 1.0)})
    )
    assert pruned.removed == ["stage.1"]
    for parameter in model.stage[1].parameters():
        parameter.data.zero_()
    assert relative_error(outputs_of(pruned.model, INPUTS), outputs_of(model, INPUTS)) == 0.0
    assert not any(name.startswith("stage.1") for name, _ in pruned.model.named_parameters())


def test_depth_width_and_masks_go_together_and_an_outline_builds_it_again() -> None:
    model = net()
    coupling = discover(model, INPUTS)
    choices = {
        "stage.1:blocks": Choice("depth", 1.0),
        "stem.0:units": Choice("structured", 0.5, "l1"),
        "stage.0.one:units": Choice("structured", 0.5, "l1"),
        "stage.1.one:weights": Choice("weight", 0.5, "l1"),
        "stage.2.one:weights": Choice("weight", 0.5, "l1"),
    }
    pruned = Pruner(model, coupling, Importance(model, coupling)).apply(Plan(choices))
    smaller = pruned.finish()
    assert tuple(smaller.stage[0].one.weight.shape) == (4, 4, 3, 3)
    assert int((smaller.stage[2].one.weight == 0).sum()) == 8 * 4 * 9 // 2
    record = json.loads(json.dumps(Architecture.of(model, smaller).to_json()))
    rebuilt = Architecture.from_json(record).build(net())
    rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    assert relative_error(outputs_of(rebuilt, INPUTS), outputs_of(smaller, INPUTS)) == 0.0


def test_what_a_plan_says_of_blocks_that_go_is_of_no_effect() -> None:
    model = net()
    coupling = discover(model, INPUTS)
    importance = Importance(model, coupling)
    depth, width = {"stage.1:blocks": Choice("depth", 1.0)}, Choice("structured", 0.5, "l1")
    inside = {"stage.1.one:units": width, "stage.1.two:weights": Choice("weight", 0.5, "l1")}
    # the stream runs through the block, and stays
    stays = {"stem.0:units": width, "stage.0.one:units": width}
    assert Pruner(model, coupling, importance).resolve(Plan(depth | inside | stays)).plan == Plan(
        depth | stays
    )
    assert Pruner(model, coupling, importance).resolve(Plan(inside | stays)).plan == Plan(
        inside | stays
    )
    assert set(Pruner(model, coupling, importance).resolve(Plan(depth | inside | stays)).kept) == {
        *depth,
        *stays,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing to be told of what was asked of it
        autoprune.prune(model, INPUTS.args[0], Plan(depth | inside))


@pytest.mark.parametrize(
    ("pattern", "ratio", "gone"),
    [
        ("stage", 0.34, ["stage.1"]),  # the weakest
        ("stage.2", 1.0, ["stage.2"]),
        ("stage*", 1, ["stage.0", "stage.1", "stage.2"]),
        ("*", 0.67, ["stage.0", "stage.1"]),
        ("stage", 0, []),
    ],
)
def test_of_the_blocks_that_a_pattern_names_the_weakest_go(
    pattern: str, ratio: float, gone: list[str]
) -> None:
    model = net()
    with torch.no_grad():
        model.stage[0].two.weight.mul_(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned = autoprune.prune(
            model, INPUTS.args[0], {pattern: {"technique": "depth", "ratio": ratio}}
        )
    left = {
        name.removesuffix(".one") for name, _ in pruned.named_modules() if name.endswith(".one")
    }
    assert left == {"stage.0", "stage.1", "stage.2"} - set(gone)


def test_a_share_that_blocks_cannot_come_to_is_told() -> None:
    model = net()
    for pattern, ratio, told in (
        ("stage.2", 0.5, "asked 0.50 of 1 block, 1 goes"),
        ("stage", 0.5, "of 3 blocks, 2 go"),
    ):
        with pytest.warns(UserWarning, match=told):
            autoprune.prune(
                model, INPUTS.args[0], {pattern: {"technique": "depth", "ratio": ratio}}
            )


def test_a_net_without_blocks_says_so() -> None:
    with pytest.raises(
        PlanError, match=r"depth acts on blocks, and there is none that can go in what '\*' selects"
    ):
        autoprune.prune(
            nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)),
            torch.randn(2, 4),
            {"*": {"technique": "depth", "ratio": 0.5}},
        )


def test_less_than_half_a_block_is_told_and_shares_of_a_block_and_unknown_blocks_are_refused() -> (
    None
):
    model = net()
    with pytest.warns(UserWarning, match="asked 0.10 of 3 blocks, 0 go"):
        autoprune.prune(model, INPUTS.args[0], {"stage": {"technique": "depth", "ratio": 0.1}})
    with pytest.raises(PlanError, match="a block goes whole"):
        Plan({"stage.0:blocks": Choice("depth", 0.5)})
    with pytest.raises(PlanError, match="must stay"):
        Plan({"stem.0:units": Choice("structured", 1.0)})
    with pytest.raises(PlanError, match="not in the dense model"):
        Architecture(removed=["nowhere"]).build(model)


class InPlace(nn.Module):
    """Writes into its argument: never the identity, though its output and its argument always agree."""

    def __init__(self, gate: bool) -> None:
        super().__init__()
        self.gate, self.inner = gate, nn.Sequential(nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        if self.gate:
            return x.mul_(torch.sigmoid(self.inner(x)))
        x = F.relu(x, inplace=True)
        return x + self.inner(x)


@pytest.mark.parametrize("gate", [False, True])
def test_a_block_that_writes_into_its_argument_is_no_identity(gate: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), InPlace(gate), InPlace(gate), nn.Linear(6, 2)).eval()
    assert not blocks(model, Inputs.of(torch.randn(4, 6)))


def test_a_block_that_shares_a_parameter_with_the_rest_stays() -> None:
    model = net()
    model.stage.append(Residual(8))
    model.stage[1].two.weight = model.post[0].weight
    assert [group.name for group in blocks(model, INPUTS)] == ["stage.0", "stage.2", "stage.3"]


def test_a_finished_model_is_measured_as_its_plan_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from small_search import study

    from autoprune.measuring.timing.latency import Latency
    from autoprune.searching.evaluating import costs

    model = net()
    coupling, graphs = discover(model, INPUTS), list[bytes]()
    took = Latency(1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 40, True)
    monkeypatch.setattr(
        costs.measure, "time_artefact", lambda candidate, *_, **__: graphs.append(candidate) or took
    )
    monkeypatch.setattr(costs.measure, "artefact", lambda *_, **__: pytest.fail("exported anew"))
    found = costs.Costs(replace(study(), target=Target()), model, coupling, INPUTS)
    plan = Pruner(model, coupling, Importance(model, coupling)).apply(
        Plan({"stage.1:blocks": Choice("depth", 1.0)})
    )
    found.latency(plan, found.score(plan))
    found.of_finished(plan.finish(), plan, found.score(plan), 0)
    # the dense model's own milliseconds are taken as well
    cut = [graph for graph in graphs if graph != found.dense]
    nodes = [
        [node.op_type for node in onnx.load_from_string(graph).graph.node]
        for graph in (*cut, found.dense)
    ]
    assert nodes[0] == nodes[1]
    assert nodes[1].count("Conv") == nodes[2].count("Conv") - 2  # the block is gone in both


def test_tables_show_blocks_as_blocks() -> None:
    groups = discover(net(), INPUTS).groups
    variables = Space(Options(("structured", "depth"))).resolve(groups)
    candidate = Candidate(
        7, Plan({"stage.1:blocks": Choice("depth", 1.0)}), Score(), True, "trained"
    )
    console = Console(width=200)
    with console.capture() as capture:
        console.print(tables.groups(groups, variables), *tables.treatment(groups, [candidate]))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert (
        "stage.1 stage.1 a block depth all or nothing" in lines
        and "stage.1 a block depth: gone" in lines
    )
    _, whole = " ".join(lines).split("left whole:")
    assert "stage.0.one" in whole and "stage.0," not in whole


def test_a_cut_follows_one_whose_blocks_it_has_lost_as_well() -> None:
    model = net()
    coupling = discover(model, INPUTS)
    importance = Importance(model, coupling)

    def cut(**ratios: float) -> Pruned:
        names = {"first": "stage.0", "second": "stage.1"}
        choices = {
            f"{names[name]}:blocks": Choice("depth", ratio) for name, ratio in ratios.items()
        }
        return Pruner(model, coupling, importance).apply(Plan(choices))

    def inside(ratio: float) -> Pruned:
        choices = {"stage.0.one:units": Choice("structured", ratio)}
        return Pruner(model, coupling, importance).apply(Plan(choices))

    assert cut(first=1, second=1).resolved.follows(cut(first=1).resolved) and not cut(
        second=1
    ).resolved.follows(cut(first=1).resolved)
    assert cut(first=1).resolved.follows(inside(0.5).resolved) and not inside(0.5).resolved.follows(
        cut(first=1).resolved
    )
    deeper = Pruner(model, coupling, importance).apply(
        Plan({"stage.0:blocks": Choice("depth", 1)}), after=inside(0.5)
    )
    alone = cut(first=1)
    error = relative_error(outputs_of(deeper.model, INPUTS), outputs_of(alone.model, INPUTS))
    assert error <= 1e-6  # what is left of the net is the same
