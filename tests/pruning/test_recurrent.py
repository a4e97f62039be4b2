"""Laws of recurrent layers beyond those of every member: one size, attributes, projections, files, Python interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from marks import slow_but
from models import member
from torch import Tensor, nn

import autoprune
from autoprune import plugins
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.coupling.verify import TOLERANCE, discover, random_keep, relative_error
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.task import Inputs


def halved(coupling: Coupling, share: float = 0.5) -> dict[str, Tensor]:
    groups = [group for group in coupling.prunable() if group.level == "units"]
    return {group.key: random_keep(coupling, group.key, share) for group in groups}


@pytest.mark.parametrize(
    ("name", "cells"), [("LSTM", 1), ("deep", 6), ("laid_out_states", 1), ("packed_states", 2)]
)
def test_layers_and_directions_lose_the_same_count(name: str, cells: int) -> None:
    """Where states of all layers are added up, their units are the same; elsewhere each layer chooses its own."""
    model, inputs = member(name).make()
    coupling = discover(model, inputs)
    group = coupling.group("rnn:units")
    assert (group.layers, group.kinds, group.size, group.cells) == (
        ("rnn",),
        ("recurrent",),
        8 * cells,
        cells,
    )
    smaller = coupling.apply(model, halved(coupling, 0.25)).rnn
    assert (smaller.hidden_size, smaller.input_size) == (6, 4)
    assert {len(tensor) for tensor in smaller.parameters()} == {len(model.rnn.bias_ih_l0) * 6 // 8}
    assert all(a is b for a, b in zip(smaller._flat_weights, smaller.parameters(), strict=True))


def test_hidden_units_stay_more_than_those_of_the_projection() -> None:
    """torch takes a state as wide as the hidden units for one without a projection."""
    model, inputs = member("projected").make()
    coupling = discover(model, inputs)
    assert (coupling.group("rnn:units").shape, coupling.group("rnn.weight_hr_l0:units").shape) == (
        (16,),
        (12,),
    )
    smaller = coupling.apply(model, halved(coupling, 0.99)).rnn
    assert (smaller.hidden_size, smaller.proj_size) == (5, 1)
    alone = coupling.apply(model, {"rnn:units": halved(coupling, 0.99)["rnn:units"]}).rnn
    assert (alone.hidden_size, alone.proj_size) == (5, 3)


def test_cells_follow_the_cut() -> None:
    model, inputs = member("cells").make()
    coupling = discover(model, inputs)
    smaller = coupling.apply(model, halved(coupling))
    sizes = {
        name: (cell.input_size, cell.hidden_size)
        for name, cell in smaller.named_children()
        if hasattr(cell, "bias_ih")
    }
    assert sizes == {"lstm": (3, 4), "gru": (4, 5), "rnn": (3, 3)}
    assert coupling.group("start:units").layers == ("start", "rnn")


def test_a_weight_that_every_row_of_a_state_reads_is_cut_once() -> None:
    model, inputs = member("learned_start").make()
    coupling = discover(model, inputs)
    assert coupling.group("rnn:units").size == 8
    assert coupling.apply(model, halved(coupling)).start.shape == (2, 1, 4)


def test_zeros_of_a_written_width_are_refused_with_what_torch_says() -> None:
    model, inputs = member("written_zeros").make()
    refusal = str(discover(model, inputs).group("rnn:units").refusal)
    assert "Expected hidden size (1, 2, " in refusal and "got [1, 2, 8]" in refusal


@pytest.mark.parametrize("name", slow_but(["cells"], ["last_states", "laid_out_states", "cells"]))
@pytest.mark.parametrize("format", ["onnx", "program"])
def test_a_cut_net_runs_from_its_file_at_two_batch_sizes(
    name: str, format: str, tmp_path: Path
) -> None:
    model, inputs = member(name).make()
    coupling = discover(model, inputs)
    smaller = coupling.apply(model, halved(coupling))
    plugin = plugins.load("format", format)()
    plugin.save(smaller, inputs, tmp_path / plugin.filename)
    run: Callable[[Inputs], list[Tensor]] = plugin.load(tmp_path / plugin.filename)
    for count in (1, 4):
        rows = inputs.rows(count)
        assert relative_error(run(rows), outputs_of(smaller, rows)) <= TOLERANCE


def test_three_lines_halve_an_lstm() -> None:
    model, inputs = member("last_states").make()
    pruned = autoprune.prune(model, inputs, 0.5)
    assert (pruned.rnn.hidden_size, pruned.rnn.input_size, pruned.head.in_features) == (4, 3, 8)
    assert isinstance(model.rnn, nn.LSTM) and model.rnn.hidden_size == 8
    assert torch.isfinite(outputs_of(pruned, inputs)[0]).all()
