"""torch.export's program: runs in Python and in C++ without the model's source."""

from __future__ import annotations

import ast
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.formats._tracing import outputs_of, program, quiet
from autoprune.task import Inputs

__all__ = ["Program"]

_TARGETS = ("torch.ops.", "_operator.", "math.", "torch.sym_", "torch._sym_")
# The words of sympy that sizes are written in.
_SYMBOLIC_NAMES = """
    Symbol Integer Float Rational Add Mul Pow Max Min Mod PythonMod FloorDiv CeilDiv CleanDiv ModularIndexing
    TrueDiv IntTrueDiv FloatTrueDiv Where Eq Ne Lt Le Gt Ge And Or Not Identity ToFloat TruncToInt FloorToInt
    CeilToInt Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan PowByNatural int_oo oo true
    false
"""
_SYMBOLIC = frozenset(_SYMBOLIC_NAMES.split())
_SYNTAX = (
    ast.Expression,
    ast.Call,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.keyword,
    ast.UnaryOp,
    ast.BinOp,
    ast.operator,
    ast.unaryop,
    ast.Compare,
    ast.cmpop,
)


@dataclass(frozen=True)
class Program:
    """An exported program (.pt2) with a dynamic batch."""

    filename = "model.pt2"

    def save(self, model: nn.Module, inputs: Inputs, path: Path) -> None:
        """Write one file. Raises ModelError where the model cannot be traced."""
        exported = program(model, inputs)
        for node in exported.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        with quiet():
            buffer = io.BytesIO()
            torch.export.save(exported, buffer)
        path.write_bytes(buffer.getvalue())

    def load(self, path: Path, template: Callable[[], nn.Module] | None = None) -> Callable[[Inputs], list[Tensor]]:
        """The program as a function. Raises ModelError for a file that is none, or that would run code when loaded."""
        try:
            data = path.read_bytes()
            refuse_code(data)
            with quiet():
                # the guards of a program are Python source, which would be run
                module = torch.export.load(io.BytesIO(data)).module(check_guards=False)
        except ModelError:
            raise
        except Exception as error:  # a damaged archive fails anywhere: zip, JSON, pickle, schema
            raise ModelError(f"{path} is no exported program that can be read: {error!r}") from error

        def run(inputs: Inputs) -> list[Tensor]:
            with torch.inference_mode(), quiet():
                return outputs_of(inputs.call(module))

        return run


def refuse_code(data: bytes) -> None:
    """Raise ModelError where loading this archive would unpickle objects or evaluate more than sizes.

    torch.export.load falls back to a full unpickle for some entries and evaluates sizes as Python: looked at before.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if (broken := archive.testzip()) is not None:
            raise ModelError(f"the program's entry {broken} is damaged (checksum)")
        for entry in archive.namelist():
            name = entry.partition("/")[2]
            if name.startswith("data/sample_inputs/"):
                sample = archive.read(entry)
                if sample:
                    torch.load(io.BytesIO(sample), weights_only=True)
            elif name.startswith("data/aotinductor/") or name.endswith((".so", ".py", "model.pt")):
                raise ModelError(f"the program holds {name}, which is code or a pickle; export it again with autoprune")
            elif name.endswith("config.json") and name.startswith("data/"):
                _refuse_pickles(name, json.loads(archive.read(entry)))
            elif name.startswith("models/"):
                _refuse_expressions(json.loads(archive.read(entry)))


def _refuse_pickles(name: str, config: Any) -> None:
    for tensor, payload in config["config"].items():
        if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_")):
            raise ModelError(f"the program's {name} stores {tensor} as a pickled object, which is not loaded")


def _refuse_expressions(graph: Any) -> None:
    for key, value in _fields(graph):
        if key == "target" and isinstance(value, str) and not value.startswith(_TARGETS):
            raise ModelError(f"the program calls {value!r}, which is no operator")
        if key == "expr_str" and isinstance(value, str):
            nodes = list(ast.walk(ast.parse(value, mode="eval")))
            words = {node.id for node in nodes if isinstance(node, ast.Name)}
            if not words <= _SYMBOLIC or not all(isinstance(node, _SYNTAX) for node in nodes):
                raise ModelError(f"the program holds the expression {value!r}, which is no size")


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _fields(inner)
