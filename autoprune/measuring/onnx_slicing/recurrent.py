"""Recurrent cells in an exported ONNX graph, freed of the hidden size that is written into it.

The exporter slices the gates out of each of torch's parameters to put them into ONNX's order, and
makes the first state of zeros: bounds, shape and attribute hold the hidden size as a number. Here
even slices become a split, and the rest is noted together with the parameter that shows the size,
to be written anew for each cut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["RECURRENT", "Cells"]

RECURRENT = ("LSTM", "GRU", "RNN")
# Places of the first hidden state and of the first cell state among the inputs of ONNX's LSTM:
# X, W, R, B, sequence_lens, initial_h, initial_c
_STATES = (5, 6)

Array = np.ndarray[Any, Any]


class Cells:
    """The recurrent cells of `proto`, whose initializers are `values`, those of the model's
    `parameters` among them."""

    def __init__(
        self, proto: Any, values: Mapping[str, Array], parameters: Collection[str]
    ) -> None:
        """Change `proto` so that `resize` is all that a cut needs."""
        self._values, self._parameters = values, parameters
        _split_gates(proto, values, parameters)
        self._made = {name: node for node in proto.graph.node for name in node.output if name}
        # Name of an initializer, or of a cell's output -> parameter (gates, hidden)
        self._hidden: dict[str, str] = {}
        nodes = []
        for node in proto.graph.node:
            recurrence = self._parameter(node.input[2]) if node.op_type in RECURRENT else None
            if recurrence is not None:
                self._hidden[_output(node)] = recurrence
                nodes += self._own_states(proto, node, recurrence)
            nodes.append(node)
        if self._hidden:
            _replace(proto, nodes)

    def resize(self, proto: Any) -> None:
        """Write the hidden sizes of the parameters that `proto`, a copy of the graph after a cut,
        has."""
        from onnx import numpy_helper

        if not self._hidden:
            return
        shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
        for tensor in proto.graph.initializer:
            if tensor.name in self._hidden:
                size = np.array([shapes[self._hidden[tensor.name]][1]], np.int64)
                tensor.CopyFrom(numpy_helper.from_array(size, tensor.name))
        for node in proto.graph.node:
            if node.op_type in RECURRENT and _output(node) in self._hidden:
                size = shapes[self._hidden[_output(node)]][1]
                for attribute in (value for value in node.attribute if value.name == "hidden_size"):
                    attribute.i = size

    def _parameter(self, name: str) -> str | None:
        """The parameter from which a cell's input is put together, the first of them; None where
        another node is."""
        while name not in self._parameters:
            node = self._made.get(name)
            # torch has an LSTM's gates in the order i, f, g, o, ONNX in i, o, f, c: the exporter
            # slices them out, joins them again and puts a dimension for the direction before
            if node is None or node.op_type not in ("Unsqueeze", "Concat", "Split", "Slice"):
                return None
            name = node.input[0]
        return name

    def _own_states(self, proto: Any, cell: Any, recurrence: str) -> list[Any]:
        """Give a cell first states of its own, where they are made with its hidden size; the nodes
        that make them.

        In the exported graph cells of one hidden size share them. Runtimes drop what is left over,
        and find again what is equal.
        """
        from onnx import numpy_helper

        copies: dict[str, Any] = {}
        for place in (place for place in _STATES if place < len(cell.input)):
            chain = self._chain(cell.input[place])
            for node in (node for node in chain if node.output[0] not in copies):
                copy = type(node).FromString(node.SerializeToString())
                copy.name, copy.output[0] = "", f"{node.output[0]}.{_output(cell)}"
                copy.input[:] = [
                    copies[name].output[0] if name in copies else name for name in node.input
                ]
                if node.op_type == "Concat":
                    copy.input[-1] = f"{copy.output[0]}.hidden"
                    stored = numpy_helper.from_array(self._values[node.input[-1]], copy.input[-1])
                    proto.graph.initializer.append(stored)
                    self._hidden[copy.input[-1]] = recurrence
                copies[node.output[0]] = copy
            if chain:
                cell.input[place] = copies[cell.input[place]].output[0]
        return list(copies.values())

    def _chain(self, name: str) -> list[Any]:
        """The nodes that make a first state of a constant, its shape ends in a number: Concat,
        Expand, Slices."""
        nodes = []
        while name in self._made and self._made[name].op_type == "Slice":
            nodes.append(self._made[name])
            name = self._made[name].input[0]
        expand = self._made.get(name)
        shape = (
            self._made.get(expand.input[1])
            if expand is not None and expand.op_type == "Expand"
            else None
        )
        if shape is None or shape.op_type != "Concat" or shape.input[-1] not in self._values:
            return []
        return [shape, expand, *reversed(nodes)]


def _split_gates(proto: Any, values: Mapping[str, Array], parameters: Collection[str]) -> None:
    """Slices that together are all of a parameter, in even parts along its first dimension, become
    a split of it."""
    from onnx import helper

    slices: dict[str, list[Any]] = {}
    for node in proto.graph.node:
        if node.op_type == "Slice" and node.input[0] in parameters:
            slices.setdefault(node.input[0], []).append(node)
    splits = {}
    for name, nodes in slices.items():
        length, parts = values[name].shape[0], len(nodes)
        by_bounds = {_bounds(node, values): node for node in nodes}
        even = [(length * part // parts, length * (part + 1) // parts) for part in range(parts)]
        if length % parts == 0 and set(by_bounds) == set(even):
            outputs = [by_bounds[bounds].output[0] for bounds in even]
            splits[name] = helper.make_node("Split", [name], outputs, axis=0, num_outputs=parts)
    if splits:
        _replace(proto, list(_with_splits(proto.graph.node, splits)))


def _with_splits(nodes: Iterable[Any], splits: Mapping[str, Any]) -> Iterator[Any]:
    """A split stands where the first of its slices stood."""
    left = dict(splits)
    for node in nodes:
        if node.op_type != "Slice" or node.input[0] not in splits:
            yield node
        elif node.input[0] in left:
            yield left.pop(node.input[0])


def _replace(proto: Any, nodes: Iterable[Any]) -> None:
    """The nodes of `proto`, some of them its present ones."""
    # Deleting empties those it has
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def _bounds(node: Any, values: Mapping[str, Array]) -> tuple[int, int] | None:
    """First row and the one after the last of a slice of the first dimension in steps of one; None
    for any other."""
    given = [
        int(values[name].item())
        for name in node.input[1:]
        if name in values and values[name].size == 1
    ]
    if len(given) != len(node.input) - 1 or given[2:] not in ([0], [0, 1]):
        return None
    return given[0], min(given[1], values[node.input[0]].shape[0])


def _output(node: Any) -> str:
    return str(next(name for name in node.output if name))
