"""What benchmarks/search prints of the cells that are there: tables as Markdown, and a page with a
plot."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]
OURS, QUARTER, FRONT = "ours", "ours4", "front"
VARIANTS = (QUARTER, "ours_widths", "ours_cut", FRONT)  # of ours: no rivals
RESAMPLES = 10_000
REFERENCE = (0.10, 1.0)  # error added over dense, latency ratio: what hypervolumes are taken to
TIGHT = 0.3


def read(
    out: Path, methods: Sequence[str], keys: Sequence[tuple[str, float, int]] | None
) -> list[Row]:
    """The cells of `methods`, in their order; those of `keys` alone, where they are given."""
    rows = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
    rows = [row for row in rows if row["method"] in methods]
    wanted = [
        row for row in rows if keys is None or (row["task"], row["budget"], row["seed"]) in keys
    ]
    for row in wanted:
        row["path"] = (
            out
            / "cells"
            / f"{row['task']}-{round(100 * row['budget'])}-{row['seed']}-{row['method']}.npz"
        )
    order = list(methods)
    return sorted(
        wanted,
        key=lambda row: (row["task"], -row["budget"], row["seed"], order.index(row["method"])),
    )


def counts(row: Row) -> bool:
    """Whether there is a net, and it is inside the budget."""
    return row["status"] == "done" and row["ratio"] <= row["budget"]


def added(row: Row) -> float:
    return row["error"] - row["dense_error"]


def cells(rows: list[Row]) -> None:
    print(
        "| task | budget | seed | method | test error | added | of dense error | latency, of "
        "dense | slack | FLOPs "
        "| parameters | epochs | seconds: training, measuring, judging plans untrained, other |"
    )
    print("|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        head = f"| {row['task']} | {row['budget']:.0%} | {row['seed']} | {row['method']} "
        if row["status"] != "done":
            print(
                f"{head}| {row['status']}: {row['reason'].splitlines()[0][:120]} | | | | | | | | |"
            )
            continue
        error = f"{row['error']:.2%}" if counts(row) else f"({row['error']:.2%})"
        judging = row.get("judging_s", 0.0)
        other = row["seconds"] - row["training_s"] - row["measuring_s"] - judging
        share = f"{added(row) / row['dense_error']:+.0%}" if row["dense_error"] else ""
        print(
            f"{head}| {error} | {100 * added(row):+.2f} | {share} "
            f"| {row['ratio']:.1%} [{row['ratio_low']:.1%}, {row['ratio_high']:.1%}] "
            f"| {1 - row['ratio'] / row['budget']:+.1%} | {row['flops']:.1%} | {row['params']:.1%} "
            f"| {row['epochs']:.1f} of {row['allowed']} "
            f"| {row['training_s']:.0f}, {row['measuring_s']:.0f}, {judging:.0f}, {other:.0f} |"
        )


def paired(first: list[Row], second: list[Row]) -> tuple[float, float, float]:
    """Error of `first` minus that of `second` over the same seeds: mean, 95 % interval by
    resampling test examples."""
    seeds = sorted({row["seed"] for row in first} & {row["seed"] for row in second})
    right = [
        np.mean([np.load(row["path"])["correct"] for row in rows if row["seed"] in seeds], axis=0)
        for rows in (first, second)
    ]
    difference = right[1] - right[0]
    generator, count = np.random.default_rng(0), len(difference)
    # what is drawn is how often each value comes
    values, times = np.unique(difference.round(9), return_counts=True)
    means = generator.multinomial(count, times / count, RESAMPLES) @ values / count
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def by_method(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows that count of each method that counts in every seed that is there."""
    seeds = {row["seed"] for row in rows}
    found: dict[str, list[Row]] = {}
    for row in rows:
        if counts(row):
            found.setdefault(row["method"], []).append(row)
    return {
        method: mine for method, mine in found.items() if {row["seed"] for row in mine} == seeds
    }


def best_other(found: dict[str, list[Row]]) -> tuple[str, float] | None:
    """The method with the least mean error of those that are not ours, and that error."""
    others = {name: each for name, each in found.items() if name not in (OURS, *VARIANTS)}
    errors = {name: statistics.fmean(row["error"] for row in each) for name, each in others.items()}
    return min(errors.items(), key=lambda pair: pair[1]) if errors else None


