"""Channel ids: which are one unit (union-find), which may not be cut and why, and where parameters meet them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["Balance", "Ids", "Labels", "Use", "varying", "vector_along"]

Role = Literal["produce", "consume", "carry"]


@dataclass(frozen=True)
class Use:
    """Entry i of dimension `dim` of a tensor belongs to the channel with id `ids[i]` (0: to none).

    `produce`: the ids are born there; `consume`: they end there, and zeroing these entries is what cutting equals;
    `carry`: they pass (norms, depthwise). With `groups` > 1 the ids run over the inputs of a grouped convolution.
    """

    tensor: str
    dim: int
    ids: Tensor
    role: Role
    kind: str = "other"
    groups: int = 1


@dataclass(frozen=True)
class Balance:
    """The channels `ids`, in order, form `blocks` equal blocks that must lose the same count; `why` says of what."""

    ids: Tensor
    blocks: int
    why: str


class Ids:
    """A union-find over channel ids; id 0 means "no channel"."""

    def __init__(self) -> None:
        self.parent: list[int] = [0]
        self.uses: list[Use] = []
        self.balances: list[Balance] = []
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
        return torch.tensor([self.find(i) for i in unique.tolist()], dtype=torch.int64)[inverse].reshape(ids.shape)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Make one unit of each pair of ids; 0 unites with nothing."""
        pairs = torch.stack([*torch.broadcast_tensors(first, second)], -1).reshape(-1, 2)  # type: ignore[no-untyped-call]
        pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs > 0).all(1)]
        for a, b in torch.unique(pairs, dim=0).tolist():
            a, b = self.find(a), self.find(b)
            if a != b:
                self.parent[max(a, b)] = min(a, b)

    def freeze(self, ids: Tensor, why: str) -> None:
        """These channels may not be cut."""
        for item in torch.unique(ids).tolist():
            if item:
                self._frozen.setdefault(item, why)

    def frozen(self) -> dict[int, str]:
        """Representative -> the first reason given."""
        found: dict[int, str] = {}
        for item, why in self._frozen.items():
            found.setdefault(self.find(item), why)
        return found


class Labels:
    """Ids of every element of the activations that carry some, by tensor identity."""

    def __init__(self) -> None:
        self._labels = WeakIdKeyDictionary()

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and tensor in self._labels

    def get(self, tensor: Tensor) -> Tensor:
        """int64, shaped like `tensor`; zeros where it carries none."""
        found = self._labels.get(tensor)  # type: ignore[no-untyped-call]
        return found if found is not None else torch.zeros((), dtype=torch.int64).expand(tensor.shape)

    def set(self, tensor: Tensor, labels: Tensor) -> None:
        """Label `tensor`; labels that are all zero are not kept."""
        if labels.numel() and bool(labels.any()):
            self._labels[tensor] = labels
        elif tensor in self._labels:
            del self._labels[tensor]


def varying(labels: Tensor) -> list[int]:
    """The dimensions along which the ids differ."""
    return [
        dim for dim in range(labels.dim()) if labels.shape[dim] > 1 and bool((labels != labels.narrow(dim, 0, 1)).any())
    ]


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
    return vector.view([-1 if d == dim % len(shape) else 1 for d in range(len(shape))]).expand(shape)
