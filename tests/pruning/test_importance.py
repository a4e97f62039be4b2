"""Importance of units and weights, what criteria see on calibration batches, and what a plan may not say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import member
from torch import Tensor, nn

import autoprune
from autoprune.errors import InputError, PlanError
from autoprune.group import Group
from autoprune.plan import Choice, Plan
from autoprune.plugins import Need
from autoprune.pruning.calibration import Statistics, activations, gradients
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruner
from autoprune.task import Inputs


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()


def test_a_units_importance_sums_all_its_members_by_hand() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 1.0], [3.0, 3.0]]))
        model[0].bias.copy_(torch.tensor([0.5, -0.5, 0.0]))
        model[2].weight.copy_(torch.tensor([[1.0, -4.0, 2.0]]))
    coupling = discover(model, Inputs.of(torch.randn(2, 2)))
    importance = Importance(model, coupling)
    for criterion, sums in {"l1": [4.5, 5.5, 8.0], "l2": [6.25, 17.25, 22.0]}.items():
        relative = [each / (sum(sums) / 3) for each in sums]  # to the average unit of the group
        assert importance.units(coupling.group("0:units"), criterion)[0].tolist() == pytest.approx(
            relative
        )
    assert importance.weights(coupling.group("2:weights"), "l1").tolist() == [[1.0, 4.0, 2.0]]


@pytest.mark.parametrize(
    "name",
    [
        "Grouped",
        "InvertedResidual",
        "SharedModule",
        "TiedWeights",
        "Shuffled",
        "UNet",
        "TransposedDepthwise",
        "Text",
    ],
)
def test_a_zero_unit_has_no_importance_and_any_other_has_some(name: str) -> None:
    model, inputs = member(name).make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    coupling = discover(model, inputs)
    for group in coupling.prunable():
        if group.level == "units":
            units = Importance(model, coupling, ones(model)).units(group, "taylor")
            assert units.shape == coupling.members[group.key].shape
            assert bool((units > 0).all())
    total = sum(
        float(Importance(model, coupling, ones(model)).units(group, "taylor").sum())
        for group in coupling.prunable()
        if group.level == "units"
    )
    assert total == pytest.approx(sum(_prunable_elements(model, coupling).values()))


def ones(model: nn.Module) -> Callable[[Need], dict[str, Tensor]]:
    return lambda need: {
        name: torch.ones_like(parameter) for name, parameter in model.named_parameters()
    }


def test_a_head_sums_its_parts_of_a_fused_projection() -> None:
    model, inputs = member("Transformer").make()
    coupling = discover(model, inputs)
    group = next(group for group in coupling.prunable() if "attention" in group.kinds)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    query_key_value, output = 3 * (4 * 8 + 4), 8 * 4  # heads of width 4 in an embedding of 8
    units = Importance(model, coupling, ones(model)).units(group, "taylor")
    assert units.flatten().tolist() == [query_key_value + output] * 2


def _prunable_elements(model: nn.Module, coupling: object) -> dict[tuple[str, int], float]:
    """Elements along every (parameter, dimension) that belong to units, counted from the slots' own definition."""
    found = {}
    parameters = dict(model.named_parameters())
    for slot in coupling.slots:  # type: ignore[attr-defined]
        if slot.tensor in parameters:
            tensor = parameters[slot.tensor]
            inside = int((slot.units >= 0).sum()) / len(slot.units)
            found[slot.tensor, slot.dim] = tensor.numel() * inside
    return found


def test_integer_buffers_are_no_part_of_it() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
            self.register_buffer("table", torch.arange(8))
            self.register_buffer("steps", torch.tensor(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x) * (1 + self.table))

    model = Counted().eval()
    coupling = discover(model, Inputs.of(torch.randn(2, 3)))
    importance = Importance(model, coupling)
    for group in coupling.prunable():
        if group.level == "units":
            assert bool(importance.units(group, "l1").isfinite().all())


