"""Widths that the exporter wrote into an ONNX graph, replaced by what the tensors say, so that the
graph can be cut."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["BATCH", "loose_shape", "make_dynamic", "make_static"]

# A prime stands for the batch where shapes are compared: no other length divides it
BATCH = 1000003

Array = np.ndarray[Any, Any]
# Operators that read a parameter of a width: that is their output's second dimension, or where the
# parameter's stands.
_CHANNELS = ("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization")
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "PRelu")


def make_dynamic(
    proto: Any, values: Mapping[str, Array], parameters: Collection[str]
) -> dict[str, list[int]]:
    """Free the widths of reshapes, even splits and zero biases in `proto`, whose initializers are
    `values`.

    Returns the shapes that were freed, by name of their initializers; see `make_static`.
    """
    from onnx import helper, numpy_helper

    shapes, dynamic = _shapes(proto), {}
    made = {name: node for node in proto.graph.node for name in node.output}
    for index, node in enumerate(proto.graph.node):
        given = {attribute.name: attribute for attribute in node.attribute}
        second = values.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Reshape" and second is not None and shapes.get(node.input[0]):
            before = shapes[node.input[0]]
            zero_is_zero = "allowzero" in given and given["allowzero"].i
            width = _width(
                made, node.input[0], {name: values[name].shape for name in parameters}, len(before)
            )
            loose = (
                None
                if zero_is_zero and 0 in second
                else loose_shape(before, second.tolist(), width)
            )
            if loose is not None:
                node.input[1] = f"{node.input[1]}.{index}"
                proto.graph.initializer.append(
                    numpy_helper.from_array(np.array(loose, np.int64), node.input[1])
                )
                del node.attribute[:]  # `allowzero` is the only one
                dynamic[node.input[1]] = loose
        elif node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 2:
            # Zeros of the dense width, which no cut shortens; without them it gives the same
            if node.input[2] not in parameters and not values.get(node.input[2], np.ones(1)).any():
                del node.input[2:]
        elif node.op_type == "Split" and second is not None and len(set(second.tolist())) == 1:
            del node.input[1:]
            # Even parts by their number follow a cut, parts by their lengths do not
            node.attribute.append(helper.make_attribute("num_outputs", len(second)))
    return dynamic


def make_static(proto: Any, dynamic: Mapping[str, Sequence[int]], batch: int) -> None:
    """Write numbers into freed shapes of a cut graph, as the exporter would: runtimes make more of
    these.

    The parameters' lengths are those after the cut; their values are not read. Where a shape does
    not follow from them, it stays free, and the batch in it, where it has one, is `batch`.
    """
    from onnx import numpy_helper, shape_inference

    if not dynamic:
        return
    # A copy in which the batch is the number that stands for it
    light = type(proto).FromString(proto.SerializeToString())
    for value in light.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = BATCH
    try:
        inferred = shape_inference.infer_shapes(light, data_prop=True).graph
    except Exception:  # onnx's own kinds, of operators that it cannot follow
        inferred = light.graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Reshape" and node.input[1] in dynamic:
            shape = shapes.get(node.output[0], [0])
            if 0 in shape or sum(map(_multiple, shape)) > 1:
                shape = [
                    length // BATCH * batch if _multiple(length) else length
                    for length in dynamic[node.input[1]]
                ]
            numbers = [-1 if _multiple(length) else length for length in shape]
            tensors[node.input[1]].CopyFrom(
                numpy_helper.from_array(np.array(numbers, np.int64), node.input[1])
            )


def loose_shape(
    before: Sequence[int], shape: Sequence[int], width: int | None = None
) -> list[int] | None:
    """The shape of a Reshape, freed of widths: 0 copies a dimension, -1 takes what is left; None
    where it is no view.

    `before` is the dense input's shape with `BATCH` in place of the batch, `width` the dimension of
    it that a layer before made, where that is known. Dimensions that stay in their place are
    copied. Of those that move, are split or merged, one is freed: that with `width`, else the
    first, else what a batch is split into. Of a dimension that is split it is the last part, (C, H,
    W) -> (g, C/g, H, W); of the last dimension of three or more it is that which counts heads, (N,
    T, C) -> (N, T, heads, C/heads) or (N, T, 3C) -> (N, T, 3, heads, C/heads), while up to three
    parts are queries, keys and values or gates, (N, T, 3C) -> (N, T, 3, C). Where batch and width
    both are open, the batch remains, in multiples of `BATCH`. A wrong guess shows in
    `Slicer.verifies`.
    """
    after = [before[place] if length == 0 else length for place, length in enumerate(shape)]
    if -1 in after:
        after[after.index(-1)] = math.prod(before) // -math.prod(after)
    if math.prod(before) != math.prod(after):
        return None
    new, batch = list(after), []
    free: list[tuple[int, int]] = []  # (rank, place)
    for ins, outs in _blocks(before, after):
        mixed = [out for out in outs if _multiple(after[out])]
        if ins == outs and len(ins) == 1:
            new[outs[0]] = 0
        elif mixed:
            batch += mixed
            free += [(2, out) for out in outs if len(ins) == 1 and out not in mixed]
        elif width in ins or len(ins) > 1 or len(outs) > 1:
            heads = (
                len(ins) == 1 < len(outs)
                and ins[0] == len(before) - 1 >= 2
                and (len(outs) > 2 or after[outs[0]] > 3)
            )
            place = outs[-2] if heads else outs[-1] if len(ins) == 1 else outs[0]
            free.append((0 if width in ins else 1, place))
    if len(batch) > 1:
        return None
    if free or batch:
        new[min(free)[1] if free else batch[0]] = -1
    return new


def _multiple(length: int) -> bool:
    """Whether a length of a shape is so many times the batch."""
    return length > 0 and length % BATCH == 0


def _width(
    made: Mapping[str, Any], name: str, parameters: Mapping[str, Sequence[int]], rank: int
) -> int | None:
    """The dimension of a value that a parameter decides, where the node that made it reads one, as
    it is or transposed.

    `made`: the node that made each value; `parameters`: their shapes.
    """
    node = made.get(name)
    inputs = node.input if node is not None else ()
    read = [
        made[source].input[0] if source in made and made[source].op_type == "Transpose" else source
        for source in inputs
    ]
    known = [parameter for parameter in read if parameter in parameters]
    if node is None or not known:
        return None
    if node.op_type in _CHANNELS:
        return 1
    if node.op_type not in _ELEMENTWISE:
        return rank - 1 if read[0] not in parameters else None
    long = [place for place, length in enumerate(parameters[known[0]]) if length > 1]
    return rank - len(parameters[known[0]]) + long[-1] if long else None


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Places of `before` and of `after` that hold the same elements, in the finest partition, as a
    view pairs them."""
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
    """Shapes of the graph's values, as far as they are numbers and multiples of the batch
    (`BATCH`)."""
    dims = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    }
    symbols = [
        dim.dim_param for value in proto.graph.input for dim in dims[value.name] if dim.dim_param
    ]
    shapes = {}
    for name, shape in dims.items():
        known = [
            _length(dim.dim_param, symbols) if dim.dim_param else dim.dim_value for dim in shape
        ]
        if known and all(known):
            shapes[name] = known
    return shapes


def _length(term: str, symbols: Collection[str]) -> int:
    """`s77` -> BATCH, `16*s77` -> 16 * BATCH; 0 for what is neither."""
    factors = [
        BATCH if factor in symbols else int(factor) if factor.isdecimal() else 0
        for factor in term.split("*")
    ]
    return math.prod(factors) if factors.count(BATCH) == 1 else 0
