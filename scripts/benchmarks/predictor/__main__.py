"""How well the latency of plans that were never measured is predicted, and whether a sliced graph
is the exported one.

Run: .venv/bin/python -m scripts.benchmarks.predictor [--only resnet18 mobilenet_v2 small_vit]
[--runtime onnxruntime]
                                                     [--profile-s 60] [--plans 30] [--clock cpu]
                                                     [--table]
  predict  a profile of `--profile-s` seconds, then plans drawn anew (every group loses a share of 0
  to 0.7; of every
           two plans one has widths in eights): error, rank correlation, coverage of the 95 %
           interval; beside it what the FLOPs' ratio would have said; and the error with every plan
           observed once it was predicted
  slicing  seconds that a candidate takes by slicing and by export, and the latency of one over that
  of the other
Random weights, 3x224x224, batch 1, one thread. `--clock cpu` times by the process's CPU time, which
is its latency on an idle machine: where other jobs want the cores, wall time is theirs as much as
the model's. `--clock wall` is for a machine of one's own. Resumable: what is in the results file is
not measured again; `--table` only prints.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from autoprune import plugins
from autoprune.measuring import flops, measure
from autoprune.measuring.onnx_slicing import slicer
from autoprune.measuring.onnx_slicing.slicer import Slicer
from autoprune.measuring.prediction.predictor import Predictor
from autoprune.measuring.prediction.widths import Layout
from autoprune.measuring.timing import latency
from autoprune.measuring.timing.latency import Latency
from autoprune.pruning.coupling.verify import discover, random_keep
from autoprune.target import Target
from autoprune.task import Inputs
from scripts.benchmarks.predictor.models import SmallViT

BUILD: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision.models.resnet18,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "small_vit": SmallViT,
}
_SECONDS, _ROUGH_SECONDS = 0.4, 0.1  # for one latency, and one of the profile; or 12 calls
_PROCESSES, _LONG_SECONDS = 5, 1.5  # for a sliced graph beside the exported one


class Bench:
    """One model on one runtime: its groups, its dense call, and the latency of plans beside it."""

    def __init__(self, name: str, runtime: str, clock: str) -> None:
        torch.manual_seed(0)
        self.model, self.clock = BUILD[name]().eval(), clock
        pair = Inputs.of(torch.randn(2, 3, 224, 224))
        self.inputs, self.target = pair.rows(1), Target(runtime=runtime, threads=1)
        self.coupling = discover(self.model, pair)
        self.runtime = plugins.load("runtime", runtime)()
        self.slicer = Slicer(self.model, pair) if self.runtime.artefact == "onnx" else None
        units = [group.key for group in self.coupling.prunable() if group.level == "units"]
        # these make a plan's graph be exported anew
        self.whole = [key for key in units if not self._sliceable(key)]
        self.dense = self._prepared(self.slicer.dense if self.slicer else self.model)
        self.layout = Layout.of(self.coupling, self.model, self.inputs)

    def measure(self, keep: Mapping[str, Tensor], seconds: float = _SECONDS) -> Latency:
        """Interleaved with dense."""
        return self.compared(self._prepared(self.artefact(keep)), self.dense, seconds)

    def roughly(self, keep: Mapping[str, Tensor]) -> Latency:
        """As `measure`, in less time: for the profile."""
        return self.measure(keep, _ROUGH_SECONDS)

    def artefact(self, keep: Mapping[str, Tensor]) -> bytes | nn.Module:
        """Cut out of the dense graph where that is proved, else exported."""
        exported = any(
            key in keep and not bool(keep[key].all()) for key in self.whole
        ) or self.coupling.removed_blocks(keep)
        if self.slicer is None or exported:
            return measure.artefact(self.coupling.apply(self.model, keep), self.inputs, self.target)
        return self.slicer.cut(self.coupling.cuts(keep))

    def compared(
        self, first: Callable[[], object], second: Callable[[], object], seconds: float = _SECONDS
    ) -> Latency:
        """As `latency.compare`; by `cpu`, with the process's CPU time in place of the wall's."""
        if self.clock == "wall":
            return latency.compare(first, second, budget_s=seconds)
        wall = time.perf_counter, time.perf_counter_ns
        time.perf_counter, time.perf_counter_ns = time.process_time, time.process_time_ns
        try:
            return latency.compare(first, second, budget_s=seconds)
        finally:
            time.perf_counter, time.perf_counter_ns = wall

    def sliced(self, keep: Mapping[str, Tensor]) -> dict[str, float]:
        """Seconds by slicing and by export; latency of the sliced graph over that of the exported
        one, by the wall.

        In fresh processes that prepare both several times: where two files lie in memory moves the
        ratio by 1 to 2 %.
        """
        begin = time.perf_counter()
        assert self.slicer is not None
        cut = self.slicer.cut(self.coupling.cuts(keep))
        middle = time.perf_counter()
        exported = slicer.export(self.coupling.apply(self.model, keep), self.inputs)
        end = time.perf_counter()
        found = measure.time_artefact(
            cut, exported, self.inputs, self.target, processes=_PROCESSES, budget_s=_LONG_SECONDS
        )
        return {"slice_s": middle - begin, "export_s": end - middle, "ratio": found.ratio or 0.0}

    def _prepared(self, artefact: Any) -> Callable[[], object]:
        return self.runtime.prepare(artefact, self.inputs, self.target)

    def _sliceable(self, key: str) -> bool:
        keep = {key: random_keep(self.coupling, key)}
        cuts = self.coupling.cuts(keep)
        return self.slicer is None or self.slicer.verifies(
            self.coupling.apply(self.model, keep), cuts
        )


def drawn(
    layout: Layout, random: np.random.Generator, aligned: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Every group loses a share of 0 to 0.7; heads are counted, other widths are multiples of 8
    where `aligned`."""
    steps = {key: 8 if aligned and key not in layout.counted else 1 for key in layout.groups}
    return tuple(layout.width(key, random.uniform(0, 0.7), step) for key, step in steps.items()), ()