def test_gradients_are_the_mean_over_batches_and_leave_the_model_alone() -> None:
    model = nn.Sequential(
        nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1)
    ).train()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    xs = [torch.randn(4, 2) for _ in range(3)]
    found = gradients(model, [((x,), {}, torch.zeros(4, 1)) for x in xs], F.mse_loss)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert torch.equal(model[0].weight.grad, torch.ones(3, 2)) and model[3].weight.grad is None
    assert not model[0].bias.requires_grad and all(module.training for module in model.modules())
    model.eval()
    model.zero_grad()
    torch.stack([F.mse_loss(model(x), torch.zeros(4, 1)) for x in xs]).mean().backward()
    assert torch.allclose(found["3.weight"], model[3].weight.grad, atol=1e-6)


def test_gradients_read_no_more_batches_than_asked() -> None:
    seen = []

    def batches() -> object:
        for number in range(10):
            seen.append(number)
            yield (torch.randn(2, 2),), {}, torch.zeros(2, 1)

    gradients(network(), batches(), F.mse_loss, count=3)  # type: ignore[arg-type]
    assert seen == [0, 1, 2]


def test_gradients_need_a_batch() -> None:
    with pytest.raises(InputError, match="at least one batch"):
        gradients(network(), [], F.mse_loss)


