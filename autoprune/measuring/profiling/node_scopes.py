"""Which module an operator of a runtime's graph came from: the exporter notes it, and fusions keep
enough names."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from autoprune.formats._tracing import onnx_model
from autoprune.task import Inputs

__all__ = ["Scopes"]

# Operators that a fused one is named after
_WORK = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_WORDS = ("conv", "gemm", "matmul", "fullyconnected")
# Nodes that are looked at on the way up
_REACH = 64


class Scopes:
    """Modules by the names of nodes and values of a model's ONNX graph; exports the model once
    more, 1-5 s."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        # With what the exporter noted
        self._graph = onnx_model(model, inputs, shapes=True).graph
        self._nodes = {node.name: node for node in self._graph.node}
        self._makers = {output: node for node in self._graph.node for output in node.output}

    def of(self, names: Iterable[str], kind: str) -> str | None:
        """The module's name ("" is the model itself) of an operator of type `kind`, or None.

        `names` are all that is known of it, the best first: its own, those fused into it, its
        outputs, its inputs.
        """
        nodes = [node for node in map(self._origin, names) if node is not None]
        works = any(word in kind.lower() for word in _WORDS)
        for start in nodes if works else ():
            worker = next((node for node in self._upwards(start) if node.op_type in _WORK), None)
            if worker is not None:
                return self._module(worker)
        return self._module(nodes[0]) if nodes else None

    def _origin(self, name: str) -> Any:
        """The exported node of a name: `node`, `fused node`, `node/Fusion`, `value_nchwc`, or a
        value that it makes."""
        plain = (
            name.removeprefix("fused ")
            .partition("/")[0]
            .removesuffix("_nchwc")
            .removesuffix("_quant")
        )
        return self._nodes.get(name) or self._nodes.get(plain) or self._makers.get(plain)

    def _upwards(self, start: Any) -> Iterator[Any]:
        """`start`, then what it is computed from, the nearest first."""
        queue, seen = deque([start]), {start.name}
        while queue and len(seen) < _REACH:
            node = queue.popleft()
            yield node
            for maker in filter(None, map(self._makers.get, node.input)):
                if maker.name not in seen:
                    seen.add(maker.name)
                    queue.append(maker)

    def _module(self, node: Any) -> str | None:
        """The innermost module that a node was exported from; of one without a note, that of its
        nearest source."""
        for upward in self._upwards(node):
            for prop in upward.metadata_props:
                if prop.key == "pkg.torch.onnx.name_scopes":
                    scopes = ast.literal_eval(prop.value)
                    # As ["", "layer1", "layer1.0", "conv2d"]: the last is the node itself
                    return str(scopes[-2]) if len(scopes) > 1 else ""
        return None
