"""What operators below the layers do to channel ids.

Pointwise operators unite the ids of their operands, reductions and pools pass ids that are constant along
what they reduce. Where no rule covers a case, the ids that reach it are frozen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autoprune.pruning.ids import Use, varying

if TYPE_CHECKING:
    from autoprune.pruning.propagation import Propagation

__all__ = ["by_rule", "pointwise"]

_SPATIAL = re.compile(
    r"(_?(max|avg|adaptive_max|adaptive_avg|fractional_max)_pool\dd.*|_?upsample_.*\dd.*|(reflection|replication)_pad\dd|mkldnn_max_pool\dd)"
)
_REDUCTIONS = {
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "prod",
    "all",
    "any",
    "argmax",
    "argmin",
    "logsumexp",
    "linalg_vector_norm",
    "norm",
    "median",
    "aminmax",
}
_ALONG = {"softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "topk"}
_CONTRACTIONS = {"mm", "bmm", "matmul", "addmm", "baddbmm"}


def by_rule(found: Propagation, base: str, outs: list[Tensor], tensors: list[Tensor], dim: Any) -> bool:
    """Label the outputs of a pool, reduction or product of activations; False where no rule covers it."""
    if _SPATIAL.fullmatch(base):
        return _spatial(found, base, outs, tensors[0])
    if base in _REDUCTIONS:
        return _reduction(found, outs, tensors[0], dim)
    if base in _ALONG:
        return _along(found, outs, tensors[0], dim)
    alone = not any(tensor in found.labels for tensor in tensors[:-2])
    return base in _CONTRACTIONS and alone and _contraction(found, outs[0], *tensors[-2:])


def pointwise(found: Propagation, outs: list[Tensor], tensors: list[Tensor]) -> None:
    """Unite the ids of the operands, tie parameters among them, and pass the ids on."""
    shape = outs[0].shape
    joined: Tensor | None = None
    for tensor in _coupled(found, [tensor for tensor in tensors if tensor in found.labels], shape):
        labels = found.labels.get(tensor).expand(shape)
        if joined is not None:
            found.ids.unite(joined, labels)
        joined = labels if joined is None else torch.maximum(joined, labels)
    assert joined is not None
    for tensor in tensors:
        place = found.position(tensor)
        if place is not None and tensor.numel() > 1:
            _tie(found, place[0], place[1].expand(shape), joined)
    for out in outs:
        if out.shape == shape:
            found.labels.set(out, joined)


def _coupled(found: Propagation, tensors: list[Tensor], shape: torch.Size) -> list[Tensor]:
    """The operands whose channels meet; a single channel spread over many (a gate, a mask) stays, and couples none."""
    spread = set()
    for tensor in tensors:
        labels = found.labels.get(tensor)
        wide = {
            dim - len(shape)
            for dim in range(len(shape))
            if dim < len(shape) - tensor.dim() or tensor.shape[dim - len(shape)] != shape[dim]
        }
        if not varying(labels) and any(
            other is not tensor and any(dim - other.dim() in wide for dim in varying(found.labels.get(other)))
            for other in tensors
        ):
            found.ids.freeze(labels, f"spread over other channels at {found.where()}")
            spread.add(id(tensor))
    return [tensor for tensor in tensors if id(tensor) not in spread]


def _tie(found: Propagation, name: str, positions: Tensor, labels: Tensor) -> None:
    """Tie each dimension of a parameter, broadcast over an activation, to the ids it meets there."""
    shape = found.shapes[name]
    rest = positions.reshape(-1)
    flat = found.ids.roots(labels).reshape(-1)
    for dim in reversed(range(len(shape))):
        index, rest = rest % shape[dim], rest // shape[dim]
        if shape[dim] == 1:
            continue
        vector = torch.zeros(shape[dim], dtype=torch.int64)
        vector[index] = flat
        if bool((vector[index] == flat).all()) and bool((vector != vector[:1]).any()):
            found.ids.uses.append(Use(name, dim, vector, "carry"))
    if len(varying(labels)) and not any(use.tensor == name for use in found.ids.uses):
        found.ids.freeze(labels, f"parameter {name} meets channels in a way no rule covers, at {found.where()}")


def _spatial(found: Propagation, base: str, outs: list[Tensor], tensor: Tensor) -> bool:
    match = re.search(r"(\d)d", base)
    assert match is not None
    labels = found.labels.get(tensor)
    kept = labels.dim() - int(match[1])
    if any(dim >= kept for dim in varying(labels)):
        return False
    first = labels[(slice(None),) * kept + (slice(1),) * int(match[1])]
    for out in outs:
        found.labels.set(out, first.expand(out.shape))
    return True


def _reduction(found: Propagation, outs: list[Tensor], tensor: Tensor, given: Any) -> bool:
    labels = found.labels.get(tensor)
    dims = sorted({dim % labels.dim() for dim in ([given] if isinstance(given, int) else given or range(labels.dim()))})
    if any(dim in varying(labels) for dim in dims):
        return False
    for dim in reversed(dims):
        labels = labels.narrow(dim, 0, 1)
    for out in outs:
        found.labels.set(out, labels.expand(out.shape) if out.dim() == labels.dim() else labels.reshape(out.shape))
    return True


def _along(found: Propagation, outs: list[Tensor], tensor: Tensor, given: Any) -> bool:
    labels = found.labels.get(tensor)
    if any(dim == int(given) % labels.dim() for dim in varying(labels)):
        return False
    for out in outs:
        found.labels.set(
            out, labels.expand(out.shape) if out.shape == labels.shape else labels[tuple(slice(n) for n in out.shape)]
        )
    return True


def _contraction(found: Propagation, out: Tensor, first: Tensor, second: Tensor) -> bool:
    a, b = found.labels.get(first), found.labels.get(second)
    if out.dim() != b.dim() or out.dim() != a.dim():
        return False
    if a.dim() - 1 in varying(a) or b.dim() - 2 in varying(b):  # as query and key: no parameter reads these channels
        if varying(a) not in ([], [a.dim() - 1]) or varying(b) not in ([], [b.dim() - 2]):
            return False
        for labels in (a, b):
            found.ids.freeze(labels, f"product of activations over their channels at {found.where()}")
        return True
    rows, columns = a.narrow(-1, 0, 1).expand(out.shape), b.narrow(-2, 0, 1).expand(out.shape)
    if bool(rows.any()) and bool(columns.any()):
        return False
    found.labels.set(out, torch.maximum(rows, columns))
    return True
