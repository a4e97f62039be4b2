"""Tables of the targets that there are, and of the settings of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from autoprune.reporting.tables import plain

if TYPE_CHECKING:
    from autoprune.reading.available import Found

__all__ = ["listing", "settings"]


def listing(found: Sequence[Found]) -> Table:
    """A row for each target: what it is, and whether it runs here."""
    table = plain("Targets", "autoprune targets NAME shows one with its settings")
    for name in ("target", "device", "runtime", "threads", "batch", "dtype", "runs here"):
        table.add_column(
            name, justify="right" if name in ("threads", "batch") else "left", overflow="fold"
        )
    for target in found:
        where = target.target
        here = "yes" if target.reason is None else f"no: {target.reason}"
        counts = (str(where.threads), str(where.batch))
        table.add_row(where.name, where.device, where.runtime, *counts, where.dtype, Text(here))
    return table


def settings(found: Found) -> Table:
    """Every key of a target file: its value, its default, what it may be."""
    table = plain(f"Target {found.target.name}")
    for name in ("key", "value", "default", "may be"):
        table.add_column(name, overflow="fold")
    for setting in found.settings:
        default = "the file's name" if setting.default is None else str(setting.default)
        table.add_row(setting.key, str(setting.value), default, setting.needed)
    return table
