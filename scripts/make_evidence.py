"""Write the tables of measured figures in README and docs from scripts/benchmarks/results/*.json.

Run: .venv/bin/python scripts/make_evidence.py [--check]
A table stands between `<!-- table NAME ... -->` and `<!-- end of table -->`. With --check nothing
is written, and the exit status is 1 where a table is not what its results say (a test runs this).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "scripts" / "benchmarks" / "results"
TABLE = re.compile(r"(<!-- table (\w+)[^>]*-->\n).*?(<!-- end of table -->)", flags=re.S)
Results = dict[str, Any]


def markdown(heads: list[str], rows: Iterable[list[str]], left: int = 1) -> str:
    """A table whose first `left` columns are words, and the others figures."""
    marks = ["---"] * left + ["---:"] * (len(heads) - left)
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join(marks)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def digits(results: Results) -> str:
    rows = [
        [
            str(row["seed"]),
            f"{row['dense']:.2%}",
            f"{row['best']:.2%}",
            f"{row['ratio']:.1%} [{row['low']:.1%}, {row['high']:.1%}]",
            f"{row['slack']:.1%} (upper end: {row['slack_high']:.1%})",
            f"{row['flops']:.1%}",
            f"{row['params']:.1%}",
            f"{row['seconds']:.0f}",
        ]
        for row in results["rows"]
    ]
    mean = results["mean"]
    left = f"median {mean['slack']:.1%} (upper end: {mean['slack_high']:.1%})"
    figures = [f"{mean['dense']:.2%}", f"{mean['best']:.2%}", f"{mean['ratio']:.1%}", left]
    heads = ["seed", "dense, test", "best, test", "latency, of dense", "left of the budget"]
    return markdown(
        [*heads, "FLOPs", "parameters", "seconds"], [*rows, ["mean", *figures, "", "", ""]]
    )


def search(results: Results) -> str:
    heads = [f"{task['name']} (dense {task['dense_error']:.2%})" for task in results["tasks"]]
    rows = [
        [f"{row['title']} (`{row['name']}`)", *map(error, row["cells"])]
        for row in results["methods"]
    ]
    return markdown(["method", *heads], rows)


def error(cell: dict[str, Any]) -> str:
    """A cell of the search's table: the test error and the latency, or why there is none."""
    return cell.get("why") or f"{cell['error']:.2%} at {cell['ratio']:.1%}"


def search_lead(results: Results) -> str:
    columns = zip(
        results["tasks"],
        results["against_best_other"],
        results["share_of_added_error"],
        results["left_of_budget"],
        results["minutes"],
        results["training_minutes"],
        strict=True,
    )
    rows = [
        [
            task["name"],
            f"{lead['points']:+.1f}" if lead["points"] else "0",
            f"{lead['low']:+.1f} to {lead['high']:+.1f}" if "low" in lead else "",
            "" if share is None else f"{share:.2f}",
            f"{left:.1%}",
            f"{minutes}, of which {training}",
        ]
        for task, lead, share, left, minutes, training in columns
    ]
    heads = ["task", "points of error against the best other", "95 % interval"]
    heads += [
        "added error, of the best other's",
        "left of the budget",
        "minutes, of which training",
    ]
    return markdown(heads, rows)


NETS = {"cnn": "residual net", "mlp": "perceptron", "gru": "GRU"}


def sparse(results: Results) -> str:
    """Means over seeds; bold where the trained net is ahead on every seed."""
    cells = [name.split() for name in results]
    ratios, seeds, epochs = (list(dict.fromkeys(cell[k] for cell in cells)) for k in (1, 3, 4))

    def row(net: str, ratio: str) -> Iterable[str]:
        tests = {
            technique: [results[f"{net} {ratio} {technique} {seed} {epochs[0]}"] for seed in seeds]
            for technique in ("weight", "sparse")
        }
        for technique, rival in (("weight", "sparse"), ("sparse", "weight")):
            before, after, other = (
                [cell[state]["test"] for cell in tests[name]]
                for name, state in (
                    (technique, "untrained"),
                    (technique, "trained"),
                    (rival, "trained"),
                )
            )
            shown = f"{statistics.mean(after):.1%}"
            ahead = all(mine > its for mine, its in zip(after, other, strict=True))
            yield f"{statistics.mean(before):.1%} → {f'**{shown}**' if ahead else shown}"

    rows = [[net, ratio, *row(key, ratio)] for key, net in NETS.items() for ratio in ratios]
    return markdown(["net", "ratio", "`weight`", "`sparse`"], rows)


def repeat(results: Results) -> str:
    rows = [
        [
            row["row"],
            f"{row['figures']} in {row['minutes']} min",
            str(row["processes"]),
            f"{row['ratio']:.3f}",
            f"{row['cv']:.1%}",
            "not taken" if row["naive_cv"] is None else f"{row['naive_cv']:.0%}",
            f"{row['covered']} times",
        ]
        for row in results["repeat"]
    ]
    heads = ["runtime", "figures", "fresh processes each", "ratio", "varies by", "naive means by"]
    return markdown([*heads, "interval holds the median"], rows)


def flops(results: Results) -> str:
    runtimes = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "eager": "eager"}
    rows = [
        [
            row["model"],
            row.get("rank")
            or ", ".join(f"{row[name]:.2f} ({title})" for name, title in runtimes.items()),
        ]
        for row in results["flops"]
    ]
    return markdown(["model", "rank correlation of FLOPs and latency"], rows)


def predictor(results: Results) -> str:
    rows = [
        [row["model"], f"{row['error']:.1%}", f"{row['flops_error']:.0%}"]
        for row in results["rows"]
    ]
    return markdown(["model", "predicted latency is off by", "the FLOPs' ratio is off by"], rows)


def lowering(results: Results) -> str:
    rows = [[row["layer"], row["faster"] or "not faster"] for row in results["rows"]]
    return markdown(["layer", "times as fast as dense"], rows)


def coverage(results: Results) -> str:
    rows = [
        [row["figure"], row["autoprune"], row["torch_pruning"] or ""] for row in results["rows"]
    ]
    return markdown(["", "autoprune", "Torch-Pruning 1.6.1"], rows)


# name of a table -> its file of results, and what makes the table of it
TABLES: dict[str, tuple[str, Callable[[Results], str]]] = {
    "digits": ("digits", digits),
    "search": ("search", search),
    "search_lead": ("search", search_lead),
    "sparse": ("sparse", sparse),
    "repeat": ("measuring", repeat),
    "flops": ("measuring", flops),
    "predictor": ("predictor", predictor),
    "lowering": ("lowering", lowering),
    "coverage": ("coverage", coverage),
}


def filled(text: str) -> str:
    """The page with every table as its results say."""

    def table(match: re.Match[str]) -> str:
        file, make = TABLES[match[2]]
        results = json.loads((RESULTS / f"{file}.json").read_text())
        return f"{match[1]}\n{make(results)}\n{match[3]}"

    return TABLE.sub(table, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; say which pages are out of date"
    )
    check = parser.parse_args().check
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        if (new := filled(text)) != text:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(new)
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run scripts/make_evidence.py")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
