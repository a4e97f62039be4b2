"""Widths written into code: the cut model has its own, and keeps them through copies, pickles and exports."""

from __future__ import annotations

import copy
import functools
import io
import json

import pytest
import torch
from torch import Tensor, nn

import autoprune
from autoprune.errors import ModelError
from autoprune.pruning.coupling.masked_reference import masked_outputs
from autoprune.pruning.coupling.verify import TOLERANCE, discover, random_keep, relative_error
from autoprune.pruning.surgery.architecture import Architecture
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.pruning.surgery.patch_forward import bindings_of
from autoprune.task import Inputs


class Written(nn.Module):
    """Twelve, four and eight are written down."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.mix, self.head = nn.Linear(5, 12), nn.Linear(8, 6), nn.Linear(10, 3)
        self.ways = 0

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x)).reshape(-1, 12)
        if self.ways:
            x = x.view(x.shape) * 1.0
        return self.head(torch.cat([x[:, :4], self.mix(x[:, 4:])], 1))


class Scaled(nn.Module):
    """Eight heads, their width and their scale are written down."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(5, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.enter(x)).view(x.shape[0], 8, 4) * 8**-0.5
        return self.head(x.reshape(x.shape[0], 32))


class BothWays(nn.Module):
    """Two directions are written down, beside the hidden size."""

    def __init__(self, kind: type[nn.RNNBase], depth: int, width: int) -> None:
        super().__init__()
        self.rnn = kind(5, width, depth, batch_first=True, bidirectional=True)
        self.width, self.head = width, nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.rnn(x)[0]
        return self.head(out.view(x.shape[0], -1, 2, self.width).mean(1).flatten(1))


INPUTS = Inputs.of(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))


def pruned() -> nn.Module:
    torch.manual_seed(0)
    return autoprune.prune(Written().eval(), INPUTS.args[0], 0.5)


def test_the_code_gets_the_widths_of_the_cut_model() -> None:
    smaller = pruned()
    bound = bindings_of(smaller)[""]
    kept = bound[2]["bounds"][1][1]
    assert (
        smaller.enter.out_features == 6 and smaller.mix.in_features == 6 - kept and 1 <= kept <= 4
    )
    assert bound[1] == {"sizes": {1: 6}}


def test_copies_and_pickles_are_models_of_their_own() -> None:
    smaller = pruned()
    expected = outputs_of(smaller, INPUTS)
    held = io.BytesIO()
    torch.save(smaller, held)
    held.seek(0)
    for other in (copy.deepcopy(smaller), torch.load(held, weights_only=False)):
        assert relative_error(outputs_of(other, INPUTS), expected) == 0.0
        with torch.no_grad():
            other.enter.weight.zero_()
            other.enter.bias.zero_()
        assert relative_error(outputs_of(other, INPUTS), expected) > 0.01
        assert relative_error(outputs_of(smaller, INPUTS), expected) == 0.0


def test_a_forward_that_goes_other_ways_afterwards_is_told_so() -> None:
    smaller = pruned()
    smaller.ways = 1
    with pytest.raises(ModelError, match="makes other calls than when its widths were noted"):
        smaller(INPUTS.args[0])


def test_code_that_follows_by_itself_is_left_as_it_is() -> None:
    class Follows(Written):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.enter(x))
            first, second = x.view(x.shape[0], -1).chunk(2, 1)
            return self.head(torch.cat([second, first[:, : x.shape[1] // 2]], 1))

    model = Follows().eval()
    model.head = nn.Linear(12, 3)
    assert not discover(model, INPUTS).literals


def _another(module: Scaled, x: Tensor) -> Tensor:
    """Set as the forward of one module."""
    return module.head(torch.tanh(module.enter(x)).view(x.shape[0], 32))


@pytest.mark.parametrize(
    ("kind", "width", "ratio"), [(Written, 6, 0.5), (Scaled, 16, 0.5), (Scaled, 8, 0.75)]
)
def test_a_pruned_model_is_pruned_again(kind: type[nn.Module], width: int, ratio: float) -> None:
    torch.manual_seed(0)
    dense = kind().eval()
    once = autoprune.prune(dense, INPUTS.args[0], ratio)
    twice = autoprune.prune(once, INPUTS.args[0], 0.5)
    assert (once.enter.out_features, twice.enter.out_features) == (width, width // 2)
    coupling = discover(once, INPUTS)
    keep = {"enter:units": random_keep(coupling, "enter:units")}
    masked = masked_outputs(once, INPUTS, coupling, keep)
    assert relative_error(outputs_of(coupling.apply(once, keep), INPUTS), masked) <= TOLERANCE
    for before in (dense, once):
        record = json.loads(json.dumps(Architecture.of(before, twice).to_json()))
        rebuilt = Architecture.from_json(record).build(before)
        rebuilt.load_state_dict(twice.state_dict())
        assert bindings_of(rebuilt) == bindings_of(twice)
        assert relative_error(outputs_of(rebuilt, INPUTS), outputs_of(twice, INPUTS)) == 0.0


def test_a_forward_of_one_module_keeps_its_code() -> None:
    torch.manual_seed(0)
    model = Scaled().eval()
    model.forward = functools.partial(_another, model)
    smaller = autoprune.prune(model, INPUTS.args[0], 0.5)
    held = io.BytesIO()
    torch.save(smaller, held)
    held.seek(0)
    assert smaller.forward.__code__ is _another.__code__
    for other in (smaller, copy.deepcopy(smaller), torch.load(held, weights_only=False)):
        expected = other.head(torch.tanh(other.enter(INPUTS.args[0])))
        assert other.enter.out_features == 16 and torch.equal(other(INPUTS.args[0]), expected)
        other.enter.weight.data.zero_()


@pytest.mark.parametrize(
    ("kind", "depth", "width"), [(nn.GRU, 1, 10), (nn.GRU, 1, 40), (nn.LSTM, 2, 8)]
)
def test_a_count_of_directions_is_no_width(kind: type[nn.RNNBase], depth: int, width: int) -> None:
    inputs = Inputs.of(torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0)))
    model = BothWays(kind, depth, width).eval()
    assert discover(model, inputs).group("rnn:units").refusal is None
    smaller = autoprune.prune(model, inputs.args[0], 0.5)
    assert smaller.rnn.hidden_size == width // 2
    assert next(iter(bindings_of(smaller)[""].values())) == {"sizes": {3: width // 2}}
