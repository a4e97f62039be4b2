"""How many multiply-adds an einsum takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["einsum_flops"]


def einsum_flops(
    equation: str, shapes: Sequence[Sequence[int]], path: Sequence[int] | None = None
) -> int:
    """Multiply-adds of the operands' pairwise contractions, in the order of `path` (pairs, flat) or
    left to right.

    A pair costs the product of the lengths of all its indices, but those that it could sum away
    beforehand.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    named = [
        _indices(term, len(shape)) for term, shape in zip(left.split(","), shapes, strict=True)
    ]
    lengths: dict[str, int] = {}
    for names, shape in zip(named, shapes, strict=True):
        for name, length in zip(names, shape, strict=True):
            lengths[name] = max(length, lengths.get(name, 1))
    flat = [name for names in named for name in names]
    dots = sorted({name for name in flat if name[0] == "."}, reverse=True)
    if arrow:
        result = {*right.replace("...", ""), *(dots if "..." in right else ())}
    else:
        result = {*dots, *(name for name in flat if flat.count(name) == 1)}
    return _contraction_flops([set(names) for names in named], lengths, result, list(path or ()))


def _contraction_flops(
    operands: list[set[str]], lengths: dict[str, int], result: set[str], path: list[int]
) -> int:
    total = 0
    while len(operands) > 1:
        places = (path.pop(0), path.pop(0)) if path else (0, 1)
        first, second = (operands[place] for place in places)
        rest = [names for place, names in enumerate(operands) if place not in places]
        needed = result.union(*rest)
        first, second = first & (second | needed), second & (first | needed)
        total += math.prod(lengths[name] for name in first | second)
        made = (first | second) & needed
        operands = [*rest, made] if path else [made, *rest]
    return total


def _indices(term: str, rank: int) -> list[str]:
    """One name for each dimension; those under an ellipsis are counted from its right, so that they
    broadcast."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    return (
        [*before, *(f".{place}" for place in range(hidden, 0, -1)), *after]
        if dots
        else list(before)
    )