def test_gradients_are_gathered_once_and_only_when_needed() -> None:
    model, inputs = member("perceptron").make()
    coupling = discover(model, inputs)
    calls = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return F.mse_loss(output, target)

    batches = [(inputs.args, {}, torch.zeros_like(model(*inputs.args)))] * 2
    importance = Importance(model, coupling, Statistics(model, lambda: batches, loss))
    importance.units(coupling.group("0:units"), "l1")
    assert calls == []
    importance.units(coupling.group("0:units"), "taylor")
    importance.weights(coupling.group("0:weights"), "taylor")
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("key", "choice", "message"),
    [
        ("9:units", Choice("neuron", 0.5), "does not have"),
        ("5:units", Choice("neuron", 0.5), "network's output"),
        ("0:units", Choice("structured", 0.5), "structured needs channels"),
        ("0:units", Choice("weight", 0.5), "acts on weights"),
        ("0:weights", Choice("neuron", 0.5), "acts on units"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(key: str, choice: Choice, message: str) -> None:
    model, inputs = member("perceptron").make()
    coupling = discover(model, inputs)
    with pytest.raises(PlanError, match=message):
        Pruner(model, coupling, Importance(model, coupling)).apply(Plan({key: choice}))


def test_unknown_names_in_a_plan_are_input_errors() -> None:
    model, inputs = member("perceptron").make()
    coupling = discover(model, inputs)
    for choice in (Choice("structurd", 0.5), Choice("neuron", 0.5, "l11")):
        with pytest.raises(InputError, match="did you mean"):
            Pruner(model, coupling, Importance(model, coupling)).apply(Plan({"0:units": choice}))


@pytest.mark.parametrize("name", ["Grouped", "group_norm", "Shuffled", "half_of_shape"])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_every_cell_loses_the_same_count(name: str, ratio: float) -> None:
    model, inputs = member(name).make()
    coupling = discover(model, inputs)
    for group in coupling.prunable():
        if group.level == "units" and "conv" in group.kinds:
            plan = Plan({group.key: Choice("structured", ratio)})
            cuts = coupling.cuts(
                Pruner(model, coupling, Importance(model, coupling)).resolve(plan).kept
            )
            cells, size = coupling.members[group.key].shape
            gone = min(round(size * ratio), size - 1)
            produced = next(
                cut for cut in cuts if cut.tensor == f"{group.name}.weight" and cut.dim == 0
            )
            assert int((~produced.keep).sum()) * cells * size == gone * cells * len(produced.keep)


def normed(second: nn.Module | None = None) -> nn.Module:
    """Two convolutions with a batch norm each, a residual sum, a linear head without any."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        second or nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(6 * 36, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    ).eval()


IMAGES = Inputs.of(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3)))


def labelled(model: nn.Module, inputs: Inputs, count: int = 3) -> Statistics:
    batches = [(inputs.args, {}, torch.arange(inputs.batch_size) % 4)] * count
    return Statistics(model, lambda: batches, F.cross_entropy)


@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "activation", "geometric_median"])
def test_the_average_unit_of_every_group_has_an_importance_of_one(criterion: str) -> None:
    model = normed()
    with torch.no_grad():
        model[0].weight.mul_(1000)  # scales of layers are no importance
    coupling = discover(model, IMAGES)
    importance = Importance(model, coupling, labelled(model, IMAGES))
    keys = ("0:units", "3:units", "6:units")
    found = [importance.units(coupling.group(key), criterion) for key in keys]
    assert [float(each.mean()) for each in found] == pytest.approx([1.0] * 3)
    with torch.no_grad():
        model[3].weight.mul_(7)
    fresh = Importance(model, coupling, labelled(model, IMAGES)).units(
        coupling.group("3:units"), criterion
    )
    if criterion == "geometric_median":
        assert torch.allclose(fresh, found[1])


def test_a_group_of_zeros_has_no_importance() -> None:
    model = normed()
    coupling = discover(model, IMAGES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not Importance(model, coupling).units(coupling.group("0:units"), "l1").any()


def test_what_estimates_the_loss_is_left_as_it_is() -> None:
    model = normed()
    coupling = discover(model, IMAGES)
    evidence = labelled(model, IMAGES)
    importance = Importance(model, coupling, evidence)
    for criterion, need in (("taylor", "gradients"), ("fisher", "squared gradients")):
        seen = evidence(need)  # type: ignore[arg-type]
        score = (
            (lambda w, g: (w * g).abs()) if criterion == "taylor" else (lambda w, g: w**2 * g / 2)
        )
        parts = {
            name: score(weight.detach(), seen[name]) for name, weight in model.named_parameters()
        }
        wanted = (
            parts["0.weight"].sum((1, 2, 3)) + parts["0.bias"] + parts["1.weight"] + parts["1.bias"]
        )
        wanted = wanted + parts["3.weight"].sum((0, 2, 3))
        assert torch.allclose(
            importance.units(coupling.group("0:units"), criterion)[0].float(), wanted, rtol=1e-4
        )


def test_batch_norm_units_rank_by_the_mean_of_their_scales() -> None:
    model, inputs = member("Residual").make()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.linspace(-2, 1, len(module.weight)))
    coupling = discover(model, inputs)
    importance = Importance(model, coupling)
    for group in coupling.prunable():
        if group.level == "units":
            wanted = torch.linspace(-2, 1, group.size).abs().double()
            assert torch.allclose(importance.units(group, "batchnorm").flatten(), wanted, atol=1e-6)


def test_batch_norm_units_of_groups_with_more_norms_matter_no_more() -> None:
    model, inputs = member("Dense").make()  # a channel meets up to three norms
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(-0.5)
    coupling = discover(model, inputs)
    importance = Importance(model, coupling)
    units = [
        importance.units(group, "batchnorm")
        for group in coupling.prunable()
        if group.level == "units"
    ]
    assert len(units) == 3 and all(bool((each == 0.5).all()) for each in units)


def test_units_without_a_batch_norm_are_refused_by_number() -> None:
    model = normed()
    coupling = discover(model, IMAGES)
    importance = Importance(model, coupling)
    assert importance.refuses("batchnorm", coupling.group("0:units")) is None
    said = "needs a batch norm in every unit; 10 of 10 units have none"
    assert said in str(importance.refuses("batchnorm", coupling.group("6:units")))
    with pytest.raises(InputError, match=said):
        importance.units(coupling.group("6:units"), "batchnorm")
    with pytest.raises(PlanError, match=f"batchnorm cannot rank '6:units': .*{said}"):
        Pruner(model, coupling, importance).apply(
            Plan({"6:units": Choice("neuron", 0.5, "batchnorm")})
        )


@pytest.mark.parametrize(
    ("key", "criterion", "says"),
    [
        ("0:weights", "batchnorm", "batchnorm is for units"),
        ("0:weights", "geometric_median", "geometric_median is for units"),
        ("0:units", "lamp", "lamp is for weights"),
    ],
)
def test_a_criterion_of_the_other_level_is_refused(key: str, criterion: str, says: str) -> None:
    model = normed()
    coupling = discover(model, IMAGES)
    assert says in str(Importance(model, coupling).refuses(criterion, coupling.group(key)))
    technique = "weight" if key.endswith("weights") else "structured"
    with pytest.raises(PlanError, match=says):
        Pruner(model, coupling, Importance(model, coupling)).apply(
            Plan({key: Choice(technique, 0.5, criterion)})
        )


def test_geometric_median_is_the_distance_to_all_filters_of_the_layer() -> None:
    model = normed()
    coupling = discover(model, IMAGES)
    units = Importance(model, coupling).units(coupling.group("0:units"), "geometric_median")[0]
    filters = model[0].weight.detach().flatten(1)
    wanted = torch.stack([(filters - each).norm(dim=1).sum() for each in filters])
    assert torch.allclose(units.float(), wanted / wanted.mean(), rtol=1e-4)


class Mixed(nn.Module):
    """The channels of a small and of a large layer, side by side in one group."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 24, 3, padding=1)
        self.skip, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            torch.relu(torch.cat([self.small(x), self.large(x)], 1) + self.skip(x))
        ).mean((2, 3))


def test_geometric_median_compares_filters_of_several_layers_each_with_its_own() -> None:
    model = Mixed().eval()
    smaller = autoprune.prune(model, IMAGES, 0.5, criterion="geometric_median")
    # was 1: fewer, smaller filters
    assert smaller.small.out_channels in range(2, 7) and smaller.head.in_channels == 16
    coupling = discover(model, IMAGES)
    before = Importance(model, coupling).units(coupling.group("small:units"), "geometric_median")
    with torch.no_grad():
        model.small.weight.mul_(0.01)  # the scale of a layer is no importance
    after = Importance(model, coupling).units(coupling.group("small:units"), "geometric_median")
    assert torch.allclose(after, before, rtol=1e-5)


def test_a_recurrent_units_filter_is_all_of_its_gates() -> None:
    model, inputs = member("LSTM").make()
    coupling = discover(model, inputs)
    units = (
        Importance(model, coupling).units(coupling.group("rnn:units"), "geometric_median").flatten()
    )
    # gates lie one after another
    filters = model.rnn.weight_ih_l0.detach().view(4, 8, -1).transpose(0, 1).flatten(1)
    wanted = torch.cdist(filters, filters).sum(1)
    assert torch.allclose(units.float(), wanted / wanted.mean(), rtol=1e-4)


def test_squared_gradients_are_the_mean_of_each_batchs_square() -> None:
    model = normed()
    batches = [((torch.randn(4, 3, 8, 8),), {}, torch.arange(4)) for _ in range(3)]
    found = gradients(model, batches, F.cross_entropy, squared=True)
    single = [gradients(model, [batch], F.cross_entropy) for batch in batches]
    for name, squares in found.items():
        assert torch.allclose(
            squares, torch.stack([each[name] ** 2 for each in single]).mean(0), atol=1e-9
        )


def test_activations_are_the_norm_of_each_input_feature() -> None:
    model = normed(nn.Conv2d(8, 6, 3, groups=2))
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = activations(model, [((x,), {}, None) for x in batches])
    images = torch.cat(batches)
    hidden, flat = model[:3](images).detach(), model[:6](images).detach()
    assert torch.allclose(
        found["0.weight"],
        images.square().sum((0, 2, 3)).sqrt()[None, :, None, None].expand(8, -1, 3, 3),
    )
    norms = hidden.square().sum((0, 2, 3)).sqrt()
    # each half of the filters reads its half
    grouped = torch.cat([norms[:4].expand(3, 4), norms[4:].expand(3, 4)])
    assert torch.allclose(found["3.weight"], grouped[:, :, None, None].expand(6, 4, 3, 3))
    assert torch.allclose(found["6.weight"], flat.square().sum(0).sqrt().expand(10, -1))
    assert set(found) == {"0.weight", "3.weight", "6.weight", "8.weight"}
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_activations_of_transposed_and_fused_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.depth = nn.ConvTranspose1d(4, 6, 3), nn.Conv1d(6, 12, 3, groups=6)
            self.attend = nn.MultiheadAttention(12, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.depth(self.up(x)).transpose(1, 2)
            out: Tensor = self.attend(x, 2 * x, 3 * x, need_weights=False)[0]
            return out

    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 4, 7)
    found = activations(model, [((x,), {}, None)])
    assert type(model.attend) is nn.MultiheadAttention
    up = model.up(x).detach()
    tokens = model.depth(up).detach().transpose(1, 2).square().sum((0, 1)).sqrt()
    assert torch.allclose(
        found["up.weight"], x.square().sum((0, 2)).sqrt()[:, None, None].expand(4, 6, 3)
    )
    depthwise = up.square().sum((0, 2)).sqrt().repeat_interleave(2)[:, None, None]
    assert torch.allclose(found["depth.weight"], depthwise.expand(12, 1, 3))
    fused = torch.cat([tokens.expand(12, 12), 2 * tokens.expand(12, 12), 3 * tokens.expand(12, 12)])
    assert torch.allclose(found["attend.in_proj_weight"], fused, rtol=1e-4)
    assert found["attend.out_proj.weight"].shape == (12, 12)


def test_activation_importance_of_weights_and_units() -> None:
    model = normed()
    coupling = discover(model, IMAGES)
    evidence = labelled(model, IMAGES)
    importance = Importance(model, coupling, evidence)
    seen = evidence("activations")
    scores = {
        name: dict(model.named_parameters())[name].detach().abs() * norm
        for name, norm in seen.items()
    }
    assert torch.equal(
        importance.weights(coupling.group("3:weights"), "activation"), scores["3.weight"]
    )
    wanted = scores["0.weight"].sum((1, 2, 3)) + scores["3.weight"].sum((0, 2, 3))
    found = importance.units(coupling.group("0:units"), "activation")[0]
    assert torch.allclose(found.float(), wanted / wanted.mean(), rtol=1e-5)


def test_a_dead_input_feature_has_no_importance_by_activation() -> None:
    model = normed()
    with torch.no_grad():
        model[1].weight[2], model[1].bias[2] = 0.0, -1.0
    coupling = discover(model, IMAGES)
    weights = Importance(model, coupling, labelled(model, IMAGES)).weights(
        coupling.group("3:weights"), "activation"
    )
    assert [place for place in range(8) if not weights[:, place].any()] == [2]


def test_activation_refuses_recurrent_weights_and_takes_units_by_what_reads_them() -> None:
    model, inputs = member("LSTM").make()
    coupling = discover(model, inputs)
    importance = Importance(model, coupling, Statistics(model, lambda: [(inputs.args, {}, None)]))
    refusals = {group.key: importance.refuses("activation", group) for group in coupling.prunable()}
    recurrent = [key for key in refusals if key.startswith("rnn.weight")]
    assert len(recurrent) == 2 and all(
        "finds no activations" in str(refusals[key]) for key in recurrent
    )
    assert refusals["rnn:units"] is None and refusals["head:weights"] is None


def test_layers_that_the_forward_does_not_reach_are_refused_not_scored_zero() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.unused, self.head = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(x))
            return out

    model, inputs = Auxiliary().eval(), Inputs.of(torch.randn(3, 4))
    coupling = discover(model, inputs)
    importance = Importance(model, coupling, Statistics(model, lambda: [(inputs.args, {}, None)]))
    assert "finds no activations" in str(
        importance.refuses("activation", coupling.group("unused:weights"))
    )
    assert importance.refuses("activation", coupling.group("head:weights")) is None