def predict(bench: Bench, given: argparse.Namespace) -> dict[str, Any]:
    begin, random = time.perf_counter(), np.random.default_rng(given.seed + 1000)
    predictor = Predictor.profile(
        bench.coupling,
        bench.model,
        bench.inputs,
        bench.roughly,
        given.profile_s,
        given.seed,
        plans=given.most,
    )
    profile_s, profiled = time.perf_counter() - begin, predictor.measured
    keeps = [
        bench.layout.keep(drawn(bench.layout, random, index % 2 == 0))
        for index in range(given.plans)
    ]
    begin = time.perf_counter()
    found = [predictor.predict(keep) for keep in keeps]
    predict_ms = 1e3 * (time.perf_counter() - begin) / given.plans
    plans, dense = [], flops.count(bench.model, bench.inputs).total
    for keep, each in zip(keeps, found, strict=True):
        online = predictor.predict(keep)
        measured = bench.measure(keep)
        predictor.observe(keep, measured)
        share = flops.count(bench.coupling.apply(bench.model, keep), bench.inputs).total / dense
        plans.append([measured.ratio, each.ratio, each.low, each.high, online.ratio, share])
    widest = max(predictor.layout.groups, key=lambda key: predictor.layout.groups[key])
    return {
        "profiled": profiled,
        "profile_s": profile_s,
        "predict_ms": predict_ms,
        "dense_ms": predictor.dense_ms,
        "exported": bench.whole,
        "widest": [widest, predictor.layout.groups[widest]],
        "liked": predictor.step_widths(widest),
        "plans": plans,
    }


def slices(bench: Bench, given: argparse.Namespace) -> dict[str, Any]:
    random, found = np.random.default_rng(given.seed + 2000), []
    for index in range(given.slices):
        keep = bench.layout.keep(drawn(bench.layout, random, index % 2 == 0))
        found.append(
            bench.sliced({key: kept for key, kept in keep.items() if key not in bench.whole})
        )
    return {"whole": bench.whole, "plans": found}


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(first, second)[0])


