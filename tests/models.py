"""One table of small models of every family; each row is a case of every law in `tests/laws`.

`prunable` and `refused` are the units groups that discovery must find: a wrong cut and a silent refusal both fail.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from recurrent_nets import (
    GivenStart,
    Tagger,
    cells,
    deep,
    elman,
    followed_zeros,
    laid_out_states,
    last_states,
    learned_start,
    normed_recurrent,
    packed,
    packed_states,
    projected,
    translator,
    twice,
    unbatched,
    written_zeros,
)
from torch import Tensor, nn

from autoprune.task import Inputs


@dataclass(frozen=True)
class Member:
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    prunable: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)  # group name -> a part of the reason

    def make(self) -> tuple[nn.Module, Inputs]:
        torch.manual_seed(0)
        return self.build().eval(), self.inputs()


def image(channels: int = 3, size: int = 8) -> Callable[[], Inputs]:
    return lambda: Inputs.of(torch.randn(2, channels, size, size))


def vector(width: int = 6) -> Callable[[], Inputs]:
    return lambda: Inputs.of(torch.randn(3, width))


def tokens(length: int = 5, words: int = 20) -> Callable[[], Inputs]:
    return lambda: Inputs.of(torch.randint(0, words, (3, length)))


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Net(nn.Module):
    """Convolutional stem of 12 channels, `body` as the subclass says, pooled linear head of 4 classes."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = conv(3, 12)
        self.head = nn.Linear(width, 4)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def plain() -> nn.Module:
    return nn.Sequential(
        conv(3, 8),
        nn.MaxPool2d(2),
        conv(8, 12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def flattened() -> nn.Module:
    return nn.Sequential(
        conv(3, 8),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(10, 4),
    )


class Residual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = conv(12, 10), nn.Conv2d(10, 12, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(x + self.outer(self.inner(x)))


class Projection(Net):
    """Identity residual and projection residual, with an in-place addition."""

    def __init__(self) -> None:
        super().__init__(16)
        self.one, self.two, self.short = (
            conv(12, 16, stride=2),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Conv2d(12, 16, 1, stride=2),
        )
        self.three = conv(16, 16)

    def body(self, x: Tensor) -> Tensor:
        out = self.two(self.one(x))
        out += self.short(x)
        return out + self.three(out)


class Dense(Net):
    """Batch norm before convolution over concatenated channels, as DenseNet."""

    def __init__(self) -> None:
        super().__init__(12 + 6 + 6)
        self.norm1, self.conv1 = nn.BatchNorm2d(12), nn.Conv2d(12, 6, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(18), nn.Conv2d(18, 6, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(24)

    def body(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        return F.relu(self.norm3(x))


class InvertedResidual(Net):
    """MobileNet V2: expand, depthwise (twice as many filters as inputs in `wide`), project, add; ReLU6."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = (
            nn.Conv2d(12, 18, 1),
            nn.Conv2d(18, 18, 3, padding=1, groups=18),
        )
        self.project, self.wide = nn.Conv2d(18, 12, 1), nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.last = nn.Conv2d(24, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        x = x + self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return self.last(self.wide(x))


class Grouped(Net):
    """ResNeXt: a grouped convolution between two dense ones, and one with other widths in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(12, 16, 1), conv(16, 16, groups=4), conv(16, 12, 1)
        self.four = nn.Conv2d(12, 18, 3, padding=1, groups=3)
        self.five = nn.Conv2d(18, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.five(self.four(x + self.three(self.two(self.one(x)))))


class SqueezeExcite(Net):
    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite, self.after = (
            nn.Conv2d(12, 6, 1),
            nn.Conv2d(6, 12, 1),
            nn.Conv2d(12, 12, 1),
        )

    def body(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.after(gate * x)


class SpatialGate(Net):
    """CBAM's spatial gate: one channel that multiplies all others, and couples none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.after = nn.Conv2d(12, 1, 3, padding=1), nn.Conv2d(12, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.after(x * torch.sigmoid(self.gate(x)))


def saturating() -> nn.Module:
    """Activations that are not zero at zero: producer masking would be wrong here."""
    return nn.Sequential(
        nn.Conv2d(3, 10, 3),
        nn.Sigmoid(),
        nn.Conv2d(10, 12, 3),
        nn.Hardswish(inplace=True),
        nn.Conv2d(12, 8, 1),
        nn.Hardsigmoid(),
        nn.PReLU(8),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 14),
        nn.BatchNorm1d(14),
        nn.GELU(),
        nn.Linear(14, 10),
        nn.Tanh(),
        nn.Linear(10, 4),
    )


class Mixer(nn.Module):
    """MLP-Mixer: linear layers over tokens, then over channels; the mixing over tokens is not cut, its channels are."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.over, self.back = nn.Linear(5, 12), nn.Linear(12, 5)
        self.up, self.down, self.head = nn.Linear(8, 14), nn.Linear(14, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.back(F.gelu(self.over(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class SquareTied(nn.Module):
    """A tied weight that is square: its two dimensions must not be taken for one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.mix.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(self.words(words % 12))).mean(1))


class Shuffled(Net):
    """ShuffleNet V2: split by chunk, work on one half, concatenate, shuffle by view and transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(6, 8, 1), nn.Conv2d(8, 6, 1)
        self.after = nn.Conv2d(12, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.two(self.one(right))], 1)
        batch, channels, height, width = x.shape
        x = (
            x.view(batch, 2, channels // 2, height, width)
            .transpose(1, 2)
            .reshape(batch, channels, height, width)
        )
        return self.after(x)


def shuffle_module() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.ChannelShuffle(2),
        nn.Conv2d(12, 12, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.GroupNorm(3, 12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3),
        nn.GroupNorm(1, 8),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def instance_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.InstanceNorm2d(12, affine=True),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def instance_norm_plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.InstanceNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 14),
        nn.LayerNorm(14),
        nn.ReLU(),
        nn.Linear(14, 10),
        nn.RMSNorm(10),
        nn.Linear(10, 4),
    )


class ConvNeXt(Net):
    """Depthwise, layer norm over the last dimension, two linear layers, layer scale, residual."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.LayerNorm(12)
        self.up, self.down, self.scale = (
            nn.Linear(12, 20),
            nn.Linear(20, 12),
            nn.Parameter(torch.full((12, 1, 1), 0.5)),
        )

    def body(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.scale * self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv(3, 8), conv(8, 12)
        self.up = nn.ConvTranspose2d(12, 10, 2, stride=2)
        self.join, self.out = conv(18, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down1(x)
        up = self.up(self.down2(F.max_pool2d(skip, 2)))
        x = self.join(torch.cat([F.interpolate(up, scale_factor=1.0, mode="bilinear"), skip], 1))
        return self.out(x)


class TransposedDepthwise(Net):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.after = (
            nn.ConvTranspose2d(12, 12, 2, stride=2, groups=12),
            nn.Conv2d(12, 12, 1),
        )

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.up(x))


class TransposedGrouped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.after = (
            nn.ConvTranspose2d(12, 12, 2, stride=2, groups=3),
            nn.Conv2d(12, 12, 1),
        )

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.up(x))


class OptionA(Net):
    """The parameter-free shortcut of CIFAR ResNets: strided, padded with zero channels on both sides."""

    def __init__(self) -> None:
        super().__init__(20)
        self.one, self.two = conv(12, 20, stride=2), nn.Conv2d(20, 20, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(self.two(self.one(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))


class SharedModule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.after = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 10, 1)
        self.head = nn.Linear(10, 4)

    def body(self, x: Tensor) -> Tensor:
        return self.after(F.relu(self.twice(F.relu(self.twice(x)))))


class TiedWeights(nn.Module):
    """Two linear layers hold one weight; an autoencoder's transposed use of it is not tied here."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 10), nn.Linear(10, 10)
        self.second.weight = self.first.weight
        self.enter, self.head = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(F.relu(self.enter(x)))))))


class SeveralInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.extra, self.joined, self.head = (
            conv(3, 8),
            nn.Linear(6, 10),
            nn.Linear(18, 12),
            nn.Linear(12, 4),
        )

    def forward(self, picture: Tensor, facts: Tensor) -> Tensor:
        joined = torch.cat([self.image(picture).mean((2, 3)), F.relu(self.extra(facts))], dim=-1)
        return self.head(F.relu(self.joined(joined)))


class DictInOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = conv(3, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1)
        self.classes = nn.Linear(6, 3)

    def forward(self, pixels: Tensor, weight: Tensor | None = None) -> dict[str, Any]:
        x = self.trunk(pixels) if weight is None else self.trunk(pixels) * weight
        return {
            "logits": self.classes(self.left(x).mean((2, 3))),
            "maps": [self.right(x)],
            "none": None,
        }


@dataclass
class Answer:
    boxes: Tensor
    rest: dict[str, Tensor]


class Objects(nn.Module):
    """Gives a data class, which no tree utility of torch looks into."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.left, self.right = conv(3, 8), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Answer:
        x = self.trunk(x)
        return Answer(self.left(x), {"right": self.right(x)})


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.head = (
            nn.Embedding(20, 12),
            nn.Linear(12, 10),
            nn.Linear(10, 3),
        )

    def forward(self, words: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.words(words)).mean(1)))


class TiedEmbedding(nn.Module):
    """The last layer's weight is the embedding's, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.hidden, self.words_out = (
            nn.Embedding(20, 12),
            nn.Linear(12, 10),
            nn.Linear(12, 20),
        )
        self.back = nn.Linear(10, 12)
        self.words_out.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.words_out(self.back(F.relu(self.hidden(self.words(words)))))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(20, 6), kind(6, 8, batch_first=True)
        self.hidden, self.head = nn.Linear(8, 10), nn.Linear(10, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.rnn(self.words(words))[0][:, -1])))


def LSTM() -> nn.Module:
    return Recurrent(nn.LSTM)


def GRU() -> nn.Module:
    return Recurrent(nn.GRU)


def one_dimension() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 8, 3),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 10, 3),
        nn.PReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


def three_dimensions() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1),
        nn.BatchNorm3d(8),
        nn.MaxPool3d(2),
        nn.Conv3d(8, 10, 1),
        nn.ELU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    )


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 20, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.enter, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.enter(x)).mean(1))