@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        ("taylor", r"needs gradients: give batches= \(a data loader\) and loss="),
        ("fisher", "needs squared gradients: give"),
        ("activation", r"needs activations: give batches= \(a data loader\)$"),
    ],
)
def test_data_that_was_not_given_is_asked_for(criterion: str, says: str) -> None:
    model = normed()
    for given in ({}, {"batches": [(IMAGES.args[0], torch.arange(4))]}):
        if given and criterion == "activation":
            autoprune.prune(model, IMAGES, 0.5, criterion=criterion, **given)
            continue
        with pytest.raises(InputError, match=says):
            autoprune.prune(model, IMAGES, 0.5, criterion=criterion, **given)


def test_an_exhausted_loader_is_told() -> None:
    with pytest.raises(InputError, match="activations need at least one batch"):
        activations(normed(), [])


def test_prune_by_batch_norm_says_which_group_has_none() -> None:
    with pytest.raises(PlanError, match="batchnorm cannot rank '6:units'"):
        autoprune.prune(normed(), IMAGES, Plan({"6:units": Choice("neuron", 0.5, "batchnorm")}))
    choice = {"technique": "structured", "ratio": 0.5, "criterion": "batchnorm"}
    smaller = autoprune.prune(normed(), IMAGES, {"0": choice})
    assert smaller[0].weight.shape[0] == 4


