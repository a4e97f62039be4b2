"""The laws of coupling and cutting, over every member of the table."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from models import MEMBERS, Member, member
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.coupling.masked_reference import masked_outputs
from autoprune.pruning.coupling.verify import TOLERANCE, discover, relative_error
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner, partly
from autoprune.pruning.surgery.architecture import Architecture
from autoprune.pruning.surgery.forward import output_tensors, outputs_of
from autoprune.pruning.surgery.shrink import named_tensors, widths
from autoprune.pruning.tracing.trace import propagate
from autoprune.space import fits
from autoprune.task import Inputs

every_member = pytest.mark.parametrize("row", MEMBERS, ids=lambda row: row.name)
SHARES = (0.2, 0.5, 0.8)


def units(coupling: Coupling) -> list:
    return [group for group in coupling.prunable() if group.level == "units"]


def draw(coupling: Coupling, share: float, seed: int) -> dict[str, Tensor]:
    """A random admissible keep of every group: each cell loses the same count, at least one unit stays."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in units(coupling):
        cells, size = coupling.members[group.key].shape
        gone = min(round(size * share), size - 1)
        keep[group.key] = torch.stack(
            [torch.randperm(size, generator=generator) >= gone for _ in range(cells)]
        ).flatten()
    return keep


def lively(model: nn.Module) -> nn.Module:
    """Normalisation statistics and biases that are not those of a fresh model, so that an error would show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, tensor in named_tensors(model):
            if tensor.is_floating_point() and tensor.dim() <= 1:
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    return model


def loss_of(outputs: list[Tensor]) -> Tensor:
    return sum(
        (output.square().mean() for output in outputs if output.is_floating_point()),
        torch.zeros(()),
    )


@every_member
def test_groups_are_proved_or_refused_by_name(row: Member) -> None:
    model, inputs = row.make()
    found = discover(model, inputs)
    groups = {group.name: group for group in found.groups if group.level == "units"}
    assert {name for name, group in groups.items() if group.refusal is None} == set(row.prunable)
    assert {name for name, group in groups.items() if group.refusal is not None} == set(row.refused)
    for name, reason in row.refused.items():
        assert reason in str(groups[name].refusal)


@every_member
def test_every_layer_with_units_stands_in_a_group(row: Member) -> None:
    model, inputs = row.make()
    named = {
        layer
        for group in discover(model, inputs).groups
        if group.level == "units"
        for layer in group.layers
    }
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        depthwise = getattr(module, "groups", 1) > 1 and getattr(module, "groups", 1) == getattr(
            module, "in_channels", 0
        )
        kinds = (
            nn.modules.conv._ConvNd,
            nn.Linear,
            nn.Embedding,
            nn.RNNBase,
            nn.MultiheadAttention,
        )
        if isinstance(module, kinds) and not depthwise and "out_proj" not in name:
            weight = first.get(id(getattr(module, "weight", None)), "")
            assert name in named or weight.removesuffix(".weight") in named, name


@every_member
@pytest.mark.parametrize("share", SHARES)
def test_cut_equals_masked(row: Member, share: float) -> None:
    model, inputs = row.make()
    model = lively(model)
    coupling = discover(model, inputs)
    keep = draw(coupling, share, seed=int(share * 10))
    smaller = coupling.apply(model, keep)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())
    for count in (1, 5):
        rows = inputs.rows(count)
        outputs, masked = outputs_of(smaller, rows), masked_outputs(model, rows, coupling, keep)
        assert [tensor.shape for tensor in outputs] == [
            tensor.shape for tensor in outputs_of(model, rows)
        ]
        assert relative_error(outputs, masked) <= TOLERANCE


@every_member
def test_a_cut_in_two_steps_is_the_cut_at_once_of_what_was_trained_between(row: Member) -> None:
    model, inputs = row.make()
    model = lively(model)
    coupling = discover(model, inputs)
    importance = Importance(model, coupling)
    fitting = {
        group.key: next(
            name for name in ("structured", "neuron", "heads") if fits(name, group) is None
        )
        for group in units(coupling)
    }
    plan = Plan({key: Choice(name, 0.7) for key, name in fitting.items()})
    half = Pruner(model, coupling, importance).apply(partly(plan, 0.5))
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for trained in (half.model, dense):
            for parameter in trained.parameters():
                parameter.mul_(1.5)
    twice = Pruner(model, coupling, importance).apply(plan, after=half)
    once = Pruner(dense, coupling, importance).apply(plan)
    assert twice.cuts and [cut.tensor for cut in twice.cuts] == [cut.tensor for cut in once.cuts]
    assert (
        relative_error(outputs_of(twice.model, inputs), outputs_of(once.model, inputs)) <= TOLERANCE
    )
    assert sum(p.numel() for p in half.model.parameters()) > sum(
        p.numel() for p in twice.model.parameters()
    )


def test_a_cut_that_keeps_a_unit_for_want_of_another_follows_no_earlier_one() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part, self.whole = nn.Linear(6, 16), nn.Linear(5, 3), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            return self.part(x[:, 2:7]) + self.whole(x)

    model, inputs = Part().eval(), Inputs.of(torch.randn(3, 6))
    with torch.no_grad():
        # the part that is read goes first
        order = torch.tensor([9.0, 10.0, 1.0, 2.0, 3.0, 4.0, 5.0, *range(11, 20)])
        model.first.weight.copy_(order[:, None].expand(16, 6))
        model.first.bias.zero_()
        model.part.weight.fill_(0.01)
        model.whole.weight.fill_(0.01)
    coupling = discover(model, inputs)
    importance = Importance(model, coupling)
    plan = Plan({"first:units": Choice("neuron", 0.8)})
    once, half = (
        Pruner(model, coupling, importance).apply(each) for each in (plan, partly(plan, 0.1))
    )
    assert not once.resolved.follows(half.resolved) and once.resolved.follows(once.resolved)
    gentle = Plan({"first:units": Choice("neuron", 0.2)})
    assert Pruner(model, coupling, importance).apply(gentle).resolved.follows(half.resolved)
    whole = Pruner(model, coupling, importance).apply(Plan())
    assert once.resolved.follows(whole.resolved) and not whole.lost and once.lost


@every_member
def test_each_group_alone_equals_masked(row: Member) -> None:
    model, inputs = row.make()
    model = lively(model)
    coupling = discover(model, inputs)
    for key, kept in draw(coupling, 0.5, seed=3).items():
        smaller = coupling.apply(model, {key: kept})
        assert (
            relative_error(
                outputs_of(smaller, inputs), masked_outputs(model, inputs, coupling, {key: kept})
            )
            <= TOLERANCE
        )


@every_member
def test_model_is_untouched(row: Member) -> None:
    model, inputs = row.make()
    model.train()
    before, state = (
        copy.deepcopy(model.state_dict()),
        {name: id(tensor) for name, tensor in named_tensors(model)},
    )
    given = [tensor.clone() for tensor in inputs.tensors()]
    random = torch.get_rng_state()
    coupling = discover(model, inputs)
    coupling.apply(model, draw(coupling, 0.5, seed=0))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert state == {name: id(tensor) for name, tensor in named_tensors(model)}
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(given, inputs.tensors(), strict=True))
    assert torch.equal(random, torch.get_rng_state())


@every_member
def test_discovery_repeats(row: Member) -> None:
    model, inputs = row.make()
    first, second = discover(model, inputs), discover(model, inputs)
    assert first.groups == second.groups
    assert all(
        torch.equal(a.units, b.units) and a.tensor == b.tensor
        for a, b in zip(first.slots, second.slots, strict=True)
    )


@every_member
def test_one_step_after_the_cut_moves_every_parameter(row: Member) -> None:
    model, inputs = row.make()
    coupling = discover(model, inputs)
    smaller = coupling.apply(lively(model), draw(coupling, 0.5, seed=5))
    moving = {
        name
        for name, parameter in stepped(model, inputs)
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-6
    }
    before = {name: parameter.detach().clone() for name, parameter in smaller.named_parameters()}
    moved = {
        name
        for name, parameter in stepped(smaller, inputs)
        if not torch.equal(parameter, before[name])
    }
    assert moving and moving <= moved


def stepped(model: nn.Module, inputs: Inputs) -> list[tuple[str, nn.Parameter]]:
    """Parameters after one step of plain descent in eval mode; in place on `model`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = inputs.map(lambda tensor: tensor.clone()).call(model)
    loss_of(output_tensors(output)).backward()
    optimizer.step()
    return list(model.named_parameters())


