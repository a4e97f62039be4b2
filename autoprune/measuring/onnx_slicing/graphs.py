"""The ONNX graphs that plans are cut out of, proved once for a model; what cannot be cut out is
exported anew."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from autoprune.measuring.onnx_slicing.slicer import Slicer
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.coupling.verify import randomise, telling_keep
from autoprune.pruning.pruner import Pruned
from autoprune.pruning.surgery.attention import Attention
from autoprune.task import Inputs

__all__ = ["Graphs"]


class Graphs:
    """The graph of a dense model, and beside it that of its attention as it is once some of it is
    cut.

    `note` says why no plan is cut out of them, or is None; `leaves_out`: whether plans without some
    blocks are.
    """

    def __init__(self, model: nn.Module, coupling: Coupling, inputs: Inputs, batch: int) -> None:
        """Export what plans are cut out of, for `batch` inputs, and prove it on `inputs`, two at
        least.

        On random weights: zeros, and branches with a tiny scale, would hide an error.
        """
        forms, probe = [model], randomise(model)
        if Attention.plain(model):
            forms.append(copy.deepcopy(model))
            Attention.take_over_all(forms[1])
        self._slicers = [Slicer(form, inputs, batch) for form in forms]
        for slicer in self._slicers:
            slicer.fill(probe)
        self.note = self._why_not(probe, coupling)
        self.leaves_out = self.note is None and self._proves_blocks(probe, coupling)
        for slicer in self._slicers:
            slicer.fill(model)

    @property
    def dense(self) -> bytes:
        """The dense model's ONNX file."""
        return self._slicers[0].dense

    def cut(self, pruned: Pruned, zeros: Mapping[str, Tensor]) -> bytes | None:
        """The ONNX file of a pruned model, or None where it has to be exported."""
        if not self._slices(pruned):
            return None
        return self._slicer(pruned.model).cut(pruned.cuts, zeros, pruned.removed)

    def apart(self, pruned: Pruned) -> int:
        """How many bytes more the file has that ships, exported, than the one that `cut` gives."""
        return self._slicer(pruned.model).apart if self._slices(pruned) else 0

    def _slices(self, pruned: Pruned) -> bool:
        if self.note is not None or (pruned.removed and not self.leaves_out):
            return False
        return self._slicer(pruned.model).refuses(pruned.cuts, pruned.removed) is None

    def _slicer(self, cut: nn.Module) -> Slicer:
        """The one whose graph a cut model is a part of."""
        return self._slicers[0 if Attention.plain(cut) else -1]

    def _why_not(self, model: nn.Module, coupling: Coupling) -> str | None:
        """Prove slicing once, on random units of all groups: the sliced graph must compute what the
        cut model does.

        Where some groups leave attention as it is, of these alone as well.
        """
        attention = {
            id(parameter) for module in Attention.plain(model) for parameter in module.parameters()
        }
        inside = {
            name for name, parameter in model.named_parameters() if id(parameter) in attention
        }
        units = [group.key for group in coupling.prunable() if group.level == "units"]
        keep = {key: telling_keep(coupling, key) for key in units}
        apart = {
            key: kept
            for key, kept in keep.items()
            if inside and inside.isdisjoint(cut.tensor for cut in coupling.cuts({key: kept}))
        }
        reason = self._mismatch(model, coupling, keep) or (
            self._mismatch(model, coupling, apart) if apart else None
        )
        return (
            f"every candidate is exported again, which takes seconds each: {reason}"
            if reason
            else None
        )

    def _mismatch(
        self, model: nn.Module, coupling: Coupling, keep: Mapping[str, Tensor]
    ) -> str | None:
        """Why this cut is not to be made in the graph, or None."""
        cuts, smaller = coupling.cuts(keep), coupling.apply(model, keep)
        slicer = self._slicer(smaller)
        if (refusal := slicer.refuses(cuts)) is not None:
            return refusal
        if cuts and not slicer.verifies(smaller, cuts):
            return "a graph cut out of the dense one did not compute what the cut model does"
        return None

    def _proves_blocks(self, model: nn.Module, coupling: Coupling) -> bool:
        """Prove the same of blocks that go, on every other one that the graphs show."""
        groups = [group for group in coupling.prunable() if group.level == "blocks"]

        def proved(slicer: Slicer) -> bool:
            blocks = [group.key for group in groups if slicer.refuses([], group.layers) is None]
            keep = {key: torch.zeros(1, dtype=torch.bool) for key in blocks[::2]}
            removed = coupling.removed_blocks(keep)
            return bool(removed) and slicer.verifies(
                coupling.apply(model, keep), [], removed=removed
            )

        return all(proved(slicer) for slicer in self._slicers)
