"""A user's own file: a small network with residual, concatenation, depthwise and grouped convolution, and its data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.res1 = nn.Conv2d(width, width, 3, padding=1)
        self.res2 = nn.Conv2d(width, width, 3, padding=1)
        self.left = nn.Conv2d(width, width, 1)
        self.right = nn.Conv2d(width, width, 3, padding=1)
        self.depth = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.point = nn.Conv2d(2 * width, 2 * width, 1)
        self.group = nn.Conv2d(2 * width, width, 3, padding=1, groups=4)
        self.fc = nn.Linear(width * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.res2(torch.relu(self.res1(x))))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = torch.relu(self.point(torch.relu(self.depth(x))))
        x = torch.relu(self.group(x))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


class Named(Net):
    def forward(self, image: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        return {
            "logits": super().forward(
                image if scale is None else image * scale[:, None, None, None]
            )
        }


def build(width: int = 16) -> nn.Module:
    return Net(width)


def build_named(width: int = 16) -> nn.Module:
    return Named(width)


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four random patterns of 3x16x16 under noise."""
    patterns = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return patterns[labels] + 0.8 * torch.randn(count, 3, 16, 16, generator=generator), labels


def data() -> dict[str, Any]:
    return {
        "train": TensorDataset(*images(200, 0)),
        "validation": TensorDataset(*images(100, 1)),
        "test": TensorDataset(*images(100, 2)),
    }


def named_data() -> dict[str, Any]:
    def batches(count: int, seed: int) -> list[dict[str, Tensor]]:
        pixels, labels = images(count, seed)
        return [
            {"image": pixels[i], "scale": torch.tensor(1.0), "labels": labels[i]}
            for i in range(count)
        ]

    return {"train": batches(200, 0), "validation": batches(100, 1)}


def wrongness(outputs: Any, targets: Tensor) -> float:
    """Share of wrong answers: smaller is better."""
    return float((outputs["logits"].argmax(1) != targets).float().mean())
