"""A model as the target runs it, as a module: so that it is judged in the precision that it ships
in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from autoprune import plugins
from autoprune.errors import ModelError
from autoprune.measuring import quantization
from autoprune.measuring.runtimes._feed import Array
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["Deployed"]

Artefact = bytes | Path | nn.Module


class Deployed(nn.Module):
    """Gives the outputs of the target's runtime, nested as `model` nests them; it has no
    parameters.

    `artefact` is what the runtime takes. The runtime is prepared for the largest batch seen; a
    smaller one is filled up with its own rows, which are dropped again: outputs must have a row for
    each input. Tensors come back on the CPU.
    """

    def __init__(self, artefact: Artefact, model: nn.Module, target: Target) -> None:
        super().__init__()
        runtime = plugins.load("runtime", target.runtime)()
        self._make: Callable[[Artefact, Inputs, Target], Any] = quantization.outputs_for(
            runtime, target
        )
        # In a list: no submodule
        self._target, self._artefact, self._model = target, artefact, [model]
        self._run: Callable[[Inputs], list[Array]] | None = None
        self._size = 0
        self._nesting: tuple[list[Any], TreeSpec] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own forward. Raises ModelError where the runtime's outputs do not fit the
        model's."""
        given = Inputs(args, kwargs).to("cpu")
        size = given.batch_size
        if self._run is None or size > self._size:
            self._run, self._size = self._make(self._artefact, given, self._target), size
        outputs = self._run(given.rows(self._size) if size < self._size else given)
        tensors = [torch.from_numpy(array) for array in outputs]
        if size < self._size:
            if any(not tensor.dim() or tensor.shape[0] != self._size for tensor in tensors):
                raise ModelError(
                    f"the outputs have no row for each input, so a batch of {size} cannot be "
                    "evaluated after one of "
                    f"{self._size} on runtime {self._target.runtime}; give data whose batches are "
                    "of one size"
                )
            tensors = [tensor[:size] for tensor in tensors]
        return self._nest_outputs(tensors, given)

    def _nest_outputs(self, tensors: list[Tensor], given: Inputs) -> Any:
        if self._nesting is None:
            with torch.no_grad():
                self._nesting = tree_flatten(given.call(self._model[0].cpu().eval()))
        leaves, structure = self._nesting
        if sum(isinstance(leaf, Tensor) for leaf in leaves) != len(tensors):
            raise ModelError(f"the runtime gives {len(tensors)} tensors, the model {len(leaves)}")
        fresh = iter(tensors)
        return tree_unflatten(
            [next(fresh) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
        )
