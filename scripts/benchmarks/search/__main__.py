"""autoprune's search against heuristics and peers: quality inside a latency budget, for the same
training.

Run: .venv/bin/python -m scripts.benchmarks.search (--quick | --standard | --tasks digits --budgets
0.5 0.3 --seeds 0)
                                                  [--methods ours tpe ...] [--data FOLDER] [--out
                                                  runs/benchmark_search]
For every (task, budget, seed) all methods start from the same dense weights and spend the same
epochs of training in all, distilled from the dense net; a one-shot method spends them on its one
net. At the end every net is measured against the dense one in 5 fresh processes on ONNX Runtime,
one thread, batch 1; one outside the budget does not count.

  scratch   the net of uniform8 from random weights (Liu et al. 2019, arXiv:1810.05270)
  tp_l1     Torch-Pruning, the same share of every layer by L1       } bisected to the measured
  tp_group  Torch-Pruning, group norms over the whole net            } budget
  fastnas   ModelOpt's FastNAS, its limit on FLOPs                   }
  uniform8  the same share of every group by L1, widths in eights
  netadapt  NetAdapt's greedy rounds (Yang et al. 2018, arXiv:1804.03230)
  random    random plans inside the budget
  tpe       Optuna's TPE after a few uniform proposals, every plan inside the budget trained alike
  ours_widths  autoprune's search without whole blocks among its techniques; where it is named
  ours_cut   autoprune's search, training from the weights as cut, not repaired; where it is named
  ours4     autoprune's search with a quarter of the epochs
  front     one run of autoprune's search without a budget, with the epochs of four cells, read at
  each budget;
            where it is named
  ours      autoprune's search as it comes

The peers need `pip install torch-pruning==1.6.1 nvidia-modelopt torchprofile==0.0.4 requests
omegaconf pulp`, the plot plotly, CIFAR-10 Pillow with WebP; what is not there is said in its cells.
--quick takes no data and about 9 minutes,
--standard about 6 hours on two cores. Resumable: what lies in --out is not computed again
(after a change of autoprune take a new one); `--table` only prints.
"""

from __future__ import annotations

import argparse
import itertools
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoprune.measuring import measure
from autoprune.run import Run, write_whole
from scripts.benchmarks.search.cell import TARGET, Cell, Dense, Missing, Refused, correct
from scripts.benchmarks.search.methods import METHODS as OWN
from scripts.benchmarks.search.peers import PEERS
from scripts.benchmarks.search.report import plot, report
from scripts.benchmarks.search.tasks import CASES

METHODS = {
    name: (OWN | PEERS)[name]
    for name in ("scratch", "tp_l1", "tp_group", "uniform8", "fastnas", "netadapt")
} | {
    name: OWN[name]
    for name in ("random", "tpe", "ours_widths", "ours_cut", "ours4", "front", "ours")
}
DEFAULT = [name for name in METHODS if name not in ("ours_widths", "ours_cut", "front")]
Key = tuple[str, float, int]  # task, budget, seed
STANDARD: list[Key] = [
    *itertools.product(("digits", "fashion_mobilenet"), (0.5, 0.3), (0, 1, 2)),
    *((name, 0.3, 0) for name in ("fsdd_lstm", "fashion_vit", "cifar10_resnet20", "cifar10_vgg")),
]
QUICK: list[Key] = [("digits", 0.3, 0)]
QUICK_METHODS = [name for name in DEFAULT if name not in ("scratch", "netadapt", "ours4")]
PROCESSES, SECONDS = 5, 1.5  # of the last measurement


def figures(cell: Cell, model: nn.Module) -> tuple[dict[str, Any], np.ndarray]:
    """What the net of a cell came to, measured anew."""
    dense, model = cell.dense, model.eval()
    artefact = measure.artefact(model, dense.inputs, TARGET)
    found = measure.time_artefact(
        artefact, dense.artefact, dense.inputs, TARGET, processes=PROCESSES, budget_s=SECONDS
    ).to_json()
    costs, whole = measure.costs(model, dense.inputs), dense.prepared.dense
    assert costs.flops and costs.params and whole.flops and whole.params
    right = correct(model, dense.task)
    record = {"error": 1 - float(right.mean()), "validation": cell.validation(model)}
    record |= {name: found[name] for name in ("ms", "ratio", "ratio_low", "ratio_high")}
    return record | {
        "flops": costs.flops / whole.flops,
        "params": costs.params / whole.params,
    }, right