@every_member
def test_an_outline_builds_the_cut_model_again(row: Member) -> None:
    model, inputs = row.make()
    coupling = discover(model, inputs)
    smaller = coupling.apply(lively(model), draw(coupling, 0.5, seed=2))
    record = json.loads(json.dumps(Architecture.of(model, smaller).to_json()))
    rebuilt = Architecture.from_json(record).build(row.make()[0])
    rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    assert widths(model, rebuilt) == widths(model, smaller)
    assert relative_error(outputs_of(rebuilt, inputs), outputs_of(smaller, inputs)) == 0.0


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("plain", 0.45, 0.75),
        ("Residual", 0.45, 0.8),
        ("Grouped", 0.4, 0.8),
        ("InvertedResidual", 0.4, 0.75),
        ("perceptron", 0.4, 0.75),
        ("Shuffled", 0.4, 0.8),
        ("ConvNeXt", 0.4, 0.75),
        ("UNet", 0.4, 0.8),
    ],
)
def test_half_of_the_units_is_about_half_to_three_quarters_of_the_parameters(
    name: str, least: float, most: float
) -> None:
    model, inputs = member(name).make()
    coupling = discover(model, inputs)
    choices = {
        group.key: Choice("structured" if "conv" in group.kinds else "neuron", 0.5)
        for group in units(coupling)
    }
    pruned = Pruner(model, coupling, Importance(model, coupling)).apply(Plan(choices))
    share = 1 - sum(p.numel() for p in pruned.model.parameters()) / sum(
        p.numel() for p in model.parameters()
    )
    assert least <= share <= most