def verdicts(rows: list[Row]) -> None:
    """Ours against the best of the others, by task and budget."""
    print(
        "\n| task | budget | seeds | best other | its error | ours | ours minus it, 95 % interval "
        "| ours is |"
    )
    print("|---|---:|---:|---|---:|---:|---:|---|")
    ratios: list[float] = []
    wins = total = 0
    for task, budget in dict.fromkeys((row["task"], row["budget"]) for row in rows):
        here = [row for row in rows if (row["task"], row["budget"]) == (task, budget)]
        found = by_method(here)
        mine, other = found.get(OURS), best_other(found)
        if other is None or (mine is None and not any(row["method"] == OURS for row in here)):
            continue
        best, least_error = other
        seeds, total = len({row["seed"] for row in here}), total + 1
        head = f"| {task} | {budget:.0%} | {seeds} | {best} | {least_error:.2%} "
        if mine is None:
            print(f"{head}| outside, or none | | worse |")
            continue
        difference, low, high = paired(mine, found[best])
        word = "best" if difference <= 0 else "not distinguishable from the best"
        if low > 0:
            word = "worse"
        elif high < 0:
            word = "best, significantly"
        wins += low <= 0
        error = statistics.fmean(row["error"] for row in mine)
        print(
            f"{head}| {error:.2%} | {100 * difference:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}] "
            f"| {word} |"
        )
        if budget == TIGHT:
            # one example: there is no share of less
            least = 1 / len(np.load(mine[0]["path"])["correct"])
            ratios.append(
                max(least, statistics.fmean(map(added, mine)))
                / max(least, statistics.fmean(map(added, found[best])))
            )
    if total:
        print(f"\nours best or not distinguishable from the best: {wins} of {total} (task, budget)")
    if ratios:
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(
            f"error added by ours / by the best other at {TIGHT:.0%}, mean over tasks: "
            f"{statistics.fmean(ratios):.2f}",
            end="",
        )
        print(f" ({shown}; less than one test example counts as one)")


def front(rows: list[Row]) -> None:
    """What one run without a budget holds at each level, against the best of the others run for
    that level alone."""
    lines = []
    for task, budget in dict.fromkeys((row["task"], row["budget"]) for row in rows):
        found = by_method([row for row in rows if (row["task"], row["budget"]) == (task, budget)])
        mine, other = found.get(FRONT), best_other(found)
        if mine is None or other is None:
            continue
        best, least_error = other
        difference, low, high = (100 * each for each in paired(mine, found[best]))
        error, word = (
            statistics.fmean(row["error"] for row in mine),
            "worse" if low > 0 else "no worse",
        )
        lines.append(
            f"{task} at {budget:.0%}: {error:.2%} against {least_error:.2%} ({best}), {word}: "
        )
        lines[-1] += f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"
    if lines:
        print("\none run's front, against runs of the others for each level:\n" + "\n".join(lines))


def savings(rows: list[Row]) -> None:
    """How few epochs it takes: to beat uniform narrowing significantly, and to come as far as plain
    TPE comes."""
    lines = []
    for task, budget in dict.fromkeys((row["task"], row["budget"]) for row in rows):
        here = by_method([row for row in rows if (row["task"], row["budget"]) == (task, budget)])
        head = f"{task} at {budget:.0%}"
        uniform = [here[name] for name in ("uniform8", "tp_l1") if name in here]
        mine = [here[name] for name in (QUARTER, OURS) if name in here]
        if uniform and mine:
            best = min(uniform, key=lambda each: statistics.fmean(row["error"] for row in each))
            shares = [
                each[0]["epochs"] / each[0]["allowed"] for each in mine if paired(each, best)[2] < 0
            ]
            shown = f"{min(shares):.2f} of its epochs" if shares else "not beaten significantly"
            lines.append(f"{head}: the better uniform L1: {shown}")
        if "tpe" in here and QUARTER in here:
            quarter, other = (
                statistics.fmean(hypervolume([(added(row), row["ratio"])]) for row in here[name])
                for name in (QUARTER, "tpe")
            )
            spent = sum(row["epochs"] for row in here[QUARTER]) / sum(
                row["epochs"] for row in here["tpe"]
            )
            lines.append(
                f"{head}: hypervolume {quarter:.3f} with {spent:.2f} of the epochs of plain TPE, "
                f"{other:.3f}"
            )
    print("\n" + "\n".join(lines))


