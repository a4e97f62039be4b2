"""Whether measured latencies can be trusted, and whether FLOPs could stand for them.

Run: .venv/bin/python -m scripts.benchmarks.measuring [--only repeat flops artefact] [--minutes 10]
[--figures 20]
                                                     [--results measuring.jsonl] [--size 224]
                                                     [--plot plots/] [--runtimes onnxruntime ...]
                                                     [--rows "eager, 1 thread" ...]
  repeat    a pruned ResNet-18 against the dense one in fresh processes, one core busy half of the
  time: coefficient of
            variation of the reported ratio and of the naive one (mean time over mean time),
            coverage of the interval
  flops     FLOPs ratio against latency ratio of 40 random plans, by runtime
  artefact  the latency ratio of an exported file in 20 fresh processes against the interval
  recorded for it
Resumable: what is in the results file is not measured again. `--table` only prints. The predictor
and the kernels for sparse layers have scripts of their own: benchmarks/predictor,
benchmarks/lowering.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from autoprune import plugins
from autoprune.errors import AutopruneError
from autoprune.measuring import measure
from autoprune.measuring.timing import subprocesses
from autoprune.target import Target
from scripts.benchmarks.measuring.models import Subject

RATIO = 0.5
# name of a row -> runtime, threads, fresh processes that a figure takes, seconds in each
ROWS = {
    "onnxruntime, 1 thread": ("onnxruntime", 1, 12, 1.5),
    "openvino, 1 thread": ("openvino", 1, 12, 1.5),
    "onnxruntime, 2 threads": ("onnxruntime", 2, 6, 1.5),
    "openvino, 2 threads": ("openvino", 2, 6, 1.5),
    "eager, 1 thread": ("eager", 1, 4, 3.0),
    "compiled, 1 thread": ("compiled", 1, 3, 3.0),
}


class Results:
    """Records in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )

    def of(self, part: str, **keys: Any) -> list[dict[str, Any]]:
        wanted = {"part": part, **keys}
        return [
            row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())
        ]

    def add(self, part: str, **values: Any) -> None:
        self.rows.append({"part": part, **values})
        with self.path.open("a") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")
        print(json.dumps(self.rows[-1]), flush=True)


def _burn(period: float) -> None:
    """Keeps one core busy every other `period` seconds, while the process lives that started it."""
    parent = os.getppid()
    while os.getppid() == parent:
        end = time.time() + period
        while time.time() < end:
            math.sqrt(2.0)
        time.sleep(period)


@contextlib.contextmanager
def load_half_of_the_time(period: float = 10.0) -> Iterator[None]:
    burner = multiprocessing.get_context("spawn").Process(target=_burn, args=(period,), daemon=True)
    burner.start()
    try:
        yield
    finally:
        burner.terminate()


def naive(candidate: Any, dense: Any, subject: Subject, target: Target) -> float:
    """Mean of one after mean of the other, as a stopwatch around two loops gives it, with the same
    session options."""
    runtime = plugins.load("runtime", target.runtime)()
    means = []
    for artefact in (candidate, dense):
        call = runtime.prepare(artefact, subject.inputs.rows(1), target)
        for _ in range(3):
            call()
        begin = time.perf_counter()
        for _ in range(20):
            call()
        means.append((time.perf_counter() - begin) / 20)
    return means[0] / means[1]


def repeat(results: Results, size: int, figures: int, minutes: float, rows: list[str]) -> None:
    subject = Subject.of("resnet18", size)
    keep = {
        key: (torch.arange(each.shape[1]) < round(each.shape[1] * (1 - RATIO))).repeat(len(each))
        for key, each in subject.coupling.members.items()
        if subject.coupling.group(key).refusal is None
    }
    begin = time.time()
    with load_half_of_the_time():
        for number in range(figures):
            for row in rows:
                runtime, threads, processes, seconds = ROWS[row]
                if results.of("repeat", row=row, number=number) or results.of(
                    "repeat", row=row, failed=True
                ):
                    continue
                target = Target("benchmark", "cpu", runtime, threads)
                try:
                    candidate, dense = subject.artefacts(keep, target)
                    found = subprocesses.fresh(
                        candidate, dense, subject.inputs, target, processes, budget_s=seconds
                    )
                    plain = (
                        naive(candidate, dense, subject, target) if runtime != "compiled" else None
                    )
                except AutopruneError as error:
                    results.add("repeat", row=row, failed=True, why=str(error))
                    continue
                record = found.to_json() | {
                    "row": row,
                    "number": number,
                    "naive": plain,
                    "size": size,
                }
                results.add("repeat", **record, at=time.time())
            pause = begin + minutes * 60 * (number + 1) / figures - time.time()
            time.sleep(max(0.0, pause))