class Positions(nn.Module):
    """A parameter added to a stream is cut with it; a parameter joined to it as a token freezes it."""

    def __init__(self, token: bool = False) -> None:
        super().__init__()
        self.enter, self.up, self.down, self.head = (
            nn.Linear(6, 8),
            nn.Linear(8, 12),
            nn.Linear(12, 8),
            nn.Linear(8, 3),
        )
        self.where = nn.Parameter(0.1 * torch.randn(1, 6 if token else 5, 8))
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, 8)) if token else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.where
        return self.head((x + self.down(F.gelu(self.up(x))))[:, 0])


def token() -> nn.Module:
    return Positions(token=True)


class HandAttention(nn.Module):
    """One head written out: query and key keep their width (it is in the scale), value may be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.query, self.key, self.value = (
            nn.Linear(6, 12),
            nn.Linear(12, 8),
            nn.Linear(12, 8),
            nn.Linear(12, 10),
        )
        self.out, self.head = nn.Linear(10, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        scores = (self.query(x) @ self.key(x).transpose(1, 2)) * 8**-0.5
        return self.head((x + self.out(scores.softmax(-1) @ self.value(x))).mean(1))


class ScaledAttention(HandAttention):
    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        mixed = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.head((x + self.out(mixed)).mean(1))


def weight_normed() -> nn.Module:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 12, 3, padding=1))
    return nn.Sequential(
        conv(3, 8),
        normed,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )


class Function(Net):
    """`work(x, self)` between a stem of `width` channels and a last convolution of `left` input channels."""

    def __init__(self, work: Callable[[Tensor], Tensor], width: int = 12, left: int = 12) -> None:
        super().__init__()
        self.work = work
        self.stem, self.after = conv(3, width), nn.Conv2d(left, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        return self.after(self.work(x))


class BufferWritten(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(12))
        self.after = nn.Conv2d(12, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        self.last.copy_(x.mean((0, 2, 3)))
        return self.after(x + self.last.view(1, -1, 1, 1))


class InputCoupled(nn.Module):
    """The last convolution is added to the network's input: neither may lose a channel; the inner one may."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = conv(3, 8), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x))


class UnbatchedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.two(F.relu(self.one(row))).mean((1, 2)) for row in x]
        return self.head(torch.stack(rows))


class KeywordCalls(Net):
    """Functional calls with keyword arguments on the module's own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.after = (
            nn.Conv2d(12, 10, 3),
            nn.BatchNorm2d(10),
            nn.Conv2d(10, 12, 1),
        )

    def body(self, x: Tensor) -> Tensor:
        x = F.conv2d(input=x, weight=self.one.weight, bias=self.one.bias, padding=1)
        x = F.batch_norm(
            x,
            running_mean=self.norm.running_mean,
            running_var=self.norm.running_var,
            weight=self.norm.weight,
            bias=self.norm.bias,
            training=False,
        )
        return F.conv2d(input=x, weight=self.after.weight, bias=self.after.bias)


def _half(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return x[:, :half] * torch.sigmoid(x[:, half:])


def _overwritten(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], x.shape[1], *x.shape[2:])
    out[:, :6] = x[:, :6]
    return out


OUTPUT = "network's output"
LITERAL = "written into the code"
FAILS = "does not run after the cut"
DIFFERS = "cut and masked model differ"


def net(
    build: Callable[[], nn.Module],
    *prunable: str,
    inputs: Callable[[], Inputs] | None = None,
    name: str | None = None,
    **refused: str,
) -> Member:
    """A member that ends in a linear layer `head`, or gives its output layers in `refused` (`__` stands for a dot)."""
    reasons = {
        layer.replace("__", "."): reason
        for layer, reason in ({"head": OUTPUT} | refused).items()
        if reason
    }
    return Member(name or build.__name__, build, inputs or image(), prunable, reasons)


def function(
    name: str,
    work: Callable[[Tensor], Tensor],
    reason: str | None = None,
    *,
    width: int = 12,
    left: int = 12,
) -> Member:
    """The stem of a `Function` net is prunable, or refused for `reason`."""
    kept = ("stem.0", "after") if reason is None else ("after",)
    return Member(
        name,
        lambda: Function(work, width, left),
        image(),
        kept,
        {"head": OUTPUT} | ({"stem.0": reason} if reason is not None else {}),
    )


def sequences() -> Inputs:
    return Inputs.of(torch.randn(2, 5, 6))


MEMBERS: tuple[Member, ...] = (
    Member("plain", plain, image(), ("0.0", "2.0"), {"5": OUTPUT}),
    Member("flattened", flattened, image(), ("0.0", "3"), {"6": OUTPUT}),
    net(Residual, "stem.0", "inner.0"),
    net(Projection, "stem.0", "one.0", "two"),
    net(Dense, "stem.0", "conv1", "conv2"),
    net(InvertedResidual, "stem.0", "expand", "last"),
    net(Grouped, "stem.0", "one.0", "two.0", "four", "five"),
    net(SqueezeExcite, "stem.0", "squeeze", "after"),
    net(SpatialGate, "stem.0", "after", gate="spread over other channels"),
    Member("saturating", saturating, image(), ("0", "2", "4"), {"9": OUTPUT}),
    Member("perceptron", perceptron, vector(), ("0", "3"), {"5": OUTPUT}),
    net(Shuffled, "stem.0", "one.0", "after"),
    Member("shuffle_module", shuffle_module, image(), ("0", "2"), {"6": OUTPUT}),
    Member("group_norm", group_norm, image(), ("0", "3"), {"8": OUTPUT}),
    Member("instance_norm", instance_norm, image(), ("0", "3"), {"6": OUTPUT}),
    Member("instance_norm_plain", instance_norm_plain, image(), ("0", "3"), {"6": OUTPUT}),
    Member("layer_norm", layer_norm, vector(), ("0", "3"), {"5": OUTPUT}),
    net(ConvNeXt, "stem.0", "up"),
    net(UNet, "down1.0", "down2.0", "up", "join.0", head="", out=OUTPUT),
    net(TransposedDepthwise, "stem.0", "after"),
    net(TransposedGrouped, "after", stem__0="grouped transposed", up="grouped transposed"),
    net(OptionA, "stem.0", "one.0"),
    net(SharedModule, "stem.0", "after"),
    net(TiedWeights, "enter", inputs=vector()),
    net(TiedEmbedding, "words", "hidden", inputs=tokens(), head=""),
    net(SquareTied, "words", inputs=tokens()),
    net(
        Mixer, "enter", "up", inputs=sequences, over="beside a dimension", back="beside a dimension"
    ),
    net(
        SeveralInputs,
        "image.0",
        "extra",
        "joined",
        inputs=lambda: Inputs.of((torch.randn(2, 3, 8, 8), torch.randn(2, 6))),
    ),
    net(
        DictInOut,
        "trunk.0",
        "left",
        head="",
        classes=OUTPUT,
        right=OUTPUT,
        inputs=lambda: Inputs.of(
            {"pixels": torch.randn(2, 3, 8, 8), "weight": torch.rand(2, 1, 1, 1)}
        ),
    ),
    net(Objects, "trunk.0", head="", left=OUTPUT, right=OUTPUT),
    net(Text, "words", "hidden", inputs=tokens()),
    net(LSTM, "words", "rnn", "hidden", inputs=tokens()),
    net(GRU, "words", "rnn", "hidden", inputs=tokens()),
    *(
        net(build, "words", "rnn", inputs=tokens())
        for build in (
            elman,
            deep,
            packed,
            packed_states,
            last_states,
            laid_out_states,
            translator,
            learned_start,
            unbatched,
            followed_zeros,
        )
    ),
    net(projected, "words", "rnn", "rnn.weight_hr_l0", inputs=tokens()),
    net(cells, "words", "lstm", "gru", "start", inputs=tokens()),
    net(twice, "words", "up", inputs=tokens()),
    net(written_zeros, "words", inputs=tokens(), rnn=FAILS),
    net(
        normed_recurrent, "after", inputs=tokens(), words="computed weights", rnn="computed weights"
    ),
    net(Tagger, "enter", inputs=sequences, head="", rnn="one size for its 2 layers"),
    net(
        GivenStart,
        "enter",
        inputs=lambda: Inputs.of((torch.randn(2, 5, 6), torch.randn(2, 8))),
        rnn="network's input",
    ),
    net(
        Transformer,
        "enter",
        "encoder.layers.0.self_attn",
        "encoder.layers.0.linear1",
        "encoder.layers.1.self_attn",
        "encoder.layers.1.linear1",
        inputs=sequences,
    ),
    net(Positions, "enter", "up", inputs=sequences),
    net(token, "enter", "up", inputs=sequences),
    net(
        HandAttention,
        "enter",
        "value",
        inputs=sequences,
        query="product of activations",
        key="product of activations",
    ),
    net(
        ScaledAttention,
        "enter",
        "value",
        inputs=sequences,
        query="width of the attention",
        key="width of the attention",
    ),
    Member("weight_normed", weight_normed, image(), ("0.0", "1", "5"), {"7": OUTPUT}),
    Member(
        "one_dimension",
        one_dimension,
        lambda: Inputs.of(torch.randn(2, 3, 16)),
        ("0", "3"),
        {"7": OUTPUT},
    ),
    Member(
        "three_dimensions",
        three_dimensions,
        lambda: Inputs.of(torch.randn(2, 3, 4, 6, 6)),
        ("0", "3"),
        {"7": OUTPUT},
    ),
    net(BufferWritten, "after", stem__0="written into a buffer"),
    net(InputCoupled, "inner.0", head="", outer="network's input"),
    net(UnbatchedConv, "one", "two"),
    net(KeywordCalls, "stem.0", "one", "after"),
    # the same code after a cut: right where the bounds follow the width, refused where they are written down
    function("half_of_shape", _half, left=6),
    function("chunk", lambda x: torch.mul(*x.chunk(2, 1)), left=6),
    function("unflatten", lambda x: x.unflatten(1, (3, -1)).flatten(1, 2)),
    function("flip", lambda x: x.flip(1)),
    function(
        "repeat", lambda x: torch.cat([x.repeat(1, 2, 1, 1), x.repeat_interleave(2, 1)], 1), left=48
    ),
    function("stack", lambda x: torch.stack([x, 2 * x], 2).flatten(1, 2), left=24),
    function("pad_channels", lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), left=15),
    function("slice_middle", lambda x: x[:, 3:9], left=6),
    function("slice_half", lambda x: x[:, :6], left=6),
    function("slice_step", lambda x: x[:, ::2], "slice over channels", left=6),
    function("select", lambda x: x[:, 0:1] * x),
    function("split_number", lambda x: torch.mul(*x.split(6, 1)), left=6),
    function("split_swapped", lambda x: torch.cat(x.split(6, 1)[::-1], 1)),
    function("split_uneven", lambda x: torch.cat(x.split([4, 8], 1)[::-1], 1)),
    function("view_number", lambda x: x.view(x.shape[0], 12, -1).view(x.shape)),
    function("view_batch", lambda x: x.reshape(-1, 12, 8, 8)),
    function("expand_number", lambda x: x * x.mean((2, 3), keepdim=True).expand(-1, 12, -1, -1)),
    function("roll", lambda x: x.roll(1, 1), "roll over channels"),
    function("index", lambda x: x[:, torch.tensor([0, 3, 5])], "index over channels", left=3),
    function("written_into_part", _overwritten, "does not run after the cut"),
    function("width_in_scale", lambda x: x * x.shape[1] ** -0.5),
    function("counted", lambda x: x * torch.arange(x.shape[1]).view(1, -1, 1, 1), DIFFERS),
    # operators across channels are refused by name; along other dimensions they pass
    function("mean_channels", lambda x: x - x.mean(1, keepdim=True)),
    function("softmax_channels", lambda x: x.softmax(1), "softmax"),
    function("normalize_channels", lambda x: F.normalize(x, dim=1)),
    function(
        "topk_channels",
        lambda x: x.permute(0, 2, 3, 1).topk(6)[0].permute(0, 3, 1, 2),
        "topk",
        left=6,
    ),
    function(
        "sort_channels", lambda x: x.permute(0, 2, 3, 1).sort()[0].permute(0, 3, 1, 2), "sort"
    ),
    function("cumsum_channels", lambda x: x.cumsum(1), "cumsum"),
    function("glu_channels", lambda x: F.glu(x, 1), left=6),
    function(
        "unfolded",
        lambda x: F.unfold(x, 3, padding=1).view(x.shape[0], -1, 8, 8),
        "mixed with others",
        width=4,
        left=36,
    ),
    function(
        "gram", lambda x: torch.einsum("nchw,ndhw->ncd", x, x)[..., None], "product of activations"
    ),
    function("read_as_number", lambda x: x * x.sum().item(), "_local_scalar_dense"),
    function("local_response", lambda x: F.local_response_norm(x, 3), "avg_pool3d"),
    function("norm_of_pixels", lambda x: x / x.norm(2, dim=(2, 3), keepdim=True)),
    function("softmax_of_pixels", lambda x: x.flatten(2).softmax(-1).view_as(x)),
    function("deviation", lambda x: x / x.std((2, 3), keepdim=True)),
    function("einsum", lambda x: torch.einsum("nchw,nc->nchw", x, x.mean((2, 3)))),
    function(
        "where", lambda x: torch.where(x > 0.5, x, torch.zeros_like(x)).masked_fill(x > 1, 0.5)
    ),
    function("moved_mask", lambda x: x * (x > 0.3).permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    function(
        "joined_with_integers",
        lambda x: torch.cat([x, torch.full((x.shape[0], 2, 8, 8), 5)], 1),
        left=14,
    ),
    function("in_place", lambda x: x.clone().relu_().clone().unsqueeze_(0).squeeze_(0).add_(1)),
    function(
        "through_a_view", lambda x: (y := 2 * x, y.view(x.shape[0], x.shape[1], -1).add_(1))[0]
    ),
    function(
        "channels_last_pool",
        lambda x: F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1),
    ),
    function(
        "reflect",
        lambda x: F.interpolate(F.pad(x, (1, 1, 1, 1), mode="reflect"), size=5, mode="bicubic"),
    ),
)


def member(name: str) -> Member:
    return next(row for row in MEMBERS if row.name == name)
