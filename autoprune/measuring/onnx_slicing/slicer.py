"""A plan's ONNX graph, cut out of the dense one in milliseconds, without building and exporting the
model.

The dense model is exported once, every parameter an initializer of its own. A cut then compresses
initializers, adapts the few places where a width is written down (`group` of a depthwise
convolution, shapes of Reshape in `reshapes.py`, recurrent cells in `recurrent.py`), and nothing
else; blocks that go are left out (`skip_blocks.py`). What a graph writes down beyond that (Slice
bounds, uneven Split sizes, unrolled cells) is refused or shows in `verifies`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.formats._tracing import eval_mode, onnx_model, outputs_of, strip, tensor_aliases
from autoprune.measuring.onnx_slicing.recurrent import RECURRENT, Cells
from autoprune.measuring.onnx_slicing.reshapes import make_dynamic, make_static
from autoprune.measuring.onnx_slicing.skip_blocks import Spans
from autoprune.pruning.surgery.shrink import Cut
from autoprune.task import Inputs

__all__ = ["Slicer", "export"]

Array = np.ndarray[Any, Any]
# Operators that may read a parameter whose width changes, because they take widths from their
# inputs.
_FREE_NAMES = """
    Conv ConvTranspose Gemm MatMul Transpose BatchNormalization LayerNormalization
    RMSNormalization InstanceNormalization Mul Add Sub Div Gather PRelu Unsqueeze Cast CastLike
    Identity Concat Sqrt Reciprocal Neg Abs Exp Softplus Sigmoid Tanh
