"""What `autoprune check` takes on a deep net, stage by stage: a chain of residual blocks, two
convolutions each.

Run: .venv/bin/python -m scripts.benchmarks.check [--blocks 100] [--channels 16] [--size 16]
CPU seconds count this process alone; of measuring, most is spent in fresh ones. Imports come
before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autoprune import config
from autoprune.searching import commands
from autoprune.searching.evaluating import preparation
from autoprune.task import Data, Metric, Recipe, Task
from autoprune.zoo.metrics import accuracy

STAGES = {  # name in `preparation` -> what it does
    "discover": "groups traced, proved; blocks",
    "importance": "what criteria see",
    "Costs": "dense graph exported, slicing proved",
    "_epoch_seconds": "steps of training timed",
}


class Block(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)
        )
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.second(F.relu(self.norm1(self.first(x))))))


def chain(blocks: int, channels: int) -> nn.Module:
    """(N, 3, H, W) -> (N, 10)."""
    body = [Block(channels) for _ in range(blocks)]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *body, *pooled)


def task(model: nn.Module, size: int) -> Task:
    """Ten classes of noise."""
    train, validation = (
        TensorDataset(torch.randn(count, 3, size, size), torch.randint(0, 10, (count,)))
        for count in (256, 64)
    )
    return Task(
        build=lambda: model,
        data=Data(train, validation),
        loss=F.cross_entropy,
        metric=Metric("accuracy", accuracy, "maximize"),
        training=Recipe(epochs=1),
        given=model,
    )


def timed(
    function: Callable[..., Any], told: str, rows: list[tuple[str, float, float]]
) -> Callable[..., Any]:
    """The function, its seconds written into `rows`."""

    def run(*args: Any, **options: Any) -> Any:
        wall, cpu = time.monotonic(), time.process_time()
        out = function(*args, **options)
        rows.append((told, time.monotonic() - wall, time.process_time() - cpu))
        return out

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--size", type=int, default=16, help="height and width of the images")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    space = {"default": {"techniques": ["structured", "depth", "weight", "sparse"]}}
    read = config.from_mapping({"space": space, "budget": {"latency": "50%"}})
    study = config.build(read, task(chain(args.blocks, args.channels), args.size))
    rows: list[tuple[str, float, float]] = []
    for name, told in STAGES.items():
        setattr(preparation, name, timed(getattr(preparation, name), told, rows))
    resolve, cost = type(study.space).resolve, preparation.Prepared.cost
    type(study.space).resolve = timed(resolve, "space resolved", rows)  # type: ignore[method-assign]
    preparation.Prepared.cost = timed(cost, "a plan cut and measured", rows)  # type: ignore[method-assign]
    report = timed(commands.check, "check, all of it", rows)(study)
    blocks = sum(group.level == "blocks" for group in report.groups)
    print(f"{args.blocks} blocks, {blocks} removable, {len(report.groups)} groups\n")
    print("| stage | seconds | of this process's CPU |\n|---|---:|---:|")
    for told, wall, cpu in rows:
        print(f"| {told} | {wall:.1f} | {cpu:.1f} |")


if __name__ == "__main__":
    main()
