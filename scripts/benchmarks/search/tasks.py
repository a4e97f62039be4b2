"""The tasks of benchmarks/search: nets, data read from a folder, how the dense net and the pruned
ones are trained.

The folder holds CIFAR10 (lossless WebP sheets of 25 x 40 images, index.tsv.xz), FashionMNIST/raw
(the publisher's four .gz files), FSDD/fsdd.npz (all recordings end to end) and
weights/resnet20-12fca82f.th (akamaster's CIFAR ResNet-20).
"""

from __future__ import annotations

import functools
import gzip
import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autoprune.task import Data, Metric, Recipe, Task
from autoprune.zoo.datasets.digits import digits
from autoprune.zoo.metrics import accuracy
from autoprune.zoo.models.digits_cnn import digits_cnn
from scripts.benchmarks.repair import vgg

WIDTHS = ("structured", "neuron", "heads")
TECHNIQUES = (*WIDTHS, "depth")  # what makes a net faster on ONNX Runtime


@dataclass(frozen=True)
class Case:
    """A task: its net (`output` is the layer that stays whole), its data, and what training it
    gets.

    `epochs` is what every method may spend on each cell, `trial` what random search and TPE spend
    on one plan. `ours` are the settings of autoprune's own search: `trials` and `finalists` of
    Settings, `epochs` of recovery of each plan trained, `techniques`, `criteria`, `ratio` and
    `share` of its space, `multiple_of` of widths.
    """

    name: str
    build: Callable[[], nn.Module]
    data: Callable[[Path], Data]
    output: str
    dense: Recipe
    epochs: int
    trial: int
    ours: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None  # in the data's folder; the net is trained by `dense` without them
    learning_rate: float = 1e-3  # of the recovery

    def task(self, folder: Path) -> Task:
        """The task with its data read."""
        return Task(
            self.build,
            self.data(folder),
            F.cross_entropy,
            Metric("accuracy", accuracy),
            self.dense,
            description={},
        )

    def recipe(self, epochs: int) -> Recipe:
        """The recovery, the same for all methods."""
        return Recipe(
            epochs=epochs,
            batch_size=64,
            device="cpu",
            learning_rate=self.learning_rate,
            distill=0.5,
        )


# --- nets


