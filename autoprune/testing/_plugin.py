"""What every plug-in is."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["require_frozen"]


def require_frozen(plugin: Any) -> None:
    """Its fields are its settings, so it is a frozen dataclass; it has a docstring."""
    assert dataclasses.is_dataclass(plugin), "it is no dataclass"
    frozen = plugin.__dataclass_params__.frozen  # type: ignore[union-attr]
    assert frozen, "it is a dataclass that is not frozen"
    assert type(plugin).__doc__, "it has no docstring"
