"""The dead-unit law, which needs no knowledge of coupling.

Where the dead units (those whose consumers' weights are all zero) are exactly the share to be removed, pruning by
Taylor leaves the output as it was. The consumers are listed by hand.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import member

import autoprune
from autoprune.pruning.coupling.verify import relative_error
from autoprune.pruning.surgery.forward import outputs_of

# net -> widths, each with the (tensor, dimension) of every consumer
CONSUMERS = {
    "plain": [(8, [("2.0.weight", 1)]), (12, [("5.weight", 1)])],
    "perceptron": [(14, [("3.weight", 1)]), (10, [("5.weight", 1)])],
    "Residual": [(12, [("inner.0.weight", 1), ("head.weight", 1)]), (10, [("outer.weight", 1)])],
    "SqueezeExcite": [
        (12, [("squeeze.weight", 1), ("after.weight", 1)]),
        (6, [("excite.weight", 1)]),
        (12, [("head.weight", 1)]),
    ],
    "LSTM": [
        (6, [("rnn.weight_ih_l0", 1)]),
        (8, [("rnn.weight_hh_l0", 1), ("hidden.weight", 1)]),
        (10, [("head.weight", 1)]),
    ],
    "GRU": [
        (6, [("rnn.weight_ih_l0", 1)]),
        (8, [("rnn.weight_hh_l0", 1), ("hidden.weight", 1)]),
        (10, [("head.weight", 1)]),
    ],
    "Transformer": [
        (20, [("encoder.layers.0.linear2.weight", 1)]),
        (20, [("encoder.layers.1.linear2.weight", 1)]),
    ],
}

# norms over the stream see a channel that goes, dead or not: there only these layers are pruned
ONLY = {"Transformer": ("encoder.layers.*.linear1",)}


@pytest.mark.parametrize("name", CONSUMERS)
@pytest.mark.parametrize("criterion", ["taylor", "random"])
def test_removing_the_dead_units_changes_nothing(name: str, criterion: str) -> None:
    model, inputs = member(name).make()
    parameters = dict(model.named_parameters())
    for width, consumers in CONSUMERS[name]:
        dead = torch.randperm(width)[: width // 2]
        for tensor, dim in consumers:
            with torch.no_grad():
                parameters[tensor].index_fill_(dim, dead, 0.0)
    dense = outputs_of(model, inputs)
    batches = [(inputs.args, torch.randint(0, 3, (len(dense[0]),)))] * 2
    plan = (
        {pattern: {"technique": "neuron", "ratio": 0.5} for pattern in ONLY[name]}
        if name in ONLY
        else 0.5
    )
    pruned = autoprune.prune(
        model, inputs, plan, criterion=criterion, batches=batches, loss=F.cross_entropy
    )
    assert sum(p.numel() for p in pruned.parameters()) < 0.8 * sum(
        p.numel() for p in model.parameters()
    )
    error = relative_error(outputs_of(pruned, inputs), dense)
    if criterion == "taylor":
        assert error <= 1e-5
    else:
        assert error > 1e-3  # the law is not empty
