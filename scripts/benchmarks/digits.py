"""The quickstart's study over several seeds: how much quality is kept inside half of the latency,
as Markdown.

Run: .venv/bin/python -m scripts.benchmarks.digits [--seeds 0 1 2] [--budget latency=50%] [--out
runs/benchmark_digits]
                                                  [--results FILE]
A seed that is already there is continued, not repeated. Latencies are those
of verification.json. The slack is what is left of the budget, by the middle of the latency's
interval and by its upper end, which is what has to keep the limit. The figures go to FILE, from
which scripts/make_evidence.py writes the tables of README and docs.
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
from typing import Any

from autoprune.budget import Budget
from scripts.make_evidence import RESULTS as FOLDER
from scripts.make_evidence import digits

RESULTS = FOLDER / "digits.json"


def search(seed: int, budget: str, trials: int, out: Path) -> dict[str, float]:
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
        "--trials",
        str(trials),
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


def collect(rows: list[dict[str, float]], budget: str) -> dict[str, Any]:
    """What is kept of the runs: their figures, the means, and where and when they were made."""
    mean = {name: statistics.mean(row[name] for row in rows) for name in ("dense", "best", "ratio")}
    middle = {
        name: statistics.median(row[name] for row in rows) for name in ("slack", "slack_high")
    }
    return {
        "command": f"python -m scripts.benchmarks.digits --budget {budget}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "budget": budget,
        "rows": rows,
        "mean": {**mean, **middle},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", default="latency=50%")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_digits"))
    parser.add_argument(
        "--results",
        type=Path,
        help="where figures are kept; those of a run as it comes in results/",
    )
    given = parser.parse_args()
    if given.results is None and vars(given) == vars(parser.parse_args([])):
        given.results = RESULTS
    rows = [
        {"seed": seed, **search(seed, given.budget, given.trials, given.out / f"seed{seed}")}
        for seed in given.seeds
    ]
    results = collect(rows, given.budget)
    if given.results is not None:
        given.results.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{results['command']}, {results['machine']}\n\n{digits(results)}", end="")


if __name__ == "__main__":
    main()
