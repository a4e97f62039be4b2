"""What repair is worth: random plans untrained (as cut, with norm statistics anew, repaired) and
after some training.

Run: .venv/bin/python -m scripts.benchmarks.repair [--plans 12] [--epochs 3] [--ratio 0.3 0.9]
[--ridges 1 0.1]
                                                  [--cifar10 shared/data/CIFAR10]
Trains `zoo:digits_cnn` on `zoo:digits`, or, given that folder of sheets (needs Pillow with WebP), a
small VGG on 8,000 images of CIFAR-10. Accuracies on validation data; the last column is Spearman's
correlation with those of the last row.
"""

from __future__ import annotations

import argparse
import lzma
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autoprune.group import Group
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruner import Pruned, Pruner
from autoprune.pruning.reconstruction.reconstruct import Reference
from autoprune.pruning.surgery.shrink import replace_tensors
from autoprune.task import Data, Metric, Recipe, Task
from autoprune.training.loop import evaluate, recalibrate, train
from autoprune.zoo.datasets.digits import digits
from autoprune.zoo.metrics import accuracy
from autoprune.zoo.models.digits_cnn import digits_cnn


def vgg() -> nn.Module:
    """Six convolutions of 32, 32, 64, 64, 128 and 128 channels; (N, 3, 32, 32) -> (N, 10)."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
        if inputs == outputs:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 10))


def cifar10(folder: Path) -> Data:
    """8,000 images to train and 2,000 to validate, from sheets of 25 x 40 images (see the folder's
    README)."""
    import numpy
    from PIL import Image

    sheets = [
        numpy.asarray(Image.open(folder / f"data_batch_1.{k}.webp").convert("RGB"))
        for k in range(10)
    ]
    tiles = [
        sheet.reshape(25, 32, 40, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3) for sheet in sheets
    ]
    images = torch.from_numpy(numpy.concatenate(tiles)).permute(0, 3, 1, 2).float().contiguous()
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    index = [
        line.split("\t")
        for line in lzma.decompress((folder / "index.tsv.xz").read_bytes()).decode().splitlines()
    ]
    labels = torch.tensor([int(label) for part, _, label, _ in index if part == "data_batch_1"])
    return Data(
        *(TensorDataset(images[part], labels[part]) for part in (slice(0, 8000), slice(8000, None)))
    )


def copied(model: nn.Module) -> nn.Module:
    return replace_tensors(model, lambda name, tensor: tensor.clone())


def recalibrated(model: nn.Module, task: Task) -> nn.Module:
    model = copied(model)
    recalibrate(model, task)
    return model


def trained(model: nn.Module, task: Task, epochs: int) -> nn.Module:
    model = copied(model)
    train(model, task, Recipe(epochs=epochs), seed=0)
    return model


def rank(values: list[float]) -> Tensor:
    """Ranks, the same for equal values."""
    given = torch.tensor(values)
    return (given[:, None] > given).sum(1) + 0.5 * ((given[:, None] == given).sum(1) - 1)


def spearman(first: list[float], second: list[float]) -> float:
    return float(torch.corrcoef(torch.stack([rank(first), rank(second)]))[0, 1])


def plans(dense: nn.Module, task: Task, given: argparse.Namespace) -> list[Pruned]:
    """The dense model under plans whose every group loses a random share, by L1."""
    coupling = discover(dense, task.calibration(2))
    pruner = Pruner(dense, coupling, Importance(dense, coupling))
    draw = random.Random(given.seed)
    units = [group for group in coupling.prunable() if group.level == "units"]

    def choice(group: Group) -> Choice:
        return Choice(
            "neuron" if "linear" in group.kinds else "structured", draw.uniform(*given.ratio)
        )

    return [
        pruner.apply(Plan({group.key: choice(group) for group in units}))
        for _ in range(given.plans)
    ]


def ways(
    reference: Reference, task: Task, given: argparse.Namespace
) -> dict[str, Callable[[Pruned], nn.Module]]:
    """What is done to each plan's model, by name; what recovery does last."""

    def repaired(ridge: float) -> Callable[[Pruned], nn.Module]:
        return lambda pruned: reference.repair(pruned.model, pruned.cuts, ridge=ridge)

    return {
        "as cut": lambda pruned: pruned.model,
        "norm statistics anew": lambda pruned: recalibrated(pruned.model, task),
        **{f"repaired, ridge {ridge:g}": repaired(ridge) for ridge in given.ridges},
        f"{given.epochs} epochs from the weights as cut": lambda pruned: trained(
            pruned.model, task, given.epochs
        ),
        f"repaired, then {given.epochs} epochs": lambda pruned: trained(
            reference.repair(pruned.model, pruned.cuts), task, given.epochs
        ),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plans", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=3, help="of training after the cut")
    parser.add_argument("--dense-epochs", type=int, default=20)
    parser.add_argument(
        "--ratio", type=float, nargs=2, default=[0.3, 0.9], help="range of the shares removed"
    )
    parser.add_argument("--ridges", type=float, nargs="+", default=[1.0, 0.1])
    parser.add_argument("--positions", type=int, default=20)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cifar10", type=Path, help="folder of the sheets; digits without it")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    data = cifar10(given.cifar10) if given.cifar10 else digits()
    build = vgg if given.cifar10 else digits_cnn
    task = Task(
        build,
        data,
        F.cross_entropy,
        Metric("accuracy", accuracy),
        Recipe(epochs=given.dense_epochs),
    )
    torch.manual_seed(given.seed)
    dense = task.build()
    train(dense, task, task.training, seed=given.seed)
    pruned = plans(dense, task, given)
    began = time.perf_counter()
    reference = Reference(
        dense, task.batches("train", seed=0), images=given.images, positions=given.positions
    )
    once = time.perf_counter() - began
    found: dict[str, tuple[list[float], float]] = {}
    for name, way in ways(reference, task, given).items():
        began = time.perf_counter()
        models = [way(each) for each in pruned]
        seconds = (time.perf_counter() - began) / given.plans
        found[name] = [evaluate(model, task, "validation").metric for model in models], seconds

    last = next(reversed(found.values()))[0]
    print(
        f"dense {evaluate(dense, task, 'validation').metric:.2%}, {torch.get_num_threads()} "
        "threads; ",
        end="",
    )
    print(f"reference {once:.2f} s, once\n")
    print(
        "| untrained but for the last two rows | mean | lowest | highest | seconds a plan | rank "
        "correlation |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, (values, seconds) in found.items():
        print(
            f"| {name} | {statistics.mean(values):.1%} | {min(values):.1%} | {max(values):.1%} "
            f"| {seconds:.2f} | {spearman(values, last):.2f} |"
        )


if __name__ == "__main__":
    main()
