"""Small models of our own for benchmarks/coverage: the families that no model library covers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        nn.SiLU(),
    )


class Recurrent(nn.Module):
    """Embedding, nn.LSTM or nn.GRU, linear head on the last step."""

    def __init__(self, kind: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.rnn = kind(32, 48, **options)
        width = options.get("proj_size") or 48
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.rnn.batch_first:
            return self.head(self.rnn(x)[0][:, -1])
        return self.head(self.rnn(x.transpose(0, 1))[0][-1])


class Encoder(nn.Module):
    """Linear, nn.TransformerEncoder, mean, linear."""

    def __init__(
        self, width: int = 64, layers: int = 2, heads: int = 4, hidden: int = 128, **options: Any
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(16, width)
        layer = nn.TransformerEncoderLayer(width, heads, hidden, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(16, 64), nn.Linear(12, 64)
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(64, 4, 128, batch_first=True), 2
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.head(self.decoder(self.embed(x), self.memory(memory)))


class Seq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(40, 64), nn.Embedding(40, 64)
        self.transformer = nn.Transformer(64, 4, 1, 1, 128, batch_first=True)
        self.head = nn.Linear(64, 40)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.transformer(self.source(source), self.target(target)))


class FusedAttention(nn.Module):
    """One linear layer for q, k and v; reshape and permute; as in timm and nanoGPT."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(out.transpose(1, 2).reshape(b, n, -1))


class FusedNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(16, 64), nn.Linear(64, 10)
        self.blocks = nn.Sequential(FusedAttention(), FusedAttention())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.second(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 64, 8, 8), nn.Linear(64, 10)
        self.blocks = nn.Sequential(MixerBlock(16, 64), MixerBlock(16, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class UNet(nn.Module):
    """Two levels, transposed convolutions upwards, concatenated skips."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.deep = conv(3, 16), conv(16, 32), conv(32, 64)
        self.up_two, self.up_one = (
            nn.ConvTranspose2d(64, 32, 2, 2),
            nn.ConvTranspose2d(32, 16, 2, 2),
        )
        self.back_two, self.back_one, self.out = conv(64, 32), conv(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        deep = self.deep(F.max_pool2d(two, 2))
        two = self.back_two(torch.cat([self.up_two(deep), two], 1))
        return self.out(self.back_one(torch.cat([self.up_one(two), one], 1)))


class C2f(nn.Module):
    """YOLOv8's block: split in two, a chain on the second half, concatenate every step."""

    def __init__(self, inputs: int, outputs: int, steps: int = 2) -> None:
        super().__init__()
        self.middle = outputs // 2
        self.enter, self.leave = (
            conv(inputs, 2 * self.middle, 1),
            conv((2 + steps) * self.middle, outputs, 1),
        )
        self.steps = nn.ModuleList(conv(self.middle, self.middle) for _ in range(steps))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            parts.append(parts[-1] + step(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Yolo(nn.Module):
    """Backbone of two scales, top-down neck, one output per scale, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.low = (
            conv(3, 16, stride=2),
            nn.Sequential(conv(16, 32, stride=2), C2f(32, 32)),
        )
        self.high = nn.Sequential(conv(32, 64, stride=2), C2f(64, 64))
        self.neck = C2f(96, 32)
        self.head_low, self.head_high = nn.Conv2d(32, 15, 1), nn.Conv2d(64, 15, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(self.stem(x))
        high = self.high(low)
        low = self.neck(torch.cat([low, F.interpolate(high, scale_factor=2.0)], 1))
        return {"low": self.head_low(low), "high": self.head_high(high)}


def conv1d() -> nn.Module:
    return nn.Sequential(
        *[nn.Conv1d(4, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(2)],
        *[nn.Conv1d(32, 64, 3, padding=1, groups=4), nn.GroupNorm(8, 64), nn.ReLU()],
        *[
            nn.Conv1d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        ],
    )


def conv3d() -> nn.Module:
    return nn.Sequential(
        *[nn.Conv3d(3, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2)],
        *[
            nn.Conv3d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        ],
    )


def normed(norm: str) -> nn.Module:
    apply: Any = {"weight": weight_norm, "spectral": spectral_norm}[norm]
    return nn.Sequential(
        *[
            apply(nn.Conv2d(3, 24, 3, padding=1)),
            nn.ReLU(),
            apply(nn.Conv2d(24, 32, 3, padding=1)),
            nn.ReLU(),
        ],
        *[
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            apply(nn.Linear(32, 48)),
            nn.ReLU(),
            nn.Linear(48, 10),
        ],
    )


def pixel_shuffle() -> nn.Module:
    return nn.Sequential(
        *[
            nn.Conv2d(3, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.PixelShuffle(2),
        ],
        *[
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 12, 3, padding=1),
            nn.PixelShuffle(2),
        ],
    )


class SharedWeights(nn.Module):
    """One block applied three times, and a head that is the embedding transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(60, 32), nn.Linear(32, 60, bias=False)
        self.head.weight = self.embed.weight
        self.block = nn.Sequential(
            nn.LayerNorm(32), nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 32)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(x)


class TwoInputs(nn.Module):
    """An image and a vector by keyword, a dictionary back."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = (
            nn.Sequential(conv(3, 24), conv(24, 32)),
            nn.Sequential(nn.Linear(7, 48), nn.ReLU()),
        )
        self.joint = nn.Sequential(nn.Linear(80, 64), nn.ReLU())
        self.label, self.score = nn.Linear(64, 5), nn.Linear(64, 1)

    def forward(self, image: Tensor, table: Tensor) -> dict[str, Tensor]:
        x = self.joint(torch.cat([self.image(image).mean((2, 3)), self.table(table)], 1))
        return {"label": self.label(x), "score": self.score(x)}


class Thousand(nn.Module):
    """Residual net of 1,000 convolutions."""

    def __init__(self, blocks: int = 500, width: int = 16) -> None:
        super().__init__()
        self.stem, self.head = conv(3, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(width, width), conv(width, width)) for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))
