"""A plan's ONNX graph, cut out of the dense one in milliseconds, without building and exporting the model.

The dense model is exported once, every parameter an initializer of its own. A cut then compresses initializers, adapts
the few places where a width is written down (`group` of a depthwise convolution, shapes of Reshape), and nothing else.
What a graph writes down beyond that (Slice bounds, Split sizes, recurrent cells) is refused or shows in `proved`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.formats._tracing import eval_mode, onnx_model, outputs_of, stripped, tensor_aliases
from autoprune.pruning.shrink import Cut
from autoprune.task import Inputs

__all__ = ["Slicer", "export"]

BATCH = 1000003  # a prime stands for the batch where shapes are compared: no other length divides it

Array = np.ndarray[Any, Any]
# Operators that may read a parameter whose width changes, because they take widths from their inputs.
_FREE_NAMES = """
    Conv ConvTranspose Gemm MatMul Transpose BatchNormalization LayerNormalization RMSNormalization
    InstanceNormalization Mul Add Sub Div Gather PRelu Unsqueeze Cast CastLike Identity Concat Sqrt Reciprocal Neg
    Abs Exp Softplus Sigmoid Tanh
"""
_FREE = frozenset(_FREE_NAMES.split())


def export(model: nn.Module, inputs: Inputs) -> bytes:
    """The ONNX file of a model, for the cases that slicing cannot do; 1-5 s.

    Raises ModelError for a model that cannot be exported.
    """
    content: bytes = onnx_model(model, inputs).SerializeToString()
    return content


class Slicer:
    """The dense model's ONNX graph, and cuts of it.

    `reason` says why this model cannot be sliced, or is None; `refuses(cuts)` the same for given cuts. `dense` is the
    dense model's ONNX file, the same work as `export`'s. Raises ModelError where the dense model cannot be exported.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        """Export `model`, on the CPU; 1-5 s."""
        from onnx import numpy_helper

        proto = onnx_model(model, inputs, shapes=True)
        self.reason: str | None = None
        aliases = tensor_aliases(model)
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        self._names = {aliases[name]: name for name in values if name in aliases}
        self._values = {name: values[name] for name in self._names.values()}
        self._inputs = inputs
        shapes = {name: tuple(tensor.shape) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        other = [name for name, stored in self._names.items() if self._values[stored].shape != shapes[name]]
        if other:
            self.reason = f"the exporter changed the shapes of {', '.join(other[:5])}"
            self.dense: bytes = stripped(proto).SerializeToString()
        _loosen(proto, values, self._values)
        for tensor in proto.graph.initializer:  # without values, the skeleton is cheap to copy
            if tensor.name in self._values:
                tensor.ClearField("raw_data")
        self._skeleton = stripped(proto)
        if not self.reason:
            self.dense = self.cut([])

    def refuses(self, cuts: Sequence[Cut]) -> str | None:
        """Why these cuts cannot be made in the graph, or None."""
        if self.reason:
            return self.reason
        cut_names = {self._names[cut.tensor] for cut in cuts if cut.tensor in self._names and not bool(cut.keep.all())}
        for node in self._skeleton.graph.node:
            touched = cut_names.intersection(node.input)
            if touched and node.op_type not in _FREE:
                return f"{min(touched)} is read by {node.op_type}, whose widths are written into the graph"
        return None

    def cut(self, cuts: Sequence[Cut], zeros: Mapping[str, Tensor] | None = None) -> bytes:
        """The ONNX file of the model with `cuts` applied, then `zeros` multiplied in (True keeps; in the cut shapes).

        Parameters that the graph does not read are passed over. Raises ModelError where `refuses(cuts)`.
        """
        if (refusal := self.refuses(cuts)) is not None:
            raise ModelError(f"this plan's graph cannot be sliced: {refusal}; export the model instead")
        by_name: dict[str, list[Cut]] = {}
        for cut in cuts:
            if cut.tensor in self._names:
                by_name.setdefault(self._names[cut.tensor], []).append(cut)
        keeps = {self._names[name]: keep.numpy() for name, keep in (zeros or {}).items() if name in self._names}
        proto = copy.deepcopy(self._skeleton)
        for tensor in proto.graph.initializer:
            if tensor.name not in self._values:
                continue
            value = self._values[tensor.name]
            for cut in sorted(by_name.get(tensor.name, ()), key=lambda cut: -cut.groups):  # as shrink.take does
                value = _compress(value, cut)
            if tensor.name in keeps:
                value = value * keeps[tensor.name].astype(value.dtype)
            tensor.dims[:] = value.shape
            tensor.raw_data = value.tobytes()
        self._follow_groups(proto)
        content: bytes = proto.SerializeToString()
        return content

    def proved(self, model: nn.Module, cuts: Sequence[Cut], zeros: Mapping[str, Tensor] | None = None) -> bool:
        """Whether the sliced graph gives the outputs of the cut torch `model`: max|a-b| / max|a| at most 1e-4.

        The batch differs from the one exported, so that a batch written into the graph shows as well.
        """
        if self.refuses(cuts) is not None:
            return False
        inputs = self._inputs.rows(max(2, self._inputs.batch_size) + 1)
        try:
            found = _run(self.cut(cuts, zeros), inputs)
        except Exception:  # ONNX Runtime's own kinds; a graph that does not run is a graph that is not proved
            return False
        with eval_mode(model), torch.no_grad():
            expected = [tensor.numpy() for tensor in outputs_of(inputs.call(model))]
        return len(found) == len(expected) and all(_close(a, b) for a, b in zip(expected, found, strict=True))

    def _follow_groups(self, proto: Any) -> None:
        """Depthwise convolutions have as many groups as input channels; other convolutions keep theirs."""
        shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
        for node in proto.graph.node:
            if node.op_type not in ("Conv", "ConvTranspose") or node.input[1] not in self._values:
                continue
            before, after = self._values[node.input[1]].shape, shapes[node.input[1]]
            for attribute in node.attribute:
                if attribute.name == "group" and attribute.i > 1:
                    depthwise = before[1] == 1 if node.op_type == "Conv" else before[0] == attribute.i
                    attribute.i = attribute.i * after[0] // before[0] if depthwise else attribute.i


def _compress(value: Array, cut: Cut) -> Array:
    """`shrink.take` for one cut, in numpy."""
    keep = cut.keep.numpy()
    if cut.groups == 1:
        return np.compress(keep, value, axis=cut.dim)
    rows, keeps = np.split(value, cut.groups, axis=0), np.split(keep, cut.groups)
    return np.concatenate([np.compress(part, row, axis=cut.dim) for row, part in zip(rows, keeps, strict=True)])


def _loosen(proto: Any, values: Mapping[str, Array], parameters: Collection[str]) -> None:
    """Replace widths that the exporter wrote down by what the tensors say: in reshapes, even splits, zero biases."""
    from onnx import helper, numpy_helper

    shapes = _shapes(proto)
    for index, node in enumerate(proto.graph.node):
        given = {attribute.name: attribute for attribute in node.attribute}
        second = values.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Reshape" and second is not None and shapes.get(node.input[0]):
            zero_is_zero = "allowzero" in given and given["allowzero"].i
            loose = None if zero_is_zero and 0 in second else loose_shape(shapes[node.input[0]], second.tolist())
            if loose is not None:
                node.input[1] = f"{node.input[1]}.{index}"
                proto.graph.initializer.append(numpy_helper.from_array(np.array(loose, np.int64), node.input[1]))
                del node.attribute[:]  # `allowzero` is the only one
        elif node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2:
            if node.input[2] not in parameters and not values.get(node.input[2], np.ones(1)).any():
                del node.input[2:]
        elif node.op_type == "Split" and second is not None and len(set(second.tolist())) == 1:
            del node.input[1:]
            node.attribute.append(helper.make_attribute("num_outputs", len(second)))


def loose_shape(before: Sequence[int], shape: Sequence[int]) -> list[int] | None:
    """The shape of a Reshape, freed of widths: 0 copies a dimension, -1 takes what is left; None where it is no view.

    `before` is the dense input's shape with `BATCH` in place of the batch. Dimensions that stay in their place are
    copied. Of those that are split or merged, the first are freed: (C) -> (g, C/g) in the last, (g, N) -> (C, H, W) in
    the first of what they become. A wrong guess shows in `Slicer.proved`.
    """
    after = [before[place] if length == 0 else length for place, length in enumerate(shape)]
    if -1 in after:
        after[after.index(-1)] = math.prod(before) // -math.prod(after)
    new, free, batch = list(after), [], []
    for ins, outs in _blocks(before, after):
        if len(ins) == len(outs) == 1 and ins == outs:
            new[outs[0]] = 0
            continue
        place = outs[-1] if len(ins) == 1 else outs[0]
        mixed = [out for out in outs if after[out] % BATCH == 0]
        batch += mixed
        free += [place] if not (len(ins) == len(outs) == 1) else []
    if math.prod(before) != math.prod(after) or len(batch) > 1:
        return None
    for place in (batch or free)[:1]:
        new[place] = -1
    return new


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Places of `before` and of `after` that hold the same elements, in the finest partition, as a view pairs them."""
    i = j = 0
    while i < len(before) and j < len(after):
        ins, outs, left, right = [i], [j], before[i], after[j]
        i, j = i + 1, j + 1
        while left != right:
            if (i if left < right else j) == len(before if left < right else after):
                return
            if left < right:
                left, ins, i = left * before[i], [*ins, i], i + 1
            else:
                right, outs, j = right * after[j], [*outs, j], j + 1
        yield ins, outs


def _shapes(proto: Any) -> dict[str, list[int]]:
    """Shapes of the graph's values, as far as they are numbers and the batch (`BATCH`)."""
    dims = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    }
    symbols = [dim.dim_param for value in proto.graph.input for dim in dims[value.name] if dim.dim_param]
    found = {}
    for name, shape in dims.items():
        known = [BATCH if dim.dim_param and dim.dim_param in symbols else dim.dim_value for dim in shape]
        if known and all(known):
            found[name] = known
    return found


def _run(content: bytes, inputs: Inputs) -> list[Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs.tensors(), strict=True)}
    return [np.asarray(array) for array in session.run(None, feed)]


def _close(expected: Array, found: Array) -> bool:
    if expected.shape != found.shape:
        return False
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(expected.astype(np.float64) - found).max(initial=0.0)) <= 1e-4 * scale