def flops(results: Results, size: int, plans: int, runtimes: list[str]) -> None:
    for name in ("resnet18", "mobilenet_v2"):
        subject = None
        for runtime in runtimes:
            target = Target("benchmark", "cpu", runtime, 1)
            # it compiles half a minute a plan
            for seed in range(plans if runtime != "compiled" else plans // 4):
                if results.of("flops", model=name, runtime=runtime, seed=seed):
                    continue
                subject = subject or Subject.of(name, size)
                keep = subject.plan(seed)
                try:
                    found = measure.time_artefact(
                        *subject.artefacts(keep, target), subject.inputs, target, budget_s=1.0
                    )
                except AutopruneError as error:
                    print(f"{runtime}: {error}")
                    break
                share = subject.flops(keep)
                results.add(
                    "flops", model=name, runtime=runtime, seed=seed, flops=share, **found.to_json()
                )


def artefact(results: Results, size: int, figures: int) -> None:
    subject = Subject.of("resnet18", size)
    keep = subject.plan(1, eights=True)
    for runtime in ("onnxruntime", "openvino"):
        target = Target("benchmark", "cpu", runtime, 1)
        try:
            candidate, dense = subject.artefacts(keep, target)
            if not results.of("recorded", runtime=runtime):
                found = subprocesses.fresh(
                    candidate, dense, subject.inputs, target, 5, budget_s=1.5
                )
                results.add("recorded", runtime=runtime, **found.to_json())
            for number in range(figures):
                if not results.of("artefact", runtime=runtime, number=number):
                    found = subprocesses.fresh(
                        candidate, dense, subject.inputs, target, 1, budget_s=1.5
                    )
                    results.add("artefact", runtime=runtime, number=number, **found.to_json())
        except AutopruneError as error:
            print(f"{runtime}: {error}")


def cv(values: list[float]) -> float:
    return statistics.stdev(values) / statistics.fmean(values)


def table(results: Results) -> None:
    print(f"\n{platform.processor() or platform.machine()}, torch {torch.__version__}\n")
    print(
        "| ResNet-18, half of all channels gone | pixels | figures | processes each | ratio "
        "| CV of ratio | CV of naive means |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in ROWS:
        found = results.of("repeat", row=row)
        good = [each for each in found if "ratio" in each]
        if len(good) < 2:
            print(
                f"| {row} | | {len(good)} | | "
                f"{found[0]['why'] if found and 'why' in found[0] else ''} | | |"
            )
            continue
        ratios = [each["ratio"] for each in good]
        settled = [each["ratio"] for each in good if each["settled"]]
        plain = [each["naive"] for each in good if each["naive"]]
        middle = statistics.median(ratios)
        inside = sum(each["ratio_low"] <= middle <= each["ratio_high"] for each in good)
        print(
            f"| {row} | {good[0]['size']} | {len(good)} in "
            f"{(good[-1]['at'] - good[0]['at']) / 60:.0f} min "
            f"| {good[0]['processes']} | "
            f"{middle:.4f} | {cv(ratios):.2%}; interval covers {inside}/{len(good)}; "
            f"{len(settled)} settled{f', their CV {cv(settled):.2%}' if len(settled) > 1 else ''} "
            "| "
            f"{f'{cv(plain):.2%}' if len(plain) > 1 else ''} |"
        )
    print(
        "\n| plans | runtime | n | rank correlation | latency / FLOPs ratio: least, median, most |"
    )
    print("|---|---|---|---|---|")
    for model, runtime in dict.fromkeys(
        (row["model"], row["runtime"]) for row in results.of("flops")
    ):
        found = results.of("flops", model=model, runtime=runtime)
        from scipy.stats import spearmanr

        rank = spearmanr([row["flops"] for row in found], [row["ratio"] for row in found]).statistic
        excess = sorted(row["ratio"] / row["flops"] for row in found)
        print(
            f"| {model} | {runtime} | {len(found)} | {rank:.2f} | {excess[0]:.2f}, "
            f"{statistics.median(excess):.2f}, "
            f"{excess[-1]:.2f} |"
        )
    for record in results.of("recorded"):
        found = results.of("artefact", runtime=record["runtime"])
        good = sum(
            record["ratio_low"] <= row["ratio"] <= record["ratio_high"]
            or abs(row["ratio"] / record["ratio"] - 1) <= 0.02
            for row in found
        )
        print(
            f"\n{record['runtime']}: recorded {record['ratio']:.4f} ({record['ratio_low']:.4f} to "
            f"{record['ratio_high']:.4f}); in fresh processes inside it or within 2 %: {good} of "
            f"{len(found)}"
        )


def plot(results: Results, folder: Path) -> None:
    """A page with FLOPs ratio against latency ratio, a panel a model."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    models = list(dict.fromkeys(row["model"] for row in results.of("flops")))
    figure = make_subplots(1, len(models), subplot_titles=models)
    for place, model in enumerate(models, 1):
        for runtime in dict.fromkeys(row["runtime"] for row in results.of("flops", model=model)):
            rows = results.of("flops", model=model, runtime=runtime)
            x, y = [row["flops"] for row in rows], [row["ratio"] for row in rows]
            figure.add_trace(
                graph_objects.Scatter(x=x, y=y, mode="markers", name=runtime), 1, place
            )
        line = graph_objects.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", name="latency = FLOPs", line={"dash": "dot"}
        )
        figure.add_trace(line, 1, place)
    figure.update_xaxes(title="FLOPs, share of dense")
    figure.update_yaxes(title="latency, share of dense")
    folder.mkdir(parents=True, exist_ok=True)
    figure.write_html(folder / "flops_against_latency.html")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=["repeat", "flops", "artefact"])
    parser.add_argument("--results", type=Path, default=Path("measuring.jsonl"))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--figures", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--plans", type=int, default=40)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="of repeat")
    parser.add_argument(
        "--runtimes", nargs="+", default=["onnxruntime", "openvino", "eager", "compiled"]
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    results = Results(given.results)
    if not given.table:
        if "repeat" in given.only:
            repeat(results, given.size, given.figures, given.minutes, given.rows)
        if "artefact" in given.only:
            artefact(results, given.size, given.figures)
        if "flops" in given.only:
            flops(results, given.size, given.plans, given.runtimes)
    table(results)
    if given.plot:
        plot(results, given.plot)


if __name__ == "__main__":
    main()