class _Basic(nn.Module):
    """A block of CIFAR's ResNet; where it halves the image, the path is option A written as a 1 x 1
    convolution.

    Option A takes every second pixel and puts zeros in the new channels, a half on either side. As
    a convolution of zeros and ones it computes the same, and the widths on its two sides can be
    pruned apart.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.path: nn.Module = nn.Identity()
        if stride != 1:
            self.path = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            before = (outputs - inputs) // 2
            with torch.no_grad():
                self.path.weight.copy_(
                    F.pad(torch.eye(inputs), (0, 0, before, before))[:, :, None, None]
                )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.path(x))


class ResNet20(nn.Module):
    """He et al. 2015 (arXiv:1512.03385), 4.2; the names of akamaster's weights. (N, 3, 32, 32) ->
    (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(_Basic(16, 16, 1), _Basic(16, 16, 1), _Basic(16, 16, 1))
        self.layer2 = nn.Sequential(_Basic(16, 32, 2), _Basic(32, 32, 1), _Basic(32, 32, 1))
        self.layer3 = nn.Sequential(_Basic(32, 64, 2), _Basic(64, 64, 1), _Basic(64, 64, 1))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _conv(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def mobilenet() -> nn.Module:
    """Depthwise separable convolutions (Howard et al. 2017, arXiv:1704.04861); (N, 1, 28, 28) ->
    (N, 10)."""
    layers = _conv(1, 64, 3, 2)
    for inputs, outputs, stride in (
        (64, 128, 1),
        (128, 256, 2),
        (256, 512, 1),
        (512, 512, 1),
        (512, 512, 1),
    ):
        layers += _conv(inputs, inputs, 3, stride, inputs) + _conv(inputs, outputs, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class SpokenLSTM(nn.Module):
    """Two LSTM layers over frames, the last state classified; (N, frames, bands) -> (N, 10)."""

    def __init__(self, bands: int = 40, width: int = 160) -> None:
        super().__init__()
        self.lstm1, self.lstm2 = (
            nn.LSTM(bands, width, batch_first=True),
            nn.LSTM(width, width, batch_first=True),
        )
        self.hidden, self.fc = nn.Linear(width, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm2(self.lstm1(x)[0])[0].mean(1)
        logits: Tensor = self.fc(F.relu(self.hidden(x)))
        return logits


class _Encoder(nn.Module):
    """Attention and a perceptron, each behind a layer norm and around an identity path."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        inner: Tensor = self.mlp(self.norm2(x))
        return x + inner


class ViT(nn.Module):
    """Dosovitskiy et al. 2020 (arXiv:2010.11929), small, with averaged tokens; (N, 1, 28, 28) ->
    (N, 10)."""

    def __init__(self, width: int = 256, depth: int = 4, heads: int = 8, patch: int = 7) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.place = nn.Parameter(0.02 * torch.randn(1, (28 // patch) ** 2, width))
        self.blocks = nn.Sequential(*(_Encoder(width, heads, 2 * width) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.fc(self.norm(self.blocks(x)).mean(1))
        return logits


# --- data


class Shifted(TensorDataset):
    """Images with labels, each shifted by up to 4 pixels and mirrored half of the time, as CIFAR is
    trained with."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = super().__getitem__(index)
        down, right, mirrored = (int(torch.randint(most, ())) for most in (9, 9, 2))
        image = F.pad(image, (4, 4, 4, 4))[
            :, down : down + image.shape[1], right : right + image.shape[2]
        ]
        return image.flip(2) if mirrored else image, label


def _sets(*parts: tuple[Tensor, Tensor]) -> Data:
    return Data(*(TensorDataset(images.contiguous(), labels) for images, labels in parts))


def _sheets(folder: Path, batch: str, labels: list[list[str]]) -> tuple[Tensor, Tensor]:
    """The 10,000 images of a batch, 0..1, and their labels."""
    from PIL import Image

    sheets = [
        np.asarray(Image.open(folder / f"{batch}.{k}.webp").convert("RGB")) for k in range(10)
    ]
    tiles = [
        sheet.reshape(25, 32, 40, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for sheet in sheets
    ]
    images = torch.from_numpy(np.concatenate(tiles)).permute(0, 3, 1, 2).float() / 255
    return images, torch.tensor([int(label) for part, _, label, _ in labels if part == batch])


@functools.cache
def cifar10(folder: Path, train: int, validation: int) -> Data:
    """The first images of the training set to train with, the next to validate, all of the test
    set."""
    folder = folder / "CIFAR10"
    index = [
        line.split("\t")
        for line in lzma.decompress((folder / "index.tsv.xz").read_bytes()).decode().splitlines()
    ]
    need = math.ceil((train + validation) / 10_000)
    parts = [_sheets(folder, f"data_batch_{number + 1}", index) for number in range(need)]
    images, labels = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def normal(given: Tensor) -> Tensor:
        return (given - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)

    test, answers = _sheets(folder, "test_batch", index)
    whole = slice(train, train + validation)
    plain = _sets(
        (normal(images[:train]), labels[:train]),
        (normal(images[whole]), labels[whole]),
        (normal(test), answers),
    )
    return replace(plain, train=Shifted(*plain.train.tensors))


def _idx(path: Path) -> Tensor:
    """A file of the MNIST format: images after 16 bytes of header, labels after 8."""
    content, images = gzip.decompress(path.read_bytes()), "images" in path.name
    values = torch.frombuffer(bytearray(content[16 if images else 8 :]), dtype=torch.uint8)
    return (values.view(-1, 1, 28, 28).float() / 255 - 0.286) / 0.353 if images else values.long()


@functools.cache
def fashion(folder: Path, train: int = 10_000, validation: int = 2_000) -> Data:
    """The first images of the training set to train with, the next to validate, all of the test
    set."""
    raw = folder / "FashionMNIST" / "raw"
    images, labels = (
        _idx(raw / f"train-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1")
    )
    test, answers = (_idx(raw / f"t10k-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    whole = slice(train, train + validation)
    return _sets((images[:train], labels[:train]), (images[whole], labels[whole]), (test, answers))


def _mel(bands: int, bins: int, rate: int) -> Tensor:
    """Triangles that are even on the mel scale, (bands, bins)."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    places = (
        (700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)) / (rate / 2) * (bins - 1)
    )
    low, middle, high = places[:-2, None], places[1:-1, None], places[2:, None]
    bin_ = torch.arange(bins)
    return torch.minimum((bin_ - low) / (middle - low), (high - bin_) / (high - middle)).clamp_min(
        0
    )


@functools.cache
def spoken(folder: Path, samples: int = 6_400, bands: int = 40) -> Data:
    """Log-mel frames (N, 50, 40) of the first 0.8 s; takes under 5 test, as the publisher has it, 5
    to 8 validate."""
    archive = np.load(folder / "FSDD" / "fsdd.npz")
    pcm, offset, take = (archive[name] for name in ("pcm", "offset", "take"))
    sound = torch.zeros(len(take), samples)
    for number, row in enumerate(sound):
        clip = torch.from_numpy(
            pcm[offset[number] : offset[number + 1]][:samples].astype(np.float32)
        )
        row[: len(clip)] = clip / 2**15
    spectrum = (
        torch.stft(sound, 256, 128, window=torch.hann_window(256), return_complex=True)
        .abs()
        .square()
    )
    frames = (_mel(bands, 129, 8_000) @ spectrum + 1e-6).log().transpose(1, 2)[:, :50]
    test, validation = torch.from_numpy(take < 5), torch.from_numpy((take >= 5) & (take < 9))
    train = ~(test | validation)
    frames = (frames - frames[train].mean()) / frames[train].std()
    labels = torch.from_numpy(archive["label"].astype(np.int64))
    return _sets(*((frames[part], labels[part]) for part in (train, validation, test)))


# --- cases


def ours(trials: int, finalists: int, epochs: int, **given: Any) -> dict[str, Any]:
    """`finalists` plans of `epochs` epochs each, out of `trials`."""
    space = {
        "techniques": TECHNIQUES,
        "criteria": ("l1", "l2", "taylor"),
        "ratio": (0.0, 0.9),
        "share": None,
    }
    return (
        {"trials": trials, "finalists": finalists, "epochs": epochs, "multiple_of": 8}
        | space
        | given
    )


CASES = {
    case.name: case
    for case in (
        Case(
            "digits",
            digits_cnn,
            lambda folder: digits(),
            "fc",
            Recipe(epochs=20, device="cpu"),
            epochs=20,
            trial=4,
            ours=ours(trials=200, finalists=1, epochs=20),
        ),
        Case(
            "cifar10_resnet20",
            ResNet20,
            lambda folder: cifar10(folder, 10_000, 2_000),
            "linear",
            Recipe(epochs=15, device="cpu"),
            epochs=9,
            trial=3,
            ours=ours(trials=150, finalists=1, epochs=9),
            weights="weights/resnet20-12fca82f.th",
        ),
        Case(
            "fashion_mobilenet",
            mobilenet,
            fashion,
            "35",
            Recipe(epochs=8, device="cpu"),
            epochs=9,
            trial=3,
            ours=ours(trials=150, finalists=1, epochs=9),
        ),
        Case(
            "fsdd_lstm",
            SpokenLSTM,
            spoken,
            "fc",
            Recipe(epochs=30, device="cpu"),
            epochs=30,
            trial=6,
            ours=ours(trials=100, finalists=1, epochs=30),
        ),
        Case(
            "fashion_vit",
            ViT,
            fashion,
            "fc",
            Recipe(epochs=15, device="cpu"),
            epochs=12,
            trial=4,
            ours=ours(trials=100, finalists=1, epochs=12),
        ),
        Case(
            "cifar10_vgg",
            vgg,
            lambda folder: cifar10(folder, 8_000, 2_000),
            "24",
            Recipe(epochs=40, device="cpu"),
            epochs=15,
            trial=5,
            ours=ours(trials=200, finalists=1, epochs=15),
        ),
    )
}
