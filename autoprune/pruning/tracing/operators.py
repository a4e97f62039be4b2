"""What operators below the layers do to channel ids.

Pointwise operators unite the ids of their operands, reductions and pools pass ids that are constant along
what they reduce, products of activations make heads of them. Where no rule covers a case, the ids are frozen.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autoprune.pruning.tracing.channel_ids import varying

if TYPE_CHECKING:
    from autoprune.pruning.tracing.propagation import Propagation

__all__ = ["attention", "by_rule", "pointwise", "product", "tie"]

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
        return _reduction(found, base, outs, tensors[0], dim)
    if base in _ALONG:
        return _along(found, base, outs, tensors[0], dim)
    if base == "glu":
        return _gated(found, outs[0], tensors[0], dim)
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
        if found.position(tensor) is not None and tensor.numel() > 1:
            tie(found, tensor, joined)
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
            found.demands.never(labels, f"spread over other channels at {found.where()}")
            spread.add(id(tensor))
    return [tensor for tensor in tensors if id(tensor) not in spread]


def tie(found: Propagation, tensor: Tensor, labels: Tensor) -> None:
    """Tie a parameter, or what was moved out of one, to the ids of the activation that it is broadcast over."""
    place = found.position(tensor)
    assert place is not None
    name, positions = place
    why = f"parameter {name} meets channels in a way no rule covers, at {found.where()}"
    found.demands.tie(name, found.shapes[name], positions.expand(labels.shape), labels, why)


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


def _reduction(found: Propagation, base: str, outs: list[Tensor], tensor: Tensor, given: Any) -> bool:
    labels = found.labels.get(tensor)
    dims = sorted({dim % labels.dim() for dim in ([given] if isinstance(given, int) else given or range(labels.dim()))})
    for dim in reversed(dims):
        if dim in set(varying(labels)) - set(found.labels.channels(labels)):  # over the layers of a recurrent state
            found.ids.unite(labels.narrow(dim, 0, 1), labels)
        found.demands.one_unit(labels, dim, f"operator {base} over channels at {found.where()}")
        labels = labels.narrow(dim, 0, 1)
    for out in outs:
        found.labels.set(out, labels.expand(out.shape) if out.dim() == labels.dim() else labels.reshape(out.shape))
    return True


def _along(found: Propagation, base: str, outs: list[Tensor], tensor: Tensor, given: Any) -> bool:
    labels = found.labels.get(tensor)
    found.demands.one_unit(labels, int(given), f"operator {base} over channels at {found.where()}")
    for out in outs:
        found.labels.set(
            out, labels.expand(out.shape) if out.shape == labels.shape else labels[tuple(slice(n) for n in out.shape)]
        )
    return True


def _gated(found: Propagation, out: Tensor, tensor: Tensor, dim: int) -> bool:
    first, second = found.labels.get(tensor).chunk(2, dim)
    found.ids.unite(first, second)
    found.labels.set(out, torch.maximum(first, second))
    return True


def _contraction(found: Propagation, out: Tensor, first: Tensor, second: Tensor) -> bool:
    a, b = found.labels.get(first), found.labels.get(second)
    if out.dim() != b.dim() or out.dim() != a.dim():
        return False
    labels = product(found, a, b, f"product of activations over their channels at {found.where()}")
    if labels is not None:
        found.labels.set(out, labels.expand(out.shape))
    return True


def product(found: Propagation, a: Tensor, b: Tensor, why: str) -> Tensor | None:
    """Ids of a matrix product from those of its factors, (..., n, k) and (..., k, m); None where it carries none.

    Channels that are summed over must be whole units: where something tells the factors' heads apart, each head becomes
    one; otherwise they are frozen.
    """
    heads = [dim for dim in {*varying(a), *varying(b)} if dim < a.dim() - 2]
    if a.dim() - 1 in varying(a) or b.dim() - 2 in varying(b):
        if not heads:
            for labels in (a, b):
                found.ids.freeze(labels, why)
            return None
        for labels in (a, b):
            found.ids.unite_along(labels, (-2, -1), why)
        found.ids.heads.append(torch.unique(a.amax((-2, -1))))
    rows, columns = a.narrow(-1, 0, 1), b.narrow(-2, 0, 1)
    if not heads and a.dim() - 2 in varying(rows) and b.dim() - 1 in varying(columns):
        for labels in (a, b):
            found.ids.freeze(labels, why)
        return None
    found.ids.unite(rows, columns)
    joined = torch.maximum(rows, columns)
    return joined if bool(joined.any()) else None


def attention(
    found: Propagation, out: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Scaled dot-product attention: two products; the width of a head is part of its scale."""
    q, k, v = (found.labels.get(tensor) for tensor in (query, key, value))
    if q.dim() > 2 and q.shape[-3] != k.shape[-3]:  # grouped queries
        k, v = (labels.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for labels in (k, v))
    mask = args[0] if args else kwargs.get("attn_mask")
    scores = product(found, q, k.transpose(-1, -2), f"width of the attention at {found.where()}")
    if isinstance(mask, Tensor) and scores is not None:
        shape = (*out.shape[:-1], key.shape[-2])
        pointwise_labels = scores.expand(shape)
        if mask in found.labels:
            found.ids.unite(pointwise_labels, found.labels.get(mask).expand(shape))
        elif found.position(mask) is not None:
            tie(found, mask, pointwise_labels)
    shape = (*q.shape[:-1], key.shape[-2])
    zeros = torch.zeros((), dtype=torch.int64)
    labels = product(
        found, (zeros if scores is None else scores).expand(shape), v, f"width of the attention at {found.where()}"
    )
    if labels is not None:
        found.labels.set(out, labels.expand(out.shape))
