"""Channel ids: which are one unit (union-find), which may not be cut and why, and where parameters
meet them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = [
    "Balance",
    "Ids",
    "Labels",
    "Role",
    "Use",
    "compact",
    "match_dims",
    "small",
    "spread",
    "varying",
    "vector_along",
]

Role = Literal["produce", "consume", "carry"]


@dataclass(frozen=True)
class Use:
    """Entry i of dimension `dim` of a tensor belongs to the channel with id `ids[i]` (0: to none).

    `produce`: the ids are born there; `consume`: they end there, and zeroing these entries is what
    cutting equals; `carry`: they pass (norms, depthwise). With `groups` > 1 the ids run over the
    inputs of a grouped convolution. An id of -1 says that this use reads another part of the tensor
    (a fused projection, a slice of a parameter). `layer` names the layer that produces the ids
    where that is not the tensor's own.
    """

    tensor: str
    dim: int
    ids: Tensor
    role: Role
    kind: str = "other"
    groups: int = 1
    layer: str = ""


@dataclass(frozen=True)
class Balance:
    """The channels `ids`, in order, form `blocks` equal blocks that must lose the same count; `why`
    says of what.

    A `soft` one only keeps the code as it is written (`chunk`); where it cannot hold, the code's
    bounds are rebound.
    """

    ids: Tensor
    blocks: int
    why: str
    soft: bool = False


class Ids:
    """A union-find over channel ids; id 0 means "no channel"."""

    def __init__(self) -> None:
        self.parent: list[int] = [0]
        self.uses: list[Use] = []
        self.balances: list[Balance] = []
        self.heads: list[Tensor] = []  # ids that are attention heads
        self._frozen: dict[int, str] = {}

    def new(self, count: int) -> Tensor:
        """`count` fresh ids, int64 (count,)."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def new_frozen(self, why: str) -> int:
        """One fresh id that may not be cut; whatever is united with it may not either."""
        fresh = int(self.new(1))
        self._frozen[fresh] = why
        return fresh

    def find(self, item: int) -> int:
        """The representative of an id."""
        parent = self.parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def roots(self, ids: Tensor) -> Tensor:
        """Representatives, shaped like `ids`."""
        unique, inverse = torch.unique(ids, return_inverse=True)
        representatives = [self.find(i) if i > 0 else i for i in unique.tolist()]
        return torch.tensor(representatives, dtype=torch.int64)[inverse].reshape(ids.shape)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Make one unit of each pair of ids; 0 unites with nothing."""
        first, second = small(*torch.broadcast_tensors(first, second))  # type: ignore[no-untyped-call]
        count = len(self.parent)
        pairs = first.flatten() * count + second.flatten()
        for pair in torch.unique(
            pairs[(first != second).flatten() & ((first > 0) & (second > 0)).flatten()]
        ).tolist():
            a, b = self.find(pair // count), self.find(pair % count)
            if a != b:
                self.parent[max(a, b)] = min(a, b)

    def unite_along(self, table: Tensor, dims: Iterable[int], why: str) -> None:
        """Make one unit of what lies along `dims` of `table`; where some of it is no channel, none
        may be cut."""
        (table,) = small(table)
        first = table
        for dim in dims:
            first = first.amax(dim, keepdim=True)
        self.unite(first.expand(table.shape), table)
        self.freeze(first.expand(table.shape)[table == 0], why)

    def freeze(self, ids: Tensor, why: str) -> None:
        """These channels may not be cut."""
        for item in torch.unique(*small(ids)).tolist():
            if item > 0:
                self._frozen.setdefault(item, why)

    def frozen(self) -> dict[int, str]:
        """Representative -> the first reason given."""
        reasons: dict[int, str] = {}
        for item, why in self._frozen.items():
            reasons.setdefault(self.find(item), why)
        return reasons


class Labels:
    """Ids of every element of the activations that carry some, by tensor identity."""

    def __init__(self) -> None:
        self._labels = WeakIdKeyDictionary()
        # (rows, units): units of several layers that lie in one tensor, row by row
        self.stacks: list[Tensor] = []

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and tensor in self._labels

    def get(self, tensor: Tensor) -> Tensor:
        """int64, shaped like `tensor`; zeros where it carries none."""
        labels = self._labels.get(tensor)  # type: ignore[no-untyped-call]
        return (
            labels
            if labels is not None
            else torch.zeros((), dtype=torch.int64).expand(tensor.shape)
        )

    def set(self, tensor: Tensor, labels: Tensor) -> None:
        """Label `tensor`; labels that are all zero are not kept."""
        if labels.numel() and bool(small(labels)[0].any()):
            self._labels[tensor] = (
                labels if 0 in labels.stride() else compact(labels).expand(labels.shape)
            )
        elif tensor in self._labels:
            del self._labels[tensor]

    def channels(self, labels: Tensor) -> list[int]:
        """The dimensions along which the ids differ, but for those that count a stack's rows: no
        cut shortens them."""
        return [dim for dim in varying(labels) if not self._counts_rows(labels, dim)]

    def _counts_rows(self, labels: Tensor, dim: int) -> bool:
        (labels,) = small(labels)
        for stack in self.stacks:
            if bool(torch.isin(labels, stack).all()):
                place = torch.zeros(int(stack.max()) + 1, dtype=torch.int64)
                place[stack] = torch.arange(stack.shape[1]).expand(stack.shape)
                return dim not in varying(place[labels])
        return False


def small(*tables: Tensor) -> tuple[Tensor, ...]:
    """The same ids with every dimension along which all of them are merely expanded taken once."""
    for dim in range(tables[0].dim()):
        if all(table.shape[dim] > 1 and table.stride(dim) == 0 for table in tables):
            tables = tuple(table.narrow(dim, 0, 1) for table in tables)
    return tables


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which the ids differ."""
    (table,) = small(labels)
    return [
        dim
        for dim in range(table.dim())
        if table.shape[dim] > 1 and bool((table != table.narrow(dim, 0, 1)).any())
    ]


def compact(labels: Tensor) -> Tensor:
    """The ids with every dimension along which they do not differ taken once."""
    kept = varying(labels)
    for dim in range(labels.dim()):
        if dim not in kept:
            labels = labels.narrow(dim, 0, 1)
    return labels.clone()


def vector_along(labels: Tensor, dim: int) -> Tensor | None:
    """The ids along `dim`, (size,), where they are the same at every other index; else None."""
    dim %= labels.dim()
    if not labels.numel() or any(other != dim for other in varying(labels)):
        return None
    index = tuple(slice(None) if d == dim else 0 for d in range(labels.dim()))
    return labels[index].clone()


def spread(vector: Tensor, shape: Iterable[int], dim: int) -> Tensor:
    """`vector` laid along `dim` of a tensor of this shape, expanded."""
    shape = tuple(shape)
    return vector.view([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(
        shape
    )


def match_dims(before: torch.Size, after: torch.Size) -> list[tuple[list[int], list[int]]]:
    """Runs of dimensions of equal product, old against new."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = (
            ([i], [j])
            if i < len(before) and j < len(after)
            else (list(range(i, len(before))), list(range(j, len(after))))
        )
        left = before[i] if i < len(before) else 1
        right = after[j] if j < len(after) else 1
        i, j = (i + 1, j + 1) if i < len(before) and j < len(after) else (len(before), len(after))
        while left != right:
            if left < right:
                left *= before[i]
                old.append(i)
                i += 1
            else:
                right *= after[j]
                new.append(j)
                j += 1
        runs.append((old, new))
    return runs