def hypervolume(points: list[tuple[float, float]]) -> float:
    """Share of the rectangle from no error added and no latency to REFERENCE that points (added,
    ratio) dominate."""
    area, edge = 0.0, REFERENCE[0]
    front = sorted(
        (max(0.0, error), ratio)
        for error, ratio in points
        if error < REFERENCE[0] and ratio < REFERENCE[1]
    )
    lowest = REFERENCE[1]
    for error, ratio in front:
        if ratio < lowest:
            area += (edge - error) * (lowest - ratio)
            lowest = ratio
    return area / (REFERENCE[0] * REFERENCE[1])


def summary(rows: list[Row], methods: Sequence[str]) -> None:
    """A row for each method: over all its cells, and over the tasks."""
    print(
        f"\n| method | cells | inside the budget | mean error added | median slack "
        f"| hypervolume to (+{REFERENCE[0]:.0%} error, {REFERENCE[1]:.0%} latency) | median "
        "minutes |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        good = [row for row in mine if counts(row)]
        if not mine:
            continue
        if not good:
            print(f"| {method} | {len(mine)} | 0 | | | | |")
            continue
        volumes = [
            hypervolume(
                [(added(row), row["ratio"]) for row in good if (row["task"], row["seed"]) == key]
            )
            for key in dict.fromkeys((row["task"], row["seed"]) for row in mine)
        ]
        slack = statistics.median(1 - row["ratio"] / row["budget"] for row in good)
        minutes = statistics.median(row["seconds"] for row in mine) / 60
        print(
            f"| {method} | {len(mine)} | {len(good)} | "
            f"{100 * statistics.fmean(map(added, good)):+.2f} | {slack:.1%} "
            f"| {statistics.fmean(volumes):.3f} | {minutes:.1f} |"
        )


def report(
    out: Path, methods: Sequence[str], keys: Sequence[tuple[str, float, int]] | None
) -> None:
    """Print everything that the cells in `out` tell."""
    rows = read(out, methods, keys)
    if not rows:
        print(f"no cells in {out}")
        return
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}\n")
    cells(rows)
    verdicts(rows)
    front(rows)
    savings(rows)
    summary(rows, methods)


def plot(out: Path, methods: Sequence[str], keys: Sequence[tuple[str, float, int]] | None) -> None:
    """search.html: error against measured latency, a panel a task; hollow where outside the
    budget."""
    rows = [row for row in read(out, methods, keys) if row["status"] == "done"]
    try:
        from plotly import colors, graph_objects
        from plotly.subplots import make_subplots
    except ImportError:
        print("\nplotly is not installed: no plot")
        return
    if not rows:
        return
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = make_subplots(
        len(tasks), 1, subplot_titles=tasks, vertical_spacing=0.25 / max(2, len(tasks))
    )
    for number, method in enumerate(methods):
        for place, task in enumerate(tasks, 1):
            mine = [row for row in rows if (row["method"], row["task"]) == (method, task)]
            if not mine:
                continue
            marks = ["circle" if counts(row) else "circle-open" for row in mine]
            text = [f"seed {row['seed']}, budget {row['budget']:.0%}" for row in mine]
            trace = graph_objects.Scatter(
                x=[row["ratio"] for row in mine],
                y=[row["error"] for row in mine],
                mode="markers",
                name=method,
                legendgroup=method,
                showlegend=not any(trace.name == method for trace in figure.data),
                text=text,
                marker={"symbol": marks, "size": 10, "color": colors.qualitative.T10[number % 10]},
            )
            figure.add_trace(trace, place, 1)
    for place, task in enumerate(tasks, 1):
        errors = [row["dense_error"] for row in rows if row["task"] == task]
        figure.add_hline(y=statistics.fmean(errors), line={"dash": "dot"}, row=place, col=1)  # type: ignore[arg-type]
    figure.update_xaxes(title="latency, of dense", tickformat=".0%")
    figure.update_yaxes(title="test error", tickformat=".1%")
    figure.update_layout(height=380 * len(tasks) + 100)
    figure.write_html(out / "search.html")
