"""What operators below the layers do to channel ids.

Pointwise operators unite the ids of their operands, reductions and pools pass ids that are constant
along what they reduce, products of activations make heads of them. Where no rule covers a case, the
ids are frozen.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from autoprune.pruning.tracing.channel_ids import varying
from autoprune.pruning.tracing.state import State

__all__ = ["attention", "by_rule", "pointwise", "product", "tie"]

# Pools and resizing act on the last dimensions, as many as their name says, and on each channel
# alone
_SPATIAL = re.compile(
    r"(_?(max|avg|adaptive_max|adaptive_avg|fractional_max)_pool\dd.*|_?upsample_.*\dd.*|(reflection|replication)_pad\dd|mkldnn_max_pool\dd)"
)
# What is reduced over channels mixes them: they must be one unit there
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
# They keep the shape, and mix what lies along one dimension
_ALONG = {"softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "topk"}
# Products of two activations; those with a parameter are layers (`layers.py`)
_CONTRACTIONS = {"mm", "bmm", "matmul", "addmm", "baddbmm"}


def by_rule(state: State, base: str, outs: list[Tensor], tensors: list[Tensor], dim: Any) -> bool:
    """Label the outputs of a pool, reduction or product of activations; False where no rule covers
    it."""
    if _SPATIAL.fullmatch(base):
        return _spatial(state, base, outs, tensors[0])
    if base in _REDUCTIONS:
        return _reduction(state, base, outs, tensors[0], dim)
    if base in _ALONG:
        return _along(state, base, outs, tensors[0], dim)
    if base == "glu":
        return _glu(state, outs[0], tensors[0], dim)
    alone = not any(tensor in state.labels for tensor in tensors[:-2])
    return base in _CONTRACTIONS and alone and _contraction(state, outs[0], *tensors[-2:])


def pointwise(state: State, outs: list[Tensor], tensors: list[Tensor]) -> None:
    """Unite the ids of the operands, tie parameters among them, and pass the ids on."""
    shape = outs[0].shape
    joined: Tensor | None = None
    for tensor in _couple_operands(
        state, [tensor for tensor in tensors if tensor in state.labels], shape
    ):
        labels = state.labels.get(tensor).expand(shape)
        if joined is not None:
            state.ids.unite(joined, labels)
        joined = labels if joined is None else torch.maximum(joined, labels)
    assert joined is not None
    for tensor in tensors:
        if state.position(tensor) is not None and tensor.numel() > 1:
            tie(state, tensor, joined)
    for out in outs:
        if out.shape == shape:
            state.labels.set(out, joined)


def _couple_operands(state: State, tensors: list[Tensor], shape: torch.Size) -> list[Tensor]:
    """The operands whose channels meet; a single channel spread over many (a gate, a mask) stays,
    and couples none."""
    spread = set()
    for tensor in tensors:
        labels = state.labels.get(tensor)
        wide = {
            dim - len(shape)
            for dim in range(len(shape))
            if dim < len(shape) - tensor.dim() or tensor.shape[dim - len(shape)] != shape[dim]
        }
        if not varying(labels) and any(
            other is not tensor
            and any(dim - other.dim() in wide for dim in varying(state.labels.get(other)))
            for other in tensors
        ):
            state.constraints.never(labels, f"spread over other channels at {state.where()}")
            spread.add(id(tensor))
    return [tensor for tensor in tensors if id(tensor) not in spread]


def tie(state: State, tensor: Tensor, labels: Tensor) -> None:
    """Tie a parameter, or what was moved out of one, to the ids of the activation that it is
    broadcast over."""
    place = state.position(tensor)
    assert place is not None
    name, positions = place
    why = f"parameter {name} meets channels in a way no rule covers, at {state.where()}"
    state.constraints.tie(name, state.shapes[name], positions.expand(labels.shape), labels, why)


def _spatial(state: State, base: str, outs: list[Tensor], tensor: Tensor) -> bool:
    match = re.search(r"(\d)d", base)
    assert match is not None
    labels = state.labels.get(tensor)
    kept = labels.dim() - int(match[1])
    if any(dim >= kept for dim in varying(labels)):
        return False
    first = labels[(slice(None),) * kept + (slice(1),) * int(match[1])]
    for out in outs:
        state.labels.set(out, first.expand(out.shape))
    return True


def _reduction(state: State, base: str, outs: list[Tensor], tensor: Tensor, given: Any) -> bool:
    labels = state.labels.get(tensor)
    dims = sorted(
        {
            dim % labels.dim()
            for dim in ([given] if isinstance(given, int) else given or range(labels.dim()))
        }
    )
    for dim in reversed(dims):
        # Over the layers of a recurrent state
        if dim in set(varying(labels)) - set(state.labels.channels(labels)):
            state.ids.unite(labels.narrow(dim, 0, 1), labels)
        state.constraints.one_unit(labels, dim, f"operator {base} over channels at {state.where()}")
        labels = labels.narrow(dim, 0, 1)
    for out in outs:
        state.labels.set(
            out,
            labels.expand(out.shape) if out.dim() == labels.dim() else labels.reshape(out.shape),
        )
    return True


def _along(state: State, base: str, outs: list[Tensor], tensor: Tensor, given: Any) -> bool:
    labels = state.labels.get(tensor)
    state.constraints.one_unit(
        labels, int(given), f"operator {base} over channels at {state.where()}"
    )
    for out in outs:
        state.labels.set(
            out,
            labels.expand(out.shape)
            if out.shape == labels.shape
            else labels[tuple(slice(n) for n in out.shape)],
        )
    return True


def _glu(state: State, out: Tensor, tensor: Tensor, dim: int) -> bool:
    first, second = state.labels.get(tensor).chunk(2, dim)
    state.ids.unite(first, second)
    state.labels.set(out, torch.maximum(first, second))
    return True


def _contraction(state: State, out: Tensor, first: Tensor, second: Tensor) -> bool:
    a, b = state.labels.get(first), state.labels.get(second)
    if out.dim() != b.dim() or out.dim() != a.dim():
        return False
    labels = product(state, a, b, f"product of activations over their channels at {state.where()}")
    if labels is not None:
        state.labels.set(out, labels.expand(out.shape))
    return True


def product(state: State, a: Tensor, b: Tensor, why: str) -> Tensor | None:
    """Ids of a matrix product from those of its factors, (..., n, k) and (..., k, m); None where it
    carries none.

    Channels that are summed over must be whole units: where something tells the factors' heads
    apart, each head becomes one; otherwise they are frozen.
    """
    heads = [dim for dim in {*varying(a), *varying(b)} if dim < a.dim() - 2]
    if a.dim() - 1 in varying(a) or b.dim() - 2 in varying(b):
        if not heads:
            for labels in (a, b):
                state.ids.freeze(labels, why)
            return None
        for labels in (a, b):
            state.ids.unite_along(labels, (-2, -1), why)
        state.ids.heads.append(torch.unique(a.amax((-2, -1))))
    rows, columns = a.narrow(-1, 0, 1), b.narrow(-2, 0, 1)
    if not heads and a.dim() - 2 in varying(rows) and b.dim() - 1 in varying(columns):
        for labels in (a, b):
            state.ids.freeze(labels, why)
        return None
    state.ids.unite(rows, columns)
    joined = torch.maximum(rows, columns)
    return joined if bool(joined.any()) else None


def attention(
    state: State, out: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Scaled dot-product attention: two products; the width of a head is part of its scale."""
    q, k, v = (state.labels.get(tensor) for tensor in (query, key, value))
    if q.dim() > 2 and q.shape[-3] != k.shape[-3]:  # grouped queries
        k, v = (labels.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for labels in (k, v))
    mask = args[0] if args else kwargs.get("attn_mask")
    scores = product(state, q, k.transpose(-1, -2), f"width of the attention at {state.where()}")
    if isinstance(mask, Tensor) and scores is not None:
        shape = (*out.shape[:-1], key.shape[-2])
        pointwise_labels = scores.expand(shape)
        if mask in state.labels:
            state.ids.unite(pointwise_labels, state.labels.get(mask).expand(shape))
        elif state.position(mask) is not None:
            tie(state, mask, pointwise_labels)
    shape = (*q.shape[:-1], key.shape[-2])
    zeros = torch.zeros((), dtype=torch.int64)
    labels = product(
        state,
        (zeros if scores is None else scores).expand(shape),
        v,
        f"width of the attention at {state.where()}",
    )
    if labels is not None:
        state.labels.set(out, labels.expand(out.shape))