"""
_FREE = frozenset((*_FREE_NAMES.split(), *RECURRENT))


def export(model: nn.Module, inputs: Inputs) -> bytes:
    """The ONNX file of a model, for the cases that slicing cannot do; 1-5 s.

    Raises ModelError for a model that cannot be exported.
    """
    content: bytes = onnx_model(model, inputs).SerializeToString()
    return content


class Slicer:
    """The dense model's ONNX graph, and cuts of it.

    `reason` says why this model cannot be sliced, or is None; `refuses` the same for given cuts and
    removed blocks. `dense` is the same work as `export`'s, whose file has `apart` bytes more, as
    recurrent cells are written otherwise. A graph that splits batch and width in one Reshape runs
    with `batch` inputs, others with any number. Raises ModelError where the dense model cannot be
    exported.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, batch: int = 1) -> None:
        """Export `model`, on the CPU; 1-5 s. `inputs` are at least two, so that their number is not
        written down."""
        from onnx import numpy_helper

        proto = onnx_model(model, inputs, shapes=True)
        self.reason: str | None = None
        aliases = tensor_aliases(model)
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        self._names = {aliases[name]: name for name in values if name in aliases}
        self._values = {name: values[name] for name in self._names.values()}
        self._inputs, self._batch = inputs, batch
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        other = [
            name
            for name, stored in self._names.items()
            if self._values[stored].shape != shapes[name]
        ]
        if other:
            self.reason = f"the exporter changed the shapes of {', '.join(other[:5])}"
            self._exported: bytes = strip(proto).SerializeToString()
        shipped = strip(copy.deepcopy(proto)).ByteSize()
        self._spans = Spans(proto)
        self._dynamic = make_dynamic(proto, values, self._values)
        self._cells = Cells(proto, values, self._values)
        # Without values, the skeleton is cheap to copy
        for tensor in proto.graph.initializer:
            if tensor.name in self._values:
                tensor.ClearField("raw_data")
        self._skeleton = strip(proto)
        self.apart = 0 if self.reason else shipped - len(self.cut([]))

    @property
    def dense(self) -> bytes:
        """The dense model's ONNX file, with the values that were filled in last."""
        return self._exported if self.reason else self.cut([])

    def fill(self, model: nn.Module) -> None:
        """Take the values of another model of the same shapes: random ones prove more than zeros
        do."""
        if self.reason:
            return
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if (stored := self._names.get(name)) is not None:
                held = tensor.detach().cpu()
                # Numpy has none
                held = held.float() if held.dtype == torch.bfloat16 else held
                self._values[stored] = np.array(held.numpy(), dtype=self._values[stored].dtype)

    def refuses(self, cuts: Sequence[Cut], removed: Sequence[str] = ()) -> str | None:
        """Why these cuts cannot be made in the graph, or these blocks not left out, or None."""
        if self.reason:
            return self.reason
        if lost := [block for block in removed if self._spans.of(block) is None]:
            return f"where {', '.join(lost)} begins and ends does not show in the graph"
        changed = {cut.tensor for cut in cuts if not bool(cut.keep.all())}
        cut_names = {self._names[name] for name in changed if name in self._names}
        for node in self._skeleton.graph.node:
            touched = cut_names.intersection(node.input)
            even = node.op_type == "Split" and len(node.input) == 1
            if touched and not even and node.op_type not in _FREE:
                return (
                    f"{min(touched)} is read by {node.op_type}, whose widths are written into "
                    "the graph"
                )
        return None

    def cut(
        self,
        cuts: Sequence[Cut],
        zeros: Mapping[str, Tensor] | None = None,
        removed: Sequence[str] = (),
        batch: int | None = None,
    ) -> bytes:
        """The ONNX file of the model with `cuts` applied, then `zeros` multiplied in (True keeps;
        in the cut shapes).

        Without the blocks that are `removed`; for another `batch` than the slicer's, where given.
        Parameters that the graph does not read are passed over. Raises ModelError where
        `refuses(cuts, removed)`.
        """
        if (refusal := self.refuses(cuts, removed)) is not None:
            raise ModelError(
                f"this plan's graph cannot be sliced: {refusal}; export the model instead"
            )
        by_name: dict[str, list[Cut]] = {}
        for cut in cuts:
            if cut.tensor in self._names:
                by_name.setdefault(self._names[cut.tensor], []).append(cut)
        keeps = {
            self._names[name]: keep.numpy()
            for name, keep in (zeros or {}).items()
            if name in self._names
        }
        proto = copy.deepcopy(self._skeleton)
        if removed:
            self._spans.bypass(proto, removed)
        cut_values: dict[str, Array] = {}
        for tensor in proto.graph.initializer:
            if tensor.name not in self._values:
                continue
            array = self._values[tensor.name]
            # As shrink.take does
            for cut in sorted(by_name.get(tensor.name, ()), key=lambda cut: -cut.groups):
                array = _compress(array, cut)
            if tensor.name in keeps:
                array = array * keeps[tensor.name].astype(array.dtype)
            tensor.dims[:] = array.shape
            cut_values[tensor.name] = array
        self._follow_groups(proto)
        self._cells.resize(proto)
        make_static(proto, self._dynamic, batch or self._batch)
        for tensor in proto.graph.initializer:
            if tensor.name in cut_values:
                tensor.raw_data = cut_values[tensor.name].tobytes()
        content: bytes = proto.SerializeToString()
        return content

    def verifies(
        self,
        model: nn.Module,
        cuts: Sequence[Cut],
        zeros: Mapping[str, Tensor] | None = None,
        removed: Sequence[str] = (),
    ) -> bool:
        """Whether the sliced graph gives the outputs of the cut torch `model`: max|a-b| / max|a| at
        most 1e-4.

        The batch differs from the one exported, so that a batch written into the graph shows as
        well.
        """
        if self.refuses(cuts, removed) is not None:
            return False
        inputs = self._inputs.rows(max(2, self._inputs.batch_size) + 1)
        try:
            outputs = _run(self.cut(cuts, zeros, removed, inputs.batch_size), inputs)
            with eval_mode(model), torch.no_grad():
                expected = [tensor.numpy() for tensor in outputs_of(inputs.call(model))]
        except Exception:  # the runtime's own kinds, the model's; what does not run is not proved
            return False
        return len(outputs) == len(expected) and all(
            _close(a, b) for a, b in zip(expected, outputs, strict=True)
        )

    def _follow_groups(self, proto: Any) -> None:
        """Depthwise convolutions have as many groups as input channels; other convolutions keep
        theirs."""
        shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
        for node in proto.graph.node:
            if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in self._values:
                continue
            before, after = self._values[node.input[1]].shape, shapes[node.input[1]]
            for attribute in node.attribute:
                if attribute.name == "group" and attribute.i > 1:
                    depthwise = (
                        before[1] == 1 if node.op_type == "Conv" else before[0] == attribute.i
                    )
                    attribute.i = attribute.i * after[0] // before[0] if depthwise else attribute.i


def _compress(value: Array, cut: Cut) -> Array:
    """`shrink.take` for one cut, in numpy."""
    keep = cut.keep.numpy()
    if cut.groups == 1:
        return np.compress(keep, value, axis=cut.dim)
    rows, keeps = np.split(value, cut.groups, axis=0), np.split(keep, cut.groups)
    return np.concatenate(
        [np.compress(part, row, axis=cut.dim) for row, part in zip(rows, keeps, strict=True)]
    )


def _run(content: bytes, inputs: Inputs) -> list[Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs.tensors(), strict=True)}
    return [np.asarray(array) for array in session.run(None, feed)]


def _close(expected: Array, found: Array) -> bool:
    if expected.shape != found.shape:
        return False
    # Outputs that are all zero have no scale
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(expected.astype(np.float64) - found).max(initial=0.0)) <= 1e-4 * scale
