"""Quantities: what a budget may limit and an objective optimise.

Those that every model has are listed here. What a call needs beside time, as peak memory or energy,
is a plug-in each: one file in `measuring/quantities/`, or `package.module:Name`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune import plugins
from autoprune.errors import InputError, nearest

__all__ = [
    "BYTES",
    "TIMED",
    "depends_on_target",
    "find",
    "is_resource",
    "is_runnable",
    "largest_unit",
    "measured_apart",
    "names",
    "needs_run",
    "of_call",
    "show",
    "units",
]

BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_COUNT = {"": 0.0, "K": 1e3, "M": 1e6, "G": 1e9}
# quantity -> (units of absolute limits with their factor, an example of each spelling)
_EVERY_MODEL: Mapping[str, tuple[Mapping[str, float], str]] = {
    "latency": ({"ms": 1.0, "us": 1e-3, "s": 1e3}, "50% (of dense) or 2.5ms"),
    "flops": (_COUNT | {"T": 1e12}, "40% (of dense) or 300M"),
    "params": (_COUNT, "25% (of dense) or 1.2M"),
    "nonzero_params": (_COUNT, "10% (of dense) or 50K"),
    "size": (BYTES, "30% (of dense) or 1.2MB"),
    "size_compressed": (BYTES, "20% (of dense) or 200KB"),
    "throughput": ({"/s": 1.0, "K/s": 1e3, "M/s": 1e6}, "150% (of dense) or 200/s, at least"),
    "metric_drop": ({}, "0.01 (absolute, towards worse)"),
}
_QUALITY = ("metric", "loss", "metric_drop")
TIMED = ("latency", "throughput")
_FILES = ("size", "size_compressed")
# Read, and never printed: a limit is written into a study in the unit beside it
_READ_ONLY = ("us", "s", "KiB", "MiB", "GiB")


def is_runnable(name: str) -> bool:
    """Whether a check or a row of this name runs the model on the target."""
    return name == "latency" or name in plugins.names("quantity") or ":" in name


def names() -> tuple[str, ...]:
    """What a budget may limit, without a user's own."""
    return (*_EVERY_MODEL, *plugins.names("quantity"))


def is_resource(name: str) -> bool:
    """Whether it is what a call needs beside time, a plug-in."""
    return name not in _EVERY_MODEL and name not in _QUALITY


def of_call(name: str) -> plugins.Quantity:
    """The plug-in of what a call needs. Raises InputError for an unknown name."""
    if ":" not in name and name not in plugins.names("quantity"):
        known = names()
        raise InputError(
            f"unknown quantity {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        )
    plugin: plugins.Quantity = plugins.create("quantity", name)
    return plugin


def find(given: Iterable[str], folders: Sequence[Path]) -> None:
    """Import the user's own among the keys of a budget, or objectives, from `folders`: from then on
    their names are enough. Raises InputError."""
    for key in given:
        name = key.partition(" on ")[0].strip()
        if ":" in name:
            plugins.create("quantity", name, folders)


def units(name: str) -> tuple[Mapping[str, float], str]:
    """The units of absolute limits with their factors, and examples of the spelling. Raises
    InputError for an unknown name."""
    if name in _EVERY_MODEL:
        return _EVERY_MODEL[name]
    plugin = of_call(name)
    return plugin.units, plugin.example


def needs_run(name: str) -> bool:
    """Whether only running the model on the target tells it."""
    return name in TIMED or is_resource(name)


def depends_on_target(name: str) -> bool:
    """Whether it differs from target to target."""
    return needs_run(name) or name in _FILES


def measured_apart(name: str) -> bool:
    """Whether a search measures it only where it is asked for."""
    return is_resource(name) or name == "size_compressed"


def largest_unit(name: str, value: float) -> tuple[str, float]:
    """The largest printed unit that is no more than `value`, and its factor; else the smallest."""
    known = [(unit, factor) for unit, factor in units(name)[0].items() if factor]
    fitting = [pair for pair in known if pair[0] not in _READ_ONLY and pair[1] <= abs(value)]
    return max(fitting, key=lambda pair: pair[1], default=known[0])


def show(name: str, value: Any) -> str:
    """The figure of a call's quantity with its unit, as `1.23 MB`."""
    unit, factor = largest_unit(name, value)
    return f"{value / factor:.3g} {unit}"
