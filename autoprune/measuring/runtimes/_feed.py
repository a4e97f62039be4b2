"""What the runtimes share: is the precision one of theirs, and which array goes to which input.
Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.errors import InputError, ModelError

if TYPE_CHECKING:
    from autoprune.target import Target

__all__ = ["Array", "arrays", "as_float32", "feed_by_name", "require_dtype"]

Array = np.ndarray[Any, Any]


def require_dtype(
    runtime: str, target: Target, dtypes: Sequence[str], advice: Mapping[str, str]
) -> None:
    """Raise InputError where the target's dtype is not one of `dtypes`; `advice` says what to do
    for some."""
    if target.dtype not in dtypes:
        raise InputError(
            f"target {target.name!r} asks for {target.dtype}, and runtime {runtime} knows the "
            "dtypes "
            f"{', '.join(dtypes)}; "
            f"{advice.get(target.dtype, 'give one of these, or another runtime')}"
        )


def arrays(inputs: Any) -> list[Array]:
    """Contiguous arrays of `Inputs`, or of arrays, in the order of the graph's inputs."""
    if hasattr(inputs, "tensors"):
        inputs = [tensor.detach().cpu().numpy() for tensor in inputs.tensors()]
    return [np.ascontiguousarray(array) for array in inputs]


def feed_by_name(names: Sequence[str], inputs: Any) -> dict[str, Array]:
    """Array by the name of the graph's input. Raises ModelError where there are more or fewer of
    them."""
    tensors = arrays(inputs)
    if len(tensors) != len(names):
        raise ModelError(
            f"the graph takes {len(names)} tensors ({', '.join(names)}); got {len(tensors)}"
        )
    return dict(zip(names, tensors, strict=True))


def as_float32(array: Array) -> Array:
    """A copy that nothing overwrites, in float32 where it was a shorter float."""
    short = array.dtype.kind == "f" and array.dtype.itemsize < 4
    return array.astype(np.float32) if short else np.array(array)
