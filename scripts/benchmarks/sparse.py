"""What `sparse` is worth: beside `weight`, untrained and trained, all weights of three nets at
several ratios.

Run: .venv/bin/python -m scripts.benchmarks.sparse [--epochs 5] [--seeds 0 1 2] [--ratios 0.5 0.8
0.9]
                                                  [--nets cnn mlp gru] [--techniques weight sparse]
                                                  [--quick] [--results FILE] [--fresh]
scikit-learn's digits: a residual network, a perceptron of two hidden layers, a GRU that reads an
image row by row. Test accuracy, the mean over seeds; `untrained` is repaired alone, `trained` what
a search would keep of the two by validation data. Results go to FILE as they come; the same command
again goes on. About six minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprune.budget import Budget
from autoprune.plan import Choice, Plan
from autoprune.pruning.coupling.verify import discover
from autoprune.pruning.pruner import Pruner
from autoprune.score import Score, better
from autoprune.searching.callback import Quiet
from autoprune.searching.evaluating.preparation import importance
from autoprune.searching.evaluating.recovery import Recovered, Recovery
from autoprune.space import Space
from autoprune.study import Settings, Study
from autoprune.target import Target
from autoprune.task import Metric, Recipe, Task
from autoprune.training.loop import evaluate, train
from autoprune.zoo.datasets.digits import digits
from autoprune.zoo.metrics import accuracy
from autoprune.zoo.models.digits_cnn import digits_cnn

RESULTS = Path(__file__).parent / "results" / "sparse.json"
DENSE_EPOCHS = 20


class Perceptron(nn.Module):
    """Two hidden layers of 96."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        logits: Tensor = self.layers(x.flatten(1))
        return logits


class Recurrent(nn.Module):
    """A GRU of 48 units over the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(8, 48, batch_first=True)
        self.fc = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, 10)."""
        logits: Tensor = self.fc(self.rows(x.squeeze(1))[0][:, -1])
        return logits


NETS = {"cnn": lambda: digits_cnn(16, 32), "mlp": Perceptron, "gru": Recurrent}


def recovery(net: str, seed: int, epochs: int) -> Recovery:
    """The dense net, trained, and what recovers its plans."""
    task = Task(
        NETS[net],
        digits(),
        F.cross_entropy,
        Metric("accuracy", accuracy),
        Recipe(epochs=DENSE_EPOCHS),
    )
    torch.manual_seed(seed)
    dense = task.build()
    train(dense, task, task.training, seed=seed)
    recipe = Recipe(epochs=epochs, distill=0.5, repair=True)
    study = Study(
        net, task, Space(), Target("cpu_eager"), Budget.parse({}), Settings(seed=seed), recipe
    )
    inputs = task.calibration(2)
    coupling = discover(dense, inputs)
    pruner = Pruner(dense, coupling, importance(study, dense, coupling))
    return Recovery(study, pruner, inputs, Quiet())


