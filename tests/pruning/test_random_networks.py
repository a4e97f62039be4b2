"""Random small networks: whatever the blocks and their order, cut equals masked, or the group is refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autoprune.pruning.coupling.masked_reference import masked_outputs
from autoprune.pruning.coupling.verify import TOLERANCE, discover, random_keep, relative_error
from autoprune.pruning.surgery.forward import outputs_of
from autoprune.task import Inputs

WIDTH = 12


class Block(nn.Module):
    """12 channels in, 12 out."""

    def __init__(self, work: Callable[[Block, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.work = work
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.work(self, x)


def conv(inputs: int, outputs: int, groups: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups)


def _shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


def _scanned(block: Block, x: Tensor) -> Tensor:
    """A recurrent layer over the pixels, row by row."""
    return block.a(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, x.shape[2:])


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _fused(block: Block, x: Tensor) -> Tensor:
    """Attention of three heads with query, key and value in one projection, its widths written down."""
    q, k, v = block.a(_tokens(x)).reshape(x.shape[0], -1, 3, 3, 4).permute(2, 0, 3, 1, 4)
    out = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
    return x + block.b(out.transpose(1, 2).reshape(x.shape[0], -1, 12)).transpose(1, 2).reshape(
        x.shape
    )


def _attention(block: Block, x: Tensor) -> Tensor:
    tokens = block.n(_tokens(x))
    return x + block.a(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(
        x.shape
    )


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(conv(WIDTH, WIDTH), nn.BatchNorm2d(WIDTH), nn.ReLU()),
    "residual": lambda: Block(
        lambda m, x: F.relu(x + m.b(F.silu(m.a(x)))), a=conv(WIDTH, 8), b=conv(8, WIDTH)
    ),
    "concatenate": lambda: Block(
        lambda m, x: m.b(torch.cat([m.a(x), x], 1)), a=conv(WIDTH, 6), b=conv(18, WIDTH)
    ),
    "chunk": lambda: Block(
        lambda m, x: torch.cat([x.chunk(2, 1)[1], m.a(x.chunk(2, 1)[0])], 1), a=conv(6, 6)
    ),
    "gate": lambda: Block(lambda m, x: m.a(torch.mul(*x.chunk(2, 1)).sigmoid()), a=conv(6, WIDTH)),
    "literal": lambda: Block(lambda m, x: torch.cat([x[:, 4:], m.a(x[:, :4])], 1), a=conv(4, 4)),
    "literal_half": lambda: Block(lambda m, x: torch.cat([torch.relu(x[:, :6]), x[:, 6:]], 1)),
    "swapped": lambda: Block(lambda m, x: torch.cat(x.split(6, 1)[::-1], 1)),
    "shuffle2": lambda: Block(lambda m, x: _shuffle(x, 2)),
    "shuffle3": lambda: nn.ChannelShuffle(3),
    "depthwise": lambda: nn.Sequential(
        conv(WIDTH, WIDTH, WIDTH), nn.BatchNorm2d(WIDTH), nn.Hardswish()
    ),
    "grouped": lambda: nn.Sequential(conv(WIDTH, WIDTH, 3), nn.GELU()),
    "grouped2": lambda: conv(WIDTH, WIDTH, 2),
    "group_norm": lambda: nn.GroupNorm(3, WIDTH),
    "layer_norm": lambda: Block(
        lambda m, x: m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=nn.LayerNorm(WIDTH)
    ),
    "squeeze": lambda: Block(
        lambda m, x: x * torch.sigmoid(m.b(F.relu(m.a(x.mean((2, 3))))))[..., None, None],
        a=nn.Linear(WIDTH, 5),
        b=nn.Linear(5, WIDTH),
    ),
    "recurrent": lambda: Block(_scanned, a=nn.GRU(WIDTH, WIDTH, 2, batch_first=True)),
    "both_ways": lambda: Block(
        _scanned, a=nn.LSTM(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True)
    ),
    "fused": lambda: Block(_fused, a=nn.Linear(WIDTH, 36), b=nn.Linear(12, WIDTH)),
    "attention": lambda: Block(
        _attention, a=nn.MultiheadAttention(WIDTH, 4, batch_first=True), n=nn.LayerNorm(WIDTH)
    ),
    "spatial": lambda: Block(lambda m, x: x * torch.sigmoid(m.a(x)), a=conv(WIDTH, 1)),
    "padded": lambda: Block(
        lambda m, x: m.b(F.pad(m.a(x), (0, 0, 0, 0, 2, 1)) + x),
        a=conv(WIDTH, 9),
        b=conv(WIDTH, WIDTH),
    ),
    "softmax": lambda: Block(lambda m, x: x.softmax(1)),
    "rolled": lambda: Block(lambda m, x: x.roll(1, 1)),
}


class Chain(nn.Module):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.stem = conv(3, WIDTH)
        self.blocks = nn.Sequential(*(BLOCKS[name]() for name in names))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
@given(
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=5),
    st.sampled_from([0.2, 0.5, 0.8]),
    st.integers(0, 9),
)
@example(["literal_half"], 0.5, 0)
@example(["both_ways", "shuffle2"], 0.2, 0)
@example(["shuffle2", "chunk", "shuffle2", "chunk"], 0.5, 1)
@example(["residual", "grouped", "shuffle3", "grouped"], 0.5, 1)
@example(["swapped", "swapped"], 0.8, 1)
@example(["fused", "shuffle2", "attention", "literal"], 0.5, 2)
@example(["recurrent", "shuffle2", "both_ways", "residual"], 0.5, 1)
def test_cut_equals_masked_or_is_refused(names: list[str], share: float, seed: int) -> None:
    torch.manual_seed(seed)
    model, inputs = Chain(names).eval(), Inputs.of(torch.randn(2, 3, 5, 5))
    coupling = discover(model, inputs)
    groups = [group for group in coupling.groups if group.level == "units"]
    assert all(layer.refusal or layer.size >= 2 for layer in groups)
    keep = {
        group.key: random_keep(coupling, group.key, share, seed)
        for group in groups
        if group.refusal is None
    }
    smaller = coupling.apply(model, keep)
    assert (
        relative_error(outputs_of(smaller, inputs), masked_outputs(model, inputs, coupling, keep))
        <= TOLERANCE
    )


def test_each_block_alone_is_cut_or_refused_as_it_should() -> None:
    refused = {"softmax", "rolled"}
    found = set()
    for name in BLOCKS:
        coupling = discover(Chain([name]).eval(), Inputs.of(torch.randn(2, 3, 5, 5)))
        stem = next(group for group in coupling.groups if "stem" in group.layers)
        if stem.refusal:
            found.add(name)
    assert found == refused
