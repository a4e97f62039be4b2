"""The quickstart's study over several seeds: how much quality is kept inside half of the latency,
as Markdown.

Run: .venv/bin/python -m scripts.benchmarks.digits [--seeds 0 1 2] [--budget latency=50%] [--out
runs/benchmark_digits] A seed that is already there is continued, not repeated. Latencies are those
of verification.json. The slack is what is left of the budget, by the middle of the latency's
interval and by its upper end, which is what has to keep the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from autoprune.budget import Budget


def one(seed: int, budget: str, out: Path) -> dict[str, float]:
    """Search with one seed; its figures from the record of the artefact."""
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "autoprune",
        "search",
        "digits",
        "--seed",
        str(seed),
        "--budget",
        budget,
        "--out",
        str(out),
    ]
    subprocess.run([*command, "--quiet"], check=True)
    seconds = time.monotonic() - began
    score = json.loads((out / "best" / "score.json").read_text())
    verified = json.loads((out / "best" / "verification.json").read_text())
    latency = next(check["figures"] for check in verified["checks"] if check["name"] == "latency")
    limit = Budget.parse(dict([budget.split("=")])).limits[0]
    used, most = ("ratio", "ratio_high") if limit.relative else ("ms", "ms_high")
    return {
        "slack": 1 - latency[used] / limit.value,
        "slack_high": 1 - latency[most] / limit.value,
        "dense": score["dense"]["test_metric"],
        "best": score["test_metric"],
        "ratio": latency["ratio"],
        "low": latency["ratio_low"],
        "high": latency["ratio_high"],
        "flops": score["flops"] / score["dense"]["flops"],
        "params": score["params"] / score["dense"]["params"],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", default="latency=50%")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_digits"))
    given = parser.parse_args()
    rows = {seed: one(seed, given.budget, given.out / f"seed{seed}") for seed in given.seeds}
    print(
        f"`autoprune search digits --budget {given.budget}`, {platform.machine()}, "
        f"{os.cpu_count()} cores\n"
    )
    print(
        "| seed | dense, test | best, test | latency, of dense | left of the budget | FLOPs | "
        "parameters | seconds |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for seed, row in rows.items():
        print(
            f"| {seed} | {row['dense']:.2%} | {row['best']:.2%} "
            f"| {row['ratio']:.1%} [{row['low']:.1%}, {row['high']:.1%}] "
            f"| {row['slack']:.1%} (upper end: {row['slack_high']:.1%}) "
            f"| {row['flops']:.1%} | {row['params']:.1%} | {row['seconds']:.0f} |"
        )
    dense, best = (
        statistics.mean(row[name] for row in rows.values()) for name in ("dense", "best")
    )
    ratio = statistics.mean(row["ratio"] for row in rows.values())
    slack, high = (
        statistics.median(row[name] for row in rows.values()) for name in ("slack", "slack_high")
    )
    left = f"median {slack:.1%} (upper end: {high:.1%})"
    print(f"| mean | {dense:.2%} | {best:.2%} | {ratio:.1%} | {left} | | | |")


if __name__ == "__main__":
    main()
