"""Batches: moving them, joining them again, leaving out what batch norm cannot take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from autoprune.task import Batch, Inputs

__all__ = ["joined", "moved", "whole"]


def moved(values: Any, where: torch.device | str) -> Any:
    """The same nesting with every tensor on the device `where`."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(where), values)


def whole(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Leave out batches of a single sample after larger ones: batch norm cannot take statistics from one sample."""
    largest = 0
    for args, kwargs, target in batches:
        size = Inputs(args, kwargs).batch_size
        largest = max(largest, size)
        if size > 1 or largest == 1:
            yield args, kwargs, target


def joined(parts: Sequence[Any]) -> Any:
    """Values of several batches as one, along the first dimension; lists where they are no tensors or do not fit."""
    flat = [tree_flatten(part) for part in parts]
    if any(structure != flat[0][1] for _, structure in flat):
        return list(parts)
    return tree_unflatten([_joined(leaves) for leaves in zip(*(leaves for leaves, _ in flat), strict=True)], flat[0][1])


def _joined(leaves: tuple[Any, ...]) -> Any:
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return list(leaves)
    if all(leaf.dim() == 0 for leaf in leaves):
        return torch.stack(leaves)
    if any(leaf.dim() == 0 or leaf.shape[1:] != leaves[0].shape[1:] for leaf in leaves):
        return list(leaves)
    return torch.cat(leaves)