def cells(given: argparse.Namespace, known: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every cell that is not known yet: its name, and accuracies on test and validation data with
    the losses."""
    for net in given.nets:
        for seed in given.seeds:
            named = {
                f"{net} {ratio:g} {technique} {seed} {given.epochs}": (ratio, technique)
                for ratio in given.ratios
                for technique in given.techniques
            }
            if set(named) <= set(known):
                continue
            made = recovery(net, seed, given.epochs)
            groups = [
                each
                for each in made.pruner.coupling.groups
                if each.level == "weights" and not each.refusal
            ]
            for name, (ratio, technique) in named.items():
                if name not in known:
                    plan = Plan({group.key: Choice(technique, ratio) for group in groups})
                    yield name, cell(made, plan)


def cell(made: Recovery, plan: Plan) -> dict[str, Any]:
    """One plan: the dense net, the plan untrained and as it is kept when trained."""
    untrained, kept = made.untrained_model(plan), made.recover(plan)
    models = {"dense": made.model, "untrained": untrained, "trained": kept.model}
    return {
        "kept": kept.score.weights,
        **{name: quality(made, Recovered(model, Score())) for name, model in models.items()},
    }


def quality(made: Recovery, given: Recovered) -> dict[str, float | None]:
    """Accuracy, its standard error and the loss on validation data, and the accuracy on test
    data."""
    task = made.study.task
    seen, last = (
        evaluate(given.model, task, "validation", error=True),
        evaluate(given.model, task, "test"),
    )
    return {
        "metric": seen.metric,
        "metric_error": seen.error,
        "loss": seen.loss,
        "test": last.metric,
    }


def table(given: argparse.Namespace, found: dict[str, Any]) -> tuple[str, int]:
    """The results in Markdown, and how many plans ended behind their untrained selves on validation
    data."""
    heads = [f"{name} {state}" for name in given.techniques for state in ("untrained", "trained")]
    lines = [
        f"| net | ratio | dense | {' | '.join(heads)} | {given.techniques[-1]} trained against"
        f" {given.techniques[0]} trained | repaired ones kept |",
        "|---|---:|---:|" + "---:|" * (len(heads) + 2),
    ]
    behind = 0
    for net in given.nets:
        for ratio in given.ratios:
            means, pairs, repaired = {}, {}, 0
            for technique in given.techniques:
                rows = [
                    found[f"{net} {ratio:g} {technique} {seed} {given.epochs}"]
                    for seed in given.seeds
                ]
                for row in rows:
                    before, after = (score(row[state]) for state in ("untrained", "trained"))
                    behind += better(before, after, "maximize")
                    repaired += row["kept"] != "trained"
                for state in ("dense", "untrained", "trained"):
                    means[technique, state] = statistics.mean(row[state]["test"] for row in rows)
                pairs[technique] = [row["trained"]["test"] for row in rows]
            gains = [
                b - a
                for a, b in zip(
                    pairs[given.techniques[0]], pairs[given.techniques[-1]], strict=True
                )
            ]
            shown = [
                f"{means[name, state]:.1%}"
                for name in given.techniques
                for state in ("untrained", "trained")
            ]
            won = sum(gain > 0 for gain in gains)
            lines.append(
                f"| {net} | {ratio:g} | {means[given.techniques[0], 'dense']:.1%} | "
                f"{' | '.join(shown)} "
                f"| {100 * statistics.mean(gains):+.1f} points, ahead {won} of {len(gains)} times "
                f"| {repaired} of {len(given.techniques) * len(given.seeds)} |"
            )
    return "\n".join(lines), behind


def score(row: dict[str, float]) -> Score:
    """A quality as it was written down."""
    return Score(metric=row["metric"], metric_error=row["metric_error"], loss=row["loss"])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=5, help="of training after the cut")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.8, 0.9])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument(
        "--techniques", nargs="+", default=["weight", "sparse"], help="the last against the first"
    )
    parser.add_argument(
        "--quick", action="store_true", help="the perceptron alone, one seed, two epochs"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help="forget the results so far")
    given = parser.parse_args()
    if given.quick:
        given.nets, given.seeds, given.epochs = ["mlp"], [0], 2
    return given


def main() -> int:
    given = arguments()
    found: dict[str, Any] = {}
    if given.results.exists() and not given.fresh:
        found = json.loads(given.results.read_text())
    for name, row in cells(given, found):
        found[name] = row
        given.results.parent.mkdir(parents=True, exist_ok=True)
        given.results.write_text(json.dumps(found, indent=1) + "\n")
        print(
            f"{name}: untrained {row['untrained']['test']:.1%}, {row['kept']} "
            f"{row['trained']['test']:.1%}",
            flush=True,
        )
    text, behind = table(given, found)
    print(
        f"\nTest accuracy, mean over {len(given.seeds)} seeds; {given.epochs} epochs after the "
        f"cut\n\n{text}\n"
    )
    print(f"Behind untrained on validation data: {behind} plans")
    return int(behind > 0)


if __name__ == "__main__":
    sys.exit(main())
