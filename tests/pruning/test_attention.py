"""Attention computes what nn.MultiheadAttention does, before it is cut; and what masking gives, after."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autoprune
from autoprune.pruning.coupling.masked_reference import masked_outputs
from autoprune.pruning.coupling.verify import TOLERANCE, discover, relative_error
from autoprune.pruning.importance import Importance
from autoprune.pruning.surgery.attention import Attention
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.task import Inputs

OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"kdim": 6, "vdim": 5},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
]


def inputs_for(
    module: nn.MultiheadAttention, batched: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    def of(length: int, width: int) -> Tensor:
        shape = (3, length, width) if module.batch_first else (length, 3, width)
        return torch.randn(shape if batched else (length, width))

    return of(4, 8), of(6, module.kdim), of(6, module.vdim)


def both(module: nn.MultiheadAttention) -> tuple[nn.MultiheadAttention, Attention]:
    own = copy.deepcopy(module)
    Attention.take_over(own)
    assert isinstance(own, Attention)
    return module, own


def compare(module: nn.MultiheadAttention, *args: Any, **kwargs: Any) -> None:
    theirs, ours = (each(*args, **kwargs) for each in both(module))
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-6, rtol=1e-5)
    assert (ours[1] is None) == (theirs[1] is None)
    if theirs[1] is not None:
        torch.testing.assert_close(ours[1], theirs[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_it_computes_what_multihead_attention_does(
    options: dict[str, Any], batched: bool, need_weights: bool
) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 4, **options).eval()
    compare(module, *inputs_for(module, batched), need_weights=need_weights)
    compare(module, *inputs_for(module, batched), average_attn_weights=False)


@pytest.mark.parametrize("need_weights", [True, False])
def test_masks_mean_what_they_did(need_weights: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 4, batch_first=True, add_bias_kv=True).eval()
    given = inputs_for(module)
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    square = torch.rand(4, 6) > 0.7
    square[:, 0] = False
    for masks in (
        {"key_padding_mask": padding},
        {"attn_mask": square},
        {"attn_mask": torch.randn(4, 6)},
        {"attn_mask": torch.randn(12, 4, 6), "key_padding_mask": torch.randn(3, 6)},
        {"attn_mask": square, "key_padding_mask": padding},
    ):
        compare(module, *given, need_weights=need_weights, **masks)


def test_learned_key_and_value_tokens_are_exported_for_any_batch() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(
        8, 4, batch_first=True, add_bias_kv=True, add_zero_attn=True
    ).eval()
    Attention.take_over(module)
    batch = torch.export.Dim("batch")
    given = (torch.randn(2, 5, 8),) * 3
    program = torch.export.export(module, given, dynamic_shapes=({0: batch},) * 3)
    more = (torch.randn(3, 5, 8),) * 3
    torch.testing.assert_close(program.module()(*more)[0], module(*more)[0])


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_loses_heads_and_keeps_what_masking_gives(batch_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=batch_first, norm_first=True)
    model = nn.Sequential(
        nn.Linear(5, 16),
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        nn.Linear(16, 3),
    )
    inputs = Inputs.of(torch.randn(2, 7, 5))
    coupling = discover(model.eval(), inputs)
    heads = [group for group in coupling.prunable() if "attention" in group.kinds]
    assert [group.name for group in heads] == ["1.layers.0.self_attn", "1.layers.1.self_attn"]
    assert [group.size for group in heads] == [4, 4]
    keep = {group.key: torch.tensor([True, False, False, True]) for group in heads}
    smaller = coupling.apply(model, keep)
    attention = smaller[1].layers[0].self_attn
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (2, 4, 16)
    assert tuple(attention.in_proj_weight.shape) == (24, 16)
    assert (
        relative_error(outputs_of(smaller, inputs), masked_outputs(model, inputs, coupling, keep))
        <= TOLERANCE
    )
    with torch.no_grad():  # torch's own fast path, off in the proof, must not be taken
        torch.testing.assert_close(smaller(inputs.args[0]), outputs_of(smaller, inputs)[0])


def test_the_heads_that_go_are_the_least_important() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 4, batch_first=True)
    with torch.no_grad():
        module.in_proj_weight[4:6] *= 0.01  # query of the third head
        module.in_proj_weight[12:14] *= 0.01
        module.in_proj_weight[20:22] *= 0.01

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = module, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0])

    model, inputs = Net().eval(), torch.randn(2, 5, 8)
    coupling = discover(model, Inputs.of(inputs))
    assert (
        Importance(model, coupling)
        .units(coupling.group("attention:units"), "l2")
        .flatten()
        .argmin()
        == 2
    )
    pruned = autoprune.prune(model, inputs, {"attention": {"technique": "heads", "ratio": 0.25}})
    kept = torch.cat([module.in_proj_weight[:4], module.in_proj_weight[6:8]])
    assert torch.equal(pruned.attention.in_proj_weight[:6], kept)
