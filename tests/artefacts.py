"""An artefact of a small net: its source, its widths, its study, and how a record is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

MINE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def build():
    return Net()


def data():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 3, 16, 16, generator=generator), torch.randint(0, 4, (96,), generator=generator)
    return {"train": torch.utils.data.TensorDataset(x, y), "validation": torch.utils.data.TensorDataset(x[:50], y[:50])}
"""


WIDTHS = {
    **{
        name: [8]
        for name in ("conv1.bias", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var")
    },
    "conv1.weight": [8, 3, 3, 3],
    "conv2.weight": [16, 8, 3, 3],
    "conv2.bias": [16],
    "fc.weight": [4, 16],
}


def section(model: str = "mine_exported:build") -> dict[str, Any]:
    training = {"epochs": 1, "batch_size": 32, "device": "cpu"}
    return {
        "model": model,
        "weights": None,
        "data": "mine_exported:data",
        "loss": "cross_entropy",
        "metric": {"name": "accuracy", "goal": "maximize"},
        "adapter": None,
        "training": training,
    }


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
