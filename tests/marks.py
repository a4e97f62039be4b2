"""Parameters of a test, of which a few are run each time and the others by scripts/test_slow."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

ParameterSet = type(pytest.param(0))  # which pytest keeps to itself


def slow_but(quick: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Every value as a parameter; those that are not among the `quick` ones are marked slow."""
    parameters = []
    for given in values:
        value, marks = (
            (given.values[0], given.marks) if isinstance(given, ParameterSet) else (given, ())
        )
        slow = () if value in quick else (pytest.mark.slow,)
        parameters.append(pytest.param(value, marks=(*marks, *slow)))
    return parameters
