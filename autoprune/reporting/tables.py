"""Tables for the terminal: the front of a search, what was done to each layer, groups, costs, checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from autoprune.group import Group
from autoprune.reporting import words
from autoprune.reporting.records import Result
from autoprune.score import Candidate, Score
from autoprune.space import Variable

__all__ = ["checks", "closing", "costs", "front", "groups", "treatment"]

_COLUMNS = 4  # of candidates side by side


def closing(result: Result, metric: str) -> list[Table]:
    """The tables that a search ends with: the best and the front with their scores, and what was done to each layer."""
    shown = [result.best, *result.front] if result.best is not None else list(result.front)
    best = None if result.best is None else result.best.number
    candidates = list({each.number: each for each in shown if each.stage != "dense" or each.number == best}.values())
    return [front(result.dense, candidates, result.best, metric=metric), *treatment(result.groups, candidates)]


def front(dense: Score, candidates: Sequence[Candidate], best: Candidate | None, *, metric: str = "metric") -> Table:
    """Dense, best, and the front: a row each with every figure of its score."""
    table = _table("The front", "latency: median and its 95 % interval; FLOPs: one multiply-add counts 1")
    masked = any(each.score.nonzero_params != each.score.params for each in candidates)
    names = [
        "trial",
        metric,
        "test",
        "latency",
        "of dense",
        "FLOPs",
        "params",
        *(["nonzero"] if masked else []),
        "size",
    ]
    for name in names:
        table.add_column(name, justify="left" if name == "trial" else "right", overflow="fold")
    table.add_row("dense", *_figures(dense, masked))
    rows = [best, *(each for each in candidates if each.number != best.number)] if best is not None else candidates
    for each in rows:
        chosen = best is not None and each.number == best.number
        name = f"{each.number}{' best' if chosen else '' if each.feasible else ' over budget'}"
        table.add_row(name, *_figures(each.score, masked), style="bold" if chosen else None if each.feasible else "dim")
    return table


def treatment(groups: Sequence[Group], candidates: Sequence[Candidate]) -> list[Table]:
    """Per layer what each candidate does to it; several tables where there are many candidates."""
    touched = [group for group in groups if any(group.key in each.plan.choices for each in candidates)]
    layers = {layer for group in touched for layer in group.layers}
    whole = list(dict.fromkeys(layer for group in groups for layer in group.layers if layer not in layers))
    tables = []
    for start in range(0, len(candidates), _COLUMNS):
        part = candidates[start : start + _COLUMNS]
        table = _table("What was done to each layer", f"left whole: {', '.join(whole)}" if whole else None)
        table.add_column("layers", overflow="fold")
        table.add_column("acts on", overflow="fold")
        for each in part:
            table.add_column(f"trial {each.number}", overflow="fold")
        for group in touched:
            table.add_row(
                ", ".join(group.layers),
                _unit(group),
                *(words.choice(each.plan.choices.get(group.key)) for each in part),
            )
        tables.append(table)
    return tables


def groups(found: Sequence[Group], variables: Sequence[Variable]) -> Table:
    """Groups, their sizes, and what may be chosen for them, or why nothing may."""
    options = {group.key: variable.options for variable in variables for group in variable.groups}
    table = _table("Groups")
    for name in ("group", "layers", "acts on", "techniques", "share removed"):
        table.add_column(name, overflow="fold")
    for group in found:
        if group.key in options:
            low, high = options[group.key].ratio
            cells = (", ".join(options[group.key].techniques), f"{low:g} to {high:g}")
        else:
            cells = (f"refused: {group.refusal}" if group.refusal else "left whole by the space", "")
        table.add_row(group.name, ", ".join(group.layers), _unit(group), *cells)
    return table


def costs(scores: Mapping[str, Score]) -> Table:
    """Cost figures, a row for each named score."""
    table = _table("Cost", _uncounted(scores.values()))
    for name in ("model", "FLOPs", "parameters", "nonzero", "size", "latency", "of dense"):
        table.add_column(name, justify="left" if name == "model" else "right", overflow="fold")
    for name, score in scores.items():
        figures = (words.count(score.flops), words.count(score.params), words.count(score.nonzero_params))
        table.add_row(name, *figures, words.size(score.size_bytes), words.latency(score), words.ratio(score))
    return table


def checks(verification: Mapping[str, Any]) -> Table:
    """The checks of an artefact, from verification.json."""
    table = _table("Verification")
    for name in ("check", "", "detail"):
        table.add_column(name, overflow="fold")
    shown = {True: "passed", False: "FAILED", None: "open"}
    for check in verification["checks"]:
        table.add_row(check["name"], shown[check["passed"]], Text(str(check["detail"])))
    return table


def _figures(score: Score, masked: bool) -> tuple[str, ...]:
    counts = (score.flops, score.params, *((score.nonzero_params,) if masked else ()))
    latency = tuple(cell.replace(" [", "\n[") for cell in (words.latency(score), words.ratio(score)))
    quality = (words.metric(score.metric), words.metric(score.test_metric))
    return (*quality, *latency, *(words.count(value) for value in counts), words.size(score.size_bytes))


def _table(title: str, caption: str | None = None) -> Table:
    """A table without vertical lines: figures need the room."""
    return Table(title=title, caption=caption, box=box.SIMPLE, padding=(0, 1, 0, 0))


def _unit(group: Group) -> str:
    if group.level == "units":
        return f"{group.size} units" + (f" in {group.cells} cells" if group.cells > 1 else "")
    return f"{'x'.join(str(length) for length in group.shape)} weights"


def _uncounted(scores: Any) -> str | None:
    names = sorted({name for score in scores for name in score.uncounted})
    return f"FLOPs leave out what cannot be counted: {', '.join(names)}" if names else None