def table(rows: list[dict[str, Any]]) -> None:
    named = "dense ms|profile|liked, of the widest group|error|of these in eights|with observing"
    named += "|rank correlation|95 % interval covers"
    naive_named = "half its width|error of the FLOPs' ratio|its rank correlation|ms a prediction"
    print("| model, runtime |", " | ".join(f"{named}|{naive_named}".split("|")), "|")
    print("|---|" + "---:|" * 12)
    for row in (row for row in rows if row["part"] == "predict"):
        measured, guess, low, high, online, share = np.array(row["plans"]).T
        error, after, naive = (
            np.abs(each / measured - 1).mean() for each in (guess, online, share)
        )
        eights = np.abs(guess / measured - 1)[::2].mean()
        covered = ((low <= measured) & (measured <= high)).mean()
        key, size = row["widest"]
        liked = f"{len(row['liked'])}, {' '.join(map(str, row['liked'][:4]))} .."
        print(
            f"| {row['model']}, {row['runtime']} | {row['dense_ms']:.1f} | {row['profiled']} "
            "plans, "
            f"{row['profile_s']:.0f} s | {key} of {size}: {liked} | "
            f"{error:.1%} | {eights:.1%} | {after:.1%} | {spearman(measured, guess):.3f} | "
            f"{covered:.0%} | "
            f"{np.median((high - low) / 2 / guess):.1%} | {naive:.1%} | "
            f"{spearman(measured, share):.3f} | "
            f"{row['predict_ms']:.2f} |"
        )
    print(
        "\n| model, runtime | s by slicing | s by export | sliced over exported latency, median | "
        "all |"
    )
    print("|---|" + "---:|" * 4)
    for row in (row for row in rows if row["part"] == "slicing"):
        by, to, ratios = (
            [plan[key] for plan in row["plans"]] for key in ("slice_s", "export_s", "ratio")
        )
        print(
            f"| {row['model']}, {row['runtime']} | {statistics.median(by):.3f} | "
            f"{statistics.median(to):.2f} | "
            f"{statistics.median(ratios):.3f} | {' '.join(f'{ratio:.3f}' for ratio in ratios)} |"
        )
    for row in rows:
        if left := row.get("exported") or row.get("whole"):
            verb = "exported anew for" if row["part"] == "predict" else "left whole:"
            print(
                f"\n{row['model']}, {row['part']}: graphs are {verb} {', '.join(left)} (slicing "
                "is not proved there)"
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BUILD, default=list(BUILD))
    parser.add_argument(
        "--parts", nargs="+", choices=["predict", "slicing"], default=["predict", "slicing"]
    )
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--profile-s", type=float, default=60.0)
    parser.add_argument("--most", type=int, default=150, help="plans of a profile")
    parser.add_argument("--plans", type=int, default=30, help="plans that are predicted")
    parser.add_argument("--slices", type=int, default=5, help="plans that are sliced and exported")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("predictor.jsonl"))
    parser.add_argument("--table", action="store_true", help="print what is there, measure nothing")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    rows = (
        [json.loads(line) for line in given.results.read_text().splitlines()]
        if given.results.exists()
        else []
    )
    done = {(row["model"], row["runtime"], row["part"]) for row in rows}
    for name in () if given.table else given.only:
        left = [part for part in given.parts if (name, given.runtime, part) not in done]
        if not left:
            continue
        bench = Bench(name, given.runtime, given.clock)
        for part in left:
            if part == "slicing" and bench.slicer is None:
                continue
            found = (predict if part == "predict" else slices)(bench, given)
            rows.append(
                {"model": name, "runtime": given.runtime, "part": part, "clock": given.clock}
                | found
            )
            with given.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    table(rows)


if __name__ == "__main__":
    main()
