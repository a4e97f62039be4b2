"""Sensitivities as a table, as JSON and as a page with curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from autoprune.errors import MissingPackage
from autoprune.reporting import words
from autoprune.reporting.tables import plain

__all__ = ["Map", "plot", "plotly", "record", "table"]


class Quality(Protocol):
    """Metric and loss of a model."""

    @property
    def metric(self) -> float:
        """The task's metric."""

    @property
    def loss(self) -> float:
        """The task's loss."""


class Row(Protocol):
    """One decision taken alone."""

    @property
    def variable(self) -> str:
        """Name of the decision."""

    @property
    def technique(self) -> str:
        """What is done."""

    @property
    def ratio(self) -> float:
        """The share removed."""

    @property
    def loss(self) -> float:
        """Loss of the reconstructed model."""

    @property
    def metric(self) -> float:
        """Metric of the reconstructed model."""

    @property
    def latency(self) -> float | None:
        """Predicted ratio to the dense latency."""


class Map(Protocol):
    """All decisions, and the dense model on the same inputs."""

    @property
    def dense(self) -> Quality:
        """The dense model."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def rows(self) -> Sequence[Row]:
        """One for each decision, technique and ratio."""


def record(found: Map) -> dict[str, Any]:
    """What `--json` prints."""
    dense = {"metric": found.dense.metric, "loss": found.dense.loss}
    rows = [asdict(row) for row in found.rows]  # type: ignore[call-overload]
    return {"version": 1, "metric": found.metric, "dense": dense, "rows": rows}


def table(found: Map) -> Table:
    """A row for each decision and technique: metric, loss added and predicted latency at every
    ratio."""
    ratios = sorted({row.ratio for row in found.rows})
    made = plain(
        f"{found.metric}, loss added and latency where one decision alone is taken; "
        "reconstructed by least squares, without fine-tuning",
        f"dense: {words.metric(found.dense.metric)}, loss {found.dense.loss:.4g}; latency: "
        "predicted, of dense",
    )
    made.add_column("decision")
    made.add_column("technique")
    for ratio in ratios:
        made.add_column(f"-{ratio:.0%}", justify="right")
    for variable, technique in dict.fromkeys((row.variable, row.technique) for row in found.rows):
        here = {
            row.ratio: row
            for row in found.rows
            if (row.variable, row.technique) == (variable, technique)
        }
        cells = [
            f"{words.metric(row.metric)} {row.loss - found.dense.loss:+.4f}"
            + ("" if row.latency is None else f" {row.latency:.0%}")
            if row
            else ""
            for row in map(here.get, ratios)
        ]
        made.add_row(variable, technique, *cells)
    return made


def plotly() -> Any:
    """plotly's graph objects. Raises MissingPackage where it is not installed."""
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise MissingPackage("a plot needs plotly: pip install 'autoprune[plots]'") from error
    return graph_objects


def plot(found: Map, path: Path) -> None:
    """A page with a curve for each decision: the loss added against the latency saved (or the
    ratio).

    Raises MissingPackage without plotly.
    """
    graph_objects = plotly()
    timed = any(row.latency is not None for row in found.rows)
    figure = graph_objects.Figure()
    for variable, technique in dict.fromkeys((row.variable, row.technique) for row in found.rows):
        rows = [row for row in found.rows if (row.variable, row.technique) == (variable, technique)]
        here = sorted(
            (row for row in rows if row.latency is not None or not timed), key=lambda row: row.ratio
        )
        saved = [0.0, *(100 * (1 - (row.latency or 1.0) if timed else row.ratio) for row in here)]
        added = [0.0, *(row.loss - found.dense.loss for row in here)]
        texts = ["dense", *(f"-{row.ratio:.0%}: {found.metric} {row.metric:.4f}" for row in here)]
        name = f"{variable}, {technique}"
        figure.add_scatter(
            x=saved, y=added, mode="lines+markers", name=name, text=texts, hoverinfo="name+text+y"
        )
    figure.update_layout(
        title="What each decision costs when it alone is taken (reconstructed, not fine-tuned)",
        xaxis_title="latency saved, % of dense (predicted)" if timed else "share removed, %",
        yaxis_title="loss added",
        template="plotly_white",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(path)
