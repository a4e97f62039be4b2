"""Widths that the exporter wrote into an ONNX graph, replaced by what the tensors say, so that the graph can be cut."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["BATCH", "loose_shape", "loosen"]

BATCH = 1000003  # a prime stands for the batch where shapes are compared: no other length divides it

Array = np.ndarray[Any, Any]


def loosen(proto: Any, values: Mapping[str, Array], parameters: Collection[str]) -> None:
    """Free the widths of reshapes, even splits and zero biases in `proto`, whose initializers are `values`."""
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
