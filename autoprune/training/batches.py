"""Batches: moving them, joining them again, leaving out what batch norm cannot take."""

from __future__ import annotations

import itertools
import math
import operator
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from autoprune.task import Batch, Inputs

__all__ = ["concatenate", "move_to", "sample", "standard_error", "whole"]

# Of a split, to take the standard error of a metric from: so any metric has one, not means alone
_PARTS = 20


def move_to(values: Any, where: torch.device | str) -> Any:
    """The same nesting with every tensor on the device `where`."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(where), values)


def whole(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Leave out batches of a single sample after larger ones: batch norm cannot take statistics
    from one sample."""
    largest = 0
    for args, kwargs, target in batches:
        size = Inputs(args, kwargs).batch_size
        largest = max(largest, size)
        if size > 1 or largest == 1:
            yield args, kwargs, target


def concatenate(parts: Sequence[Any]) -> Any:
    """Values of several batches as one, along the first dimension; lists where they are no tensors
    or do not fit."""
    flat = [tree_flatten(part) for part in parts]
    if any(structure != flat[0][1] for _, structure in flat):
        return list(parts)
    return tree_unflatten(
        [_join_leaves(leaves) for leaves in zip(*(leaves for leaves, _ in flat), strict=True)],
        flat[0][1],
    )


def _join_leaves(leaves: tuple[Any, ...]) -> Any:
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return list(leaves)
    if all(leaf.dim() == 0 for leaf in leaves):
        return torch.stack(leaves)
    if any(leaf.dim() == 0 or leaf.shape[1:] != leaves[0].shape[1:] for leaf in leaves):
        return list(leaves)
    return torch.cat(leaves)


def standard_error(metric: Callable[[Any, Any], float], outputs: Any, targets: Any) -> float | None:
    """The standard error of a metric over samples: from what it gives on up to 20 parts of them,
    every 20th sample.

    None where outputs and targets are not tensors with an entry for each sample, or the metric
    fails on a part.
    """
    leaves = [leaf for leaf in tree_leaves((outputs, targets)) if leaf is not None]
    if not leaves or not all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
        return None
    count = len(leaves[0])
    parts = min(_PARTS, count // 2)
    if parts < 2 or any(len(leaf) != count for leaf in leaves):
        return None
    metrics = []
    for first in range(parts):
        places = slice(first, None, parts)
        part = tree_map_only(Tensor, operator.itemgetter(places), (outputs, targets))
        try:
            metrics.append(float(metric(*part)))
        except Exception:  # the user's own, which need not take a part: of one class, say
            return None
    error = statistics.stdev(metrics) / math.sqrt(parts)
    return error if math.isfinite(error) else None


def sample(data: Any, count: int) -> Any:
    """At most `count` samples of a data set, drawn once and for all; of anything else the batches
    that hold the first.

    What is no larger than that is given back as it is.
    """
    if isinstance(data, IterableDataset):
        return _FirstSamples(data, count)
    if (
        isinstance(data, DataLoader)
        or not hasattr(data, "__getitem__")
        or not hasattr(data, "__len__")
    ):
        return _First(data, count)
    if len(data) <= count:
        return data
    chosen = (
        torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count].sort().values
    )
    if type(data) is TensorDataset:
        return TensorDataset(*(tensor[chosen] for tensor in data.tensors))
    return Subset(data, chosen.tolist())


class _FirstSamples(IterableDataset[Any]):
    """The first `count` samples of a data set that can only be gone through."""

    def __init__(self, data: IterableDataset[Any], count: int) -> None:
        self.data, self.count = data, count

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(iter(self.data), self.count)


@dataclass(frozen=True)
class _First:
    """The batches of a loader that hold its first `count` samples."""

    batches: Any
    count: int

    def __iter__(self) -> Iterator[Any]:
        seen = 0
        for batch in self.batches:
            if seen >= self.count:
                return
            yield batch
            held = dict(batch) if isinstance(batch, Mapping) else batch
            tensors = [
                leaf for leaf in tree_leaves(held) if isinstance(leaf, Tensor) and leaf.dim()
            ]
            seen += len(tensors[0]) if tensors else 1
