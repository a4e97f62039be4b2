"""Widths written into code: the cut model has its own, and keeps them through copies, pickles and exports."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

import autoprune
from autoprune.errors import ModelError
from autoprune.pruning.forward import outputs_of
from autoprune.pruning.proof import discover, relative_error
from autoprune.pruning.rebinding import bindings_of
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


INPUTS = Inputs.of(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))


def pruned() -> nn.Module:
    torch.manual_seed(0)
    return autoprune.prune(Written().eval(), INPUTS.args[0], 0.5)


def test_the_code_gets_the_widths_of_the_cut_model() -> None:
    smaller = pruned()
    bound = bindings_of(smaller)[""]
    kept = bound[2]["bounds"][1][1]
    assert smaller.enter.out_features == 6 and smaller.mix.in_features == 6 - kept and 1 <= kept <= 4
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
            return self.head(torch.cat([first, second[:, : second.shape[1] // 3 * 2]], 1))

    model = Follows().eval()
    assert all(literal.owner != "" or literal.kind == "bounds" for literal in discover(model, INPUTS).literals)