@pytest.mark.parametrize(
    ("technique", "criterion"),
    [
        ("n_of_m", "activation"),
        ("block(rows=2, columns=2)", "lamp"),
        ("n_of_m(m=2)", "fisher"),
        ("n_of_m", "taylor"),
    ],
)
def test_patterns_hold_on_what_a_cut_left_and_through_training(
    technique: str, criterion: str
) -> None:
    model = normed(nn.Conv2d(8, 8, 1))
    model[4], model[6] = nn.BatchNorm2d(8).eval(), nn.Linear(8 * 64, 10)
    coupling = discover(model, IMAGES)
    plan = Plan(
        {"0:units": Choice("structured", 0.25), "3:weights": Choice(technique, 0.5, criterion)}
    )
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    pruned = Pruner(model, coupling, Importance(model, coupling, labelled(model, IMAGES))).apply(
        plan
    )
    weight = dict(pruned.model.named_parameters())["3.weight"]
    assert weight.shape == (8, 6, 1, 1)  # of 8 inputs 6 are left: 4 and a rest of 2
    held = weight.detach() != 0
    optimizer = torch.optim.SGD(pruned.model.parameters(), 0.1, momentum=0.9)
    for step in range(3):
        F.cross_entropy(pruned.model(*IMAGES.args), torch.arange(4)).backward()
        optimizer.step()
        pruned.masks.step((step + 1) / 3)
    finished = dict(pruned.finish().named_parameters())["3.weight"].detach()[..., 0, 0]
    assert torch.equal(finished != 0, held[..., 0, 0])
    if technique == "n_of_m":
        assert (finished[:, :4] != 0).sum(1).tolist() == [2] * 8 and bool(
            (finished[:, 4:] != 0).all()
        )
    elif technique == "n_of_m(m=2)":
        assert (finished.view(8, 3, 2) != 0).sum(2).flatten().tolist() == [1] * 24
    else:
        tiles = (finished.view(4, 2, 3, 2) != 0).float().mean((1, 3))
        assert sorted(tiles.flatten().tolist()) == [0.0] * 6 + [1.0] * 6


@pytest.mark.promise("speed")
def test_what_a_criterion_sees_is_asked_once_however_many_blocks_there_are() -> None:
    asked: list[str] = []

    class Told(dict[str, torch.Tensor]):
        def get(self, name: str, default: Any = None) -> Any:
            asked.append(name)
            return super().get(name, default)

    layers = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(20)]
    model = nn.Sequential(*layers)
    told = Told({name: torch.ones_like(parameter) for name, parameter in model.named_parameters()})
    importance = Importance(model, Coupling((), (), {}, 0, {}), lambda need: told)
    blocks = [Group(str(place), "blocks", (str(place),), ("block",), (1,)) for place in range(20)]
    assert not any(importance.refuses("taylor", block) for block in blocks)
    assert len(asked) <= 2 * len(list(model.parameters()))
