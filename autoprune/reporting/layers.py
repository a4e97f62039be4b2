"""Tables of what a model costs layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from autoprune.measuring.profiling.per_layer import Breakdown, Layer
from autoprune.reporting import words
from autoprune.reporting.tables import plain

__all__ = ["layers"]


def layers(found: Breakdown, title: str, most: int) -> Table:
    """The `most` costliest layers, by their share of the latency (or of the FLOPs, without one),
    the rest summed."""
    timed = found.note is None
    caption = (
        "what each module does itself, its children left out; ms are of a profiled call, "
        "somewhat slower"
    )
    table = plain(title, caption if timed else found.note)
    for name in (
        "layer",
        "type",
        *(("latency", "ms") if timed else ()),
        "FLOPs",
        "of all",
        "params",
        "of all",
    ):
        table.add_column(
            name, justify="left" if name in ("layer", "type") else "right", overflow="fold"
        )
    ordered = sorted(
        found.layers, key=lambda layer: -float((layer.share if timed else layer.flops) or 0)
    )
    shown, rest = ordered[:most], ordered[most:]
    flops, params = (
        sum(getattr(layer, name) for layer in found.layers) or 1 for name in ("flops", "params")
    )
    for layer in shown:
        table.add_row(
            layer.name or "(the model itself)", layer.kind, *_figures([layer], timed, flops, params)
        )
    if rest:
        table.add_row(f"{len(rest)} more", "", *_figures(rest, timed, flops, params), style="dim")
    return table


def _figures(some: Sequence[Layer], timed: bool, flops: int, params: int) -> list[str]:
    counted, held = sum(layer.flops for layer in some), sum(layer.params for layer in some)
    counts = [
        words.count(counted),
        _share(counted / flops),
        words.count(held),
        _share(held / params),
    ]
    if not timed:
        return counts
    share, spent = (
        sum(layer.share or 0.0 for layer in some),
        sum(layer.latency_ms or 0.0 for layer in some),
    )
    return [_share(share), f"{spent:.3g}", *counts]


def _share(value: float) -> str:
    return f"{value * 100:.1f} %"
