"""Kernels for matrices with zeros: which fit a matrix as its zeros lie, and how each holds it.

Compressed rows keep int32 indices: what torch gives its BLAS, so that nothing is converted in a
call (1.4 times as fast at one token as int64), and half the memory traffic.
"""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor

__all__ = ["KERNELS", "fitting", "matrix", "pack", "patterns"]

_BLOCKS = {"bsr4": 4, "bsr16": 16, "bsr32": 32}
_SEMI_STRUCTURED = "semi_structured"
KERNELS = ("csr", *_BLOCKS, _SEMI_STRUCTURED)
# A tile format may hold so many times the weights that are not zero, no more
_PADDED = 1.5


def fitting(weight: Tensor, device: torch.device) -> tuple[str, ...]:
    """Kernels worth timing for `weight` (outputs, inputs), as its zeros lie: CSR; tiles and 2:4
    where they form them.

    2:4 is for CUDA from capability 8.0 on (Mishra et al. 2021, arXiv:2104.08378). On a CPU only
    fp32 has kernels.
    """
    return tuple(name for name in KERNELS if _fits_weight(name, weight.detach(), device))


def patterns(keep: Tensor) -> tuple[str, ...]:
    """Kernels that fit where the weights that are kept (outputs, inputs, ...) lie, on a CPU in
    fp32."""
    return fitting(keep.detach().float().reshape(len(keep), -1).cpu(), torch.device("cpu"))


def _fits_weight(kernel: str, weight: Tensor, device: torch.device) -> bool:
    cuda, keep = device.type == "cuda", weight != 0
    if kernel == _SEMI_STRUCTURED:
        if not cuda or weight.shape[1] % 4 or torch.cuda.get_device_capability(device) < (8, 0):
            return False
        return int(keep.reshape(len(keep), -1, 4).sum(-1).max()) <= 2
    if device.type not in ("cpu", "cuda") or (not cuda and weight.dtype != torch.float32):
        return False
    if kernel == "csr":
        return True
    side = _BLOCKS[kernel]
    if any(size % side for size in weight.shape) or not (cuda or torch.backends.mkl.is_available()):  # type: ignore[no-untyped-call]
        return False
    tiles = keep.reshape(weight.shape[0] // side, side, -1, side).amax((1, 3))
    return int(tiles.sum()) * side**2 <= _PADDED * int(keep.sum())


def pack(kernel: str, weight: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(values, crow, col) of `weight` (outputs, inputs); for 2:4 the values are all of it, no
    indices.

    Plain tensors: a sparse one can neither be deep-copied nor moved with its module.
    """
    if kernel == _SEMI_STRUCTURED:
        return weight.clone(), None, None
    side = _BLOCKS.get(kernel)
    with warnings.catch_warnings():
        # "sparse CSR support is in beta state", once a process
        warnings.simplefilter("ignore")
        sparse = weight.to_sparse_csr() if side is None else weight.to_sparse_bsr((side, side))
    return sparse.values(), sparse.crow_indices().int(), sparse.col_indices().int()


def matrix(
    kernel: str, size: tuple[int, ...], values: Tensor, crow: Tensor | None, col: Tensor | None
) -> Tensor:
    """What `torch.mm` takes, of the tensors that `pack` gave; it shares their memory."""
    if crow is None or col is None:
        return cast(Tensor, torch.sparse.to_sparse_semi_structured(values))
    make = torch.sparse_bsr_tensor if kernel in _BLOCKS else torch.sparse_csr_tensor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(crow, col, values, list(size), check_invariants=False)
