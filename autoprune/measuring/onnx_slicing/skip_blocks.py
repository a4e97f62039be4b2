"""Residual blocks left out of an ONNX graph: what comes out of a block is replaced by what went in.

The exporter notes for every node in which module it was made; where a block begins and ends is read
from that. What is no longer needed for an output goes, with the parameters that only it read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Spans"]

# Under this key torch's exporter notes the modules that a node was made in
_SCOPES = "pkg.torch.onnx.name_scopes"
Shape = Sequence[int | str]


class Spans:
    """Where the modules of an exported graph begin and end; made before the notes on its nodes are
    stripped."""

    def __init__(self, proto: Any) -> None:
        self._nodes = [
            (_scopes(node), tuple(node.input), tuple(node.output)) for node in proto.graph.node
        ]
        self._given = {tensor.name for tensor in proto.graph.initializer}
        values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
        self._shapes: dict[str, Shape] = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
            if value.type.tensor_type.HasField("shape")
        }
        self._outputs = {value.name for value in proto.graph.output}
        self._nested = any(
            attribute.HasField("g") or attribute.graphs
            for node in proto.graph.node
            for attribute in node.attribute
        )

    def of(self, block: str) -> tuple[str, str] | None:
        """The value that enters a block and the one of the same shape that leaves it; None unless
        there is one each.

        None in a graph with graphs inside: these read values that no node's inputs show.
        """
        if self._nested:
            return None
        inside = [node for node in self._nodes if block in node[0]]
        made = {name for _, _, outputs in inside for name in outputs}
        read = {
            name for scopes, inputs, _ in self._nodes if block not in scopes for name in inputs
        } | self._outputs
        leaving = made & read
        if len(leaving) != 1:
            return None
        leaves = leaving.pop()
        entering = {name for _, inputs, _ in inside for name in inputs} - made - self._given - {""}
        fitting = [
            name for name in entering if self._shapes.get(name) == self._shapes.get(leaves, [])
        ]
        return (fitting[0], leaves) if len(fitting) == 1 else None

    def bypass(self, proto: Any, blocks: Iterable[str]) -> None:
        """Leave `blocks` out of a graph with the same values, each one that `of` finds."""
        spans = [self.of(block) for block in blocks]
        instead = {
            leaves: enters for enters, leaves in (span for span in spans if span is not None)
        }
        for node in proto.graph.node:
            node.input[:] = [_follow_aliases(name, instead) for name in node.input]
        for value in proto.graph.output:
            if value.name in instead:
                _rename(proto, value.name, instead)
        _sweep(proto)


def _scopes(node: Any) -> frozenset[str]:
    noted = next((prop.value for prop in node.metadata_props if prop.key == _SCOPES), "[]")
    return frozenset(ast.literal_eval(noted))


def _follow_aliases(name: str, instead: Mapping[str, str]) -> str:
    while name in instead:
        name = instead[name]
    return name


def _rename(proto: Any, output: str, instead: Mapping[str, str]) -> None:
    """The graph's output, made by a block that goes, is a copy of what went in."""
    from onnx import helper

    for node in proto.graph.node:
        node.output[:] = [f"{name}.gone" if name == output else name for name in node.output]
    proto.graph.node.append(
        helper.make_node("Identity", [_follow_aliases(output, instead)], [output])
    )


def _sweep(proto: Any) -> None:
    """Drop the nodes and initializers that no output needs."""
    needed = {value.name for value in proto.graph.output}
    kept = []
    for node in reversed(proto.graph.node):  # they are in the order of execution
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    kept.reverse()
    held = [tensor for tensor in proto.graph.initializer if tensor.name in needed]
    for field, left in ((proto.graph.node, kept), (proto.graph.initializer, held)):
        # Deleting empties the messages that are to stay, so they are copied first
        copies = [type(message).FromString(message.SerializeToString()) for message in left]
        del field[:]
        field.extend(copies)
