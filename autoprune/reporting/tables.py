"""Tables for the terminal: the front of a search, what was done to each layer, groups, costs,
checks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from autoprune import plugins
from autoprune.group import Group
from autoprune.quantities import is_resource, of_call
from autoprune.reporting import words
from autoprune.reporting.records import Result
from autoprune.score import Candidate, Score
from autoprune.searching.selecting.answers import Answer
from autoprune.space import Variable

__all__ = [
    "answers",
    "checks",
    "closing",
    "costs",
    "family",
    "front",
    "groups",
    "plain",
    "treatment",
]

_COLUMNS = 4  # of candidates side by side
# Of the front, where the study asks for them
_EXTRAS: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    "throughput": ("inputs/s", words.count),
    "size_compressed": ("compressed", words.size),
}
# Of the costs; the quantity of each, its name, its figure
_ROWS: Sequence[tuple[str, str, Callable[[Score], str]]] = (
    ("flops", "FLOPs of a call", lambda score: words.count(score.flops)),
    ("params", "parameters", lambda score: words.count(score.params)),
    ("nonzero_params", "nonzero parameters", lambda score: words.count(score.nonzero_params)),
    ("size", "size of the file", lambda score: words.size(score.size_bytes)),
    ("size_compressed", "compressed (zlib)", lambda score: words.size(score.size_compressed_bytes)),
    ("latency", "latency, median", words.latency),
    (
        "latency_ms_p90",
        "latency, 90 % of calls",
        lambda score: words.milliseconds(score.latency_ms_p90),
    ),
    (
        "latency_ms_p99",
        "latency, 99 % of calls",
        lambda score: words.milliseconds(score.latency_ms_p99),
    ),
    ("latency_ratio", "latency, of dense", words.ratio),
    ("throughput", "inputs per second", lambda score: words.count(score.throughput)),
)
_FIGURES = {name: figure for name, (_, figure) in _EXTRAS.items()} | {"size": words.size}


def closing(result: Result, metric: str, asked: Collection[str] = ()) -> list[Table]:
    """The tables that a search ends with: the best and the front with their scores, and what was
    done to each layer.

    `asked` are the quantities that the study limits or optimises.
    """
    shown = [result.best, *result.front] if result.best is not None else list(result.front)
    best = None if result.best is None else result.best.number
    candidates = list(
        {
            candidate.number: candidate
            for candidate in shown
            if candidate.stage != "dense" or candidate.number == best
        }.values()
    )
    shown_front = front(result.dense, candidates, result.best, metric=metric, asked=asked)
    return [shown_front, *treatment(result.groups, candidates)]


def front(
    dense: Score,
    candidates: Sequence[Candidate],
    best: Candidate | None,
    *,
    metric: str = "metric",
    asked: Collection[str] = (),
) -> Table:
    """Dense, best, and the front: a row each with the figures of its score, and those that were
    `asked` for."""
    said = (
        "latency: median and its 95 % interval; FLOPs: of a call of the target's batch, a "
        "multiply-add counts 1"
    )
    table = plain("The front", said)
    masked = any(
        candidate.score.nonzero_params != candidate.score.params for candidate in candidates
    )
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
    extras = [name for name in _EXTRAS if name in asked]
    extras += sorted(name for name in asked if " on " not in name and is_resource(name))
    extras += [name for name in asked if " on " in name]
    names += [_EXTRAS[name][0] if name in _EXTRAS else name for name in extras]
    for name in names:
        table.add_column(name, justify="left" if name == "trial" else "right", overflow="fold")
    table.add_row("dense", *_figures(dense, masked, extras))
    rows = (
        [best, *(candidate for candidate in candidates if candidate.number != best.number)]
        if best is not None
        else candidates
    )
    for row in rows:
        chosen = best is not None and row.number == best.number
        name = f"{row.number}{' best' if chosen else '' if row.feasible else ' over budget'}"
        table.add_row(
            name,
            *_figures(row.score, masked, extras),
            style="bold" if chosen else None if row.feasible else "dim",
        )
    return table


def treatment(groups: Sequence[Group], candidates: Sequence[Candidate]) -> list[Table]:
    """Per layer what each candidate does to it; several tables where there are many candidates."""
    touched = [
        group
        for group in groups
        if any(group.key in candidate.plan.choices for candidate in candidates)
    ]
    layers = {layer for group in touched for layer in group.layers}
    listed = (layer for group in groups if group.level != "blocks" for layer in group.layers)
    whole = list(dict.fromkeys(layer for layer in listed if layer not in layers))
    tables = []
    for start in range(0, len(candidates), _COLUMNS):
        part = candidates[start : start + _COLUMNS]
        table = plain(
            "What was done to each layer", f"left whole: {', '.join(whole)}" if whole else None
        )
        table.add_column("layers", overflow="fold")
        table.add_column("acts on", overflow="fold")
        for shown in part:
            table.add_column(f"trial {shown.number}", overflow="fold")
        for group in touched:
            table.add_row(
                ", ".join(group.layers),
                _unit(group),
                *(words.choice(candidate.plan.choices.get(group.key), group) for candidate in part),
            )
        tables.append(table)
    return tables


def groups(found: Sequence[Group], variables: Sequence[Variable]) -> Table:
    """Groups, their sizes, what may be chosen for them, or why nothing may, and which are decided
    together, if any."""
    options = {group.key: variable.options for variable in variables for group in variable.groups}
    decisions = {group.key: variable.name for variable in variables for group in variable.groups}
    shared = any(len(variable.groups) > 1 for variable in variables)
    table = plain("Groups")
    for name in (
        "group",
        "layers",
        "acts on",
        "techniques",
        "share removed",
        *(["decided as"] if shared else []),
    ):
        table.add_column(name, overflow="fold")
    for group in found:
        if group.key in options:
            low, high = options[group.key].ratio
            share = "all or nothing" if group.level == "blocks" else f"{low:g} to {high:g}"
            cells = (", ".join(options[group.key].techniques), share)
        else:
            cells = (
                f"refused: {group.refusal}" if group.refusal else "left whole by the space",
                "",
            )
        together = [decisions.get(group.key, "").rpartition(":")[0]] if shared else []
        table.add_row(group.name, ", ".join(group.layers), _unit(group), *cells, *together)
    return table


def costs(scores: Mapping[str, Score]) -> list[Table]:
    """Cost figures, a column for each named score, several tables where there are many; what is
    missing says why."""
    tables, names = [], list(scores)
    for start in range(0, len(names), _COLUMNS):
        part = {name: scores[name] for name in names[start : start + _COLUMNS]}
        table = plain("Cost", _caption(part))
        table.add_column("")
        for name in part:
            table.add_column(name, justify="right", overflow="fold")
        own = (name for score in part.values() for name in score.resources)
        needs = dict.fromkeys((*plugins.names("quantity"), *own))
        for quantity, label, shown in (*_ROWS, *map(_resource_row, needs)):
            cells = [_cell(score, quantity, shown) for score in part.values()]
            if set(cells) != {words.MISSING}:
                table.add_row(label, *cells)
        tables.append(table)
    return tables


def _resource_row(name: str) -> tuple[str, str, Callable[[Score], str]]:
    return name, of_call(name).title, partial(words.resource, name)


def _cell(score: Score, quantity: str, shown: Callable[[Score], str]) -> str:
    missing = any(text.startswith(f"{quantity}: ") for text in score.unavailable)
    return "not available" if missing else shown(score)


def answers(known: Sequence[Answer], metric: str) -> Table:
    """The budgets that a run can answer, a row each: by a trained model, or by a plan that --train
    trains."""
    table = plain(
        "Budgets that this run can answer",
        "screened: evaluated without fine-tuning; --train trains that plan",
    )
    for name in ("--budget", "trial", "", metric):
        table.add_column(
            name, justify="left" if name in ("--budget", "") else "right", overflow="fold"
        )
    for candidate in known:
        how = "trained" if candidate.trained else "screened, needs --train"
        quality = words.metric(candidate.candidate.score.metric)
        table.add_row(
            " --budget ".join(candidate.budget.split(",")),
            f"{candidate.candidate.number}",
            how,
            quality,
        )
    return table


def family(members: Sequence[tuple[str, Result | None]], metric: str) -> Table:
    """A row for each budget of a family: its best, and where that is."""
    table = plain("The family", "of dense: the latency's median and its 95 % interval")
    for name in ("budget", "trial", metric, "test", "of dense", "FLOPs", "params", "results"):
        table.add_column(
            name, justify="left" if name in ("budget", "results") else "right", overflow="fold"
        )
    for budget, result in members:
        if result is None or result.best is None:
            table.add_row(
                budget,
                "none",
                *[words.MISSING] * 5,
                "" if result is None else str(result.run.results),
            )
            continue
        score = result.best.score
        cells = (words.metric(score.metric), words.metric(score.test_metric), words.ratio(score))
        counts = (words.count(score.flops), words.count(score.params))
        table.add_row(budget, str(result.best.number), *cells, *counts, str(result.run.results))
    return table


def checks(verification: Mapping[str, Any]) -> Table:
    """The checks of an artefact, from verification.json."""
    table = plain("Verification")
    for name in ("check", "", "detail"):
        table.add_column(name, overflow="fold")
    shown = {True: "passed", False: "FAILED", None: "open"}
    for check in verification["checks"]:
        table.add_row(check["name"], shown[check["passed"]], Text(str(check["detail"])))
    for name, reason in verification.get("unchecked", {}).items():
        table.add_row(name, "unchecked", Text(str(reason)))
    return table


def _figures(score: Score, masked: bool, extras: Sequence[str]) -> tuple[str, ...]:
    counts = (score.flops, score.params, *((score.nonzero_params,) if masked else ()))
    latency = tuple(
        cell.replace(" [", "\n[") for cell in (words.latency(score), words.ratio(score))
    )
    quality = (words.quality(score).replace(" ", "\n"), words.metric(score.test_metric))
    more = [_extra(score, name) for name in extras]
    return (
        *quality,
        *latency,
        *(words.count(value) for value in counts),
        words.size(score.size_bytes),
        *more,
    )


def _extra(score: Score, name: str) -> str:
    """The figure of a quantity, or of one on a further target, as `latency on cpu_eager`: there as
    share of dense."""
    quantity, _, target = name.partition(" on ")
    if quantity == "latency":
        return words.ratio(score.on(target)).replace(" [", "\n[")
    if is_resource(quantity):
        return words.resource(quantity, score.on(target))
    return _FIGURES[quantity](score.on(target).figure(quantity))


def plain(title: str, caption: str | None = None) -> Table:
    """A table without vertical lines: figures need the room."""
    # as Text: rich reads titles as markup, and drops the brackets of `pip install
    # 'autoprune[energy]'`
    head, foot = (
        Text(title, style="table.title"),
        Text(caption, style="table.caption") if caption else None,
    )
    return Table(title=head, caption=foot, box=box.SIMPLE, padding=(0, 1, 0, 0))


def _unit(group: Group) -> str:
    if group.level == "units":
        return f"{group.size} units" + (f" in {group.cells} cells" if group.cells > 1 else "")
    return (
        "a block"
        if group.level == "blocks"
        else f"{'x'.join(str(length) for length in group.shape)} weights"
    )


def _caption(scores: Mapping[str, Score]) -> str | None:
    names = sorted({name for score in scores.values() for name in score.uncounted})
    lines = [f"FLOPs leave out what cannot be counted: {', '.join(names)}"] if names else []
    return (
        "\n".join(
            (
                *lines,
                *dict.fromkeys(text for score in scores.values() for text in score.unavailable),
            )
        )
        or None
    )
