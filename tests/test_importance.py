"""Importance of units and weights, gradients on calibration batches, and what a plan may not say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import member
from torch import nn

from autoprune.errors import InputError, PlanError
from autoprune.plan import Choice, Plan
from autoprune.pruning.importance import Importance, gradients
from autoprune.pruning.proof import discover
from autoprune.pruning.pruned import apply, cuts_of
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
    assert importance.units(coupling.group("0:units"), "l1").tolist() == [[4.5, 5.5, 8.0]]
    assert importance.units(coupling.group("0:units"), "l2").tolist() == [[6.25, 17.25, 22.0]]
    assert importance.weights(coupling.group("2:weights"), "l1").tolist() == [[1.0, 4.0, 2.0]]


@pytest.mark.parametrize(
    "name",
    ["Grouped", "InvertedResidual", "SharedModule", "TiedWeights", "Shuffled", "UNet", "TransposedDepthwise", "Text"],
)
def test_a_zero_unit_has_no_importance_and_any_other_has_some(name: str) -> None:
    model, inputs = member(name).make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    coupling = discover(model, inputs)
    for group in coupling.prunable():
        if group.level == "units":
            units = Importance(model, coupling).units(group, "l1")
            assert units.shape == coupling.members[group.key].shape
            assert bool((units > 0).all())
    total = sum(
        float(Importance(model, coupling).units(group, "l1").sum())
        for group in coupling.prunable()
        if group.level == "units"
    )
    assert total == pytest.approx(sum(_prunable_elements(model, coupling).values()))


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
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1)).train()
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

    def gather() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}

    importance = Importance(model, coupling, gather)
    importance.units(coupling.group("0:units"), "l1")
    assert calls == []
    importance.units(coupling.group("0:units"), "taylor")
    importance.weights(coupling.group("0:weights"), "taylor")
    assert calls == [1]


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
        apply(model, coupling, Plan({key: choice}), Importance(model, coupling))


def test_unknown_names_in_a_plan_are_input_errors() -> None:
    model, inputs = member("perceptron").make()
    coupling = discover(model, inputs)
    for choice in (Choice("structurd", 0.5), Choice("neuron", 0.5, "l11")):
        with pytest.raises(InputError, match="did you mean"):
            apply(model, coupling, Plan({"0:units": choice}), Importance(model, coupling))


@pytest.mark.parametrize("name", ["Grouped", "group_norm", "Shuffled", "half_of_shape"])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_every_cell_loses_the_same_count(name: str, ratio: float) -> None:
    model, inputs = member(name).make()
    coupling = discover(model, inputs)
    for group in coupling.prunable():
        if group.level == "units" and "conv" in group.kinds:
            cuts = cuts_of(coupling, Plan({group.key: Choice("structured", ratio)}), Importance(model, coupling))
            cells, size = coupling.members[group.key].shape
            gone = min(round(size * ratio), size - 1)
            produced = next(cut for cut in cuts if cut.tensor == f"{group.name}.weight" and cut.dim == 0)
            assert int((~produced.keep).sum()) * cells * size == gone * cells * len(produced.keep)