def one(cell: Cell, method: str, path: Path) -> None:
    """Run a method and keep what it came to in `path`, .json and .npz."""
    record: dict[str, Any] = {
        "task": cell.case.name,
        "budget": cell.budget,
        "seed": cell.dense.seed,
        "method": method,
    }
    record |= {"allowed": cell.epochs, "dense_error": cell.dense.error}
    began = time.monotonic()
    try:
        model = METHODS[method](cell)
        record |= {"seconds": cell.spent.earlier + time.monotonic() - began}
        found, right = figures(cell, model)
        write_whole(
            path.with_suffix(".npz"),
            lambda temporary: np.savez_compressed(temporary, correct=right),
        )
        record |= {"status": "done", **found}
    except Missing as error:
        record |= {"status": "not installed", "reason": str(error)}
    except Refused as error:
        record |= {"status": "refused", "reason": str(error)}
    except Exception as error:  # a peer's failures are of every kind
        traceback.print_exc()
        record |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}
    record |= {
        "epochs": cell.spent.epochs,
        "training_s": cell.spent.training,
        "measuring_s": cell.spent.measuring,
    }
    record |= {"judging_s": cell.spent.judging}
    Run.write_json(path.with_suffix(".json"), {"seconds": time.monotonic() - began} | record)
    shown = (
        f"{record['error']:.2%} error, {record['ratio']:.1%}"
        if "error" in record
        else record.get("reason")
    )
    print(f"{path.stem}: {record['status']}, {shown}, {time.monotonic() - began:.0f} s", flush=True)


def compute(keys: list[Key], methods: list[str], data: Path | None, out: Path) -> None:
    """All cells that are not there yet; the dense net of a (task, seed) is made ready once."""
    dense: Dense | None = None
    for task, budget, seed in sorted(
        keys, key=lambda key: (list(CASES).index(key[0]), key[2], -key[1])
    ):
        for method in methods:
            name = f"{task}-{round(100 * budget)}-{seed}-{method}"
            path = out / "cells" / f"{name}.json"
            if path.exists():
                continue
            if dense is None or (dense.case.name, dense.seed) != (task, seed):
                dense = Dense.of(CASES[task], seed, data or Path(), out)
            one(Cell(dense, budget, out / "work" / name), method, path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    without = "scratch, netadapt and ours4"
    parser.add_argument(
        "--quick", action="store_true", help=f"digits, 30 %%, one seed, without {without}"
    )
    parser.add_argument("--standard", action="store_true", help="all tasks")
    parser.add_argument(
        "--tasks", nargs="+", choices=CASES, help="of those, or with --budgets and --seeds"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        help="all but ours_widths, ours_cut and front, unless named",
    )
    parser.add_argument("--budgets", nargs="+", type=float, help="shares of dense latency")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument(
        "--data", type=Path, help="folder with CIFAR10, FashionMNIST, FSDD and weights"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_search"))
    parser.add_argument("--table", action="store_true", help="print what is there")
    given = parser.parse_args()
    if not given.data and not given.table and any(key[0] != "digits" for key in chosen(given)):
        parser.error("these tasks need --data FOLDER")
    given.methods = given.methods or (QUICK_METHODS if given.quick else DEFAULT)
    return given


def chosen(given: argparse.Namespace) -> list[Key]:
    """What is asked for: of --quick or --standard, or else every combination."""
    keys = QUICK if given.quick else STANDARD
    if not given.quick and not given.standard and given.tasks:
        keys = list(
            itertools.product(given.tasks, given.budgets or (0.5, 0.3), given.seeds or (0,))
        )
    return [
        key
        for key in keys
        if key[0] in (given.tasks or CASES)
        and key[1] in (given.budgets or [key[1]])
        and key[2] in (given.seeds if given.seeds is not None else [key[2]])
    ]


def main() -> None:
    given = arguments()
    if not given.table:
        compute(chosen(given), given.methods, given.data, given.out)
    keys = chosen(given) if given.quick or given.standard or given.tasks else None
    report(given.out, list(METHODS), keys)
    plot(given.out, list(METHODS), keys)


if __name__ == "__main__":
    main()