@pytest.mark.parametrize("name", ["TiedWeights", "TiedEmbedding", "SharedModule"])
def test_tied_parameters_stay_tied(name: str) -> None:
    model, inputs = member(name).make()
    coupling = discover(model, inputs)
    smaller = coupling.apply(model, draw(coupling, 0.5, seed=1))
    dense_names = dict(model.named_parameters(remove_duplicate=False))
    small_names = dict(smaller.named_parameters(remove_duplicate=False))
    assert len({id(p) for p in dense_names.values()}) == len({id(p) for p in small_names.values()})
    for first in dense_names:
        for second in dense_names:
            assert (dense_names[first] is dense_names[second]) == (
                small_names[first] is small_names[second]
            )


def test_shuffle_needs_the_same_places_of_each_half() -> None:
    """The counter-example behind uniting blocks: cut then shuffle is not shuffle then cut for other places."""
    x = torch.arange(8.0).view(1, 8, 1, 1)
    keep = torch.tensor([True, False, False, True, False, True, True, False])
    cut_first = F.channel_shuffle(x[:, keep], 2).flatten()
    shuffled = F.channel_shuffle(x, 2).flatten()
    assert not torch.equal(
        cut_first, shuffled[F.channel_shuffle(keep.float().view(1, 8, 1, 1), 2).flatten().bool()]
    )


def test_attributes_follow_the_cut() -> None:
    model, inputs = member("InvertedResidual").make()
    coupling = discover(model, inputs)
    smaller = coupling.apply(model, draw(coupling, 0.5, seed=1))
    assert (
        smaller.expand.out_channels,
        smaller.depthwise.groups,
        smaller.depthwise.in_channels,
    ) == (9, 9, 9)
    assert (
        smaller.wide.groups,
        smaller.wide.out_channels,
        smaller.last.in_channels,
        smaller.head.in_features,
    ) == (6, 12, 12, 6)
    assert (model.expand.out_channels, model.depthwise.groups) == (18, 18)


def test_recurrent_and_attention_weights_stay_prunable() -> None:
    model, inputs = member("LSTM").make()
    weights = {
        group.name for group in discover(model, inputs).prunable() if group.level == "weights"
    }
    assert {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "hidden", "head"} <= weights


def test_a_shared_weight_is_one_weights_group_under_its_first_name() -> None:
    model, inputs = member("TiedEmbedding").make()
    coupling = discover(model, inputs)
    weights = [group.name for group in coupling.groups if group.level == "weights"]
    assert sorted(weights) == ["back", "hidden", "words"]
    pruned = (
        Pruner(model, coupling, Importance(model, coupling))
        .apply(Plan({"words:weights": Choice("weight", 0.5)}))
        .finish()
    )
    assert int((pruned.words_out.weight == 0).sum()) == 120
    assert pruned.words_out.weight is pruned.words.weight


def test_an_output_that_cannot_be_read_is_refused() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> object:
            held = self.layer(x)
            return lambda: held

    with pytest.raises(ModelError, match="holds no tensor"):
        discover(Silent(), Inputs.of(torch.randn(2, 6)))


def test_a_forward_that_fails_names_the_shapes() -> None:
    with pytest.raises(ModelError, match=r"shapes \[\(2, 5\)\]"):
        discover(nn.Linear(6, 8), Inputs.of(torch.randn(2, 5)))


def test_hooks_are_removed_after_a_forward_that_fails() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    with pytest.raises(ModelError):
        discover(model, Inputs.of(torch.randn(2, 5)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_plain_forward_and_a_propagation_leave_no_trace() -> None:
    model, inputs = member("Transformer").make()
    model.train()
    model.head.eval()
    outputs_of(model, inputs)
    propagate(model, inputs)
    assert [module for module in model.modules() if not module.training] == [model.head]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


def test_unknown_group_is_named() -> None:
    model, inputs = member("plain").make()
    with pytest.raises(ModelError, match="no group 'nope:units'"):
        discover(model, inputs).group("nope:units")
