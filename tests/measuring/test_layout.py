"""What the predictor's features say of a plan is what the cut model is."""

import numpy as np
import pytest
import torch
from models import MEMBERS
from torch import nn

from autoprune.errors import ModelError
from autoprune.measuring.prediction.features import TERMS, Features
from autoprune.measuring.prediction.widths import Layout
from autoprune.pruning.coupling.verify import discover
from autoprune.task import Inputs

INPUTS = Inputs.of(torch.randn(2, 3, 12, 12))


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_widths_and_work_are_those_of_the_cut_model(member):
    """Of every family: what the features say of a plan is what the tensors of the cut model are."""
    model, inputs = member.make()
    coupling = discover(model, inputs)
    if not any(group.level == "units" for group in coupling.prunable()):
        return
    layout = Layout.of(coupling, model, inputs)
    row = layout.random_row(np.random.default_rng(0))
    smaller = coupling.apply(model, layout.keep(row))
    shapes = {name: parameter.shape for name, parameter in smaller.named_parameters()}
    rows, columns = Features(layout.operations, layout.groups).widths(np.array([row[0]], float))
    for place, each in enumerate(layout.operations):
        # where a layer reads a slice of a group, it depends on which units stay: their mean is what is known of widths
        loose = 1 if member.name == "slice_middle" else 0
        assert (
            np.abs(np.array([rows[0, place], columns[0, place]]) - shapes[each.tensor][:2]).max()
            <= loose
        )


def test_a_block_that_goes_takes_its_work_along():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x):
            return x + self.body(x)

    model = nn.Sequential(nn.Conv2d(3, 16, 3), Residual(), Residual(), nn.Conv2d(16, 4, 1)).eval()
    coupling = discover(model, INPUTS)
    layout = Layout.of(coupling, model, INPUTS)
    assert layout.blocks == {"1:blocks": ("1",), "2:blocks": ("2",)}
    row = layout.row({"1:blocks": torch.tensor([False])})
    work = layout.features([layout.dense, row])[0][:, TERMS.index("work")]
    tensors = [each.tensor for each in layout.operations]
    assert work[1, tensors.index("1.body.weight")] == 0 < work[0, tensors.index("1.body.weight")]
    assert work[1, tensors.index("2.body.weight")] == work[0, tensors.index("2.body.weight")]
    assert layout.keep(row)["1:blocks"].tolist() == [False] and "2:blocks" not in layout.keep(row)
    random = np.random.default_rng(0)
    assert {gone for _, gone in (layout.random_row(random, blocks=True) for _ in range(40))} == {
        (),
        ("1",),
        ("2",),
        ("1", "2"),
    }
    assert {gone for _, gone in (layout.random_row(random) for _ in range(40))} == {()}


def test_a_model_without_units_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(ModelError, match="no group of units"):
        Layout.of(discover(model, INPUTS), model, INPUTS)
