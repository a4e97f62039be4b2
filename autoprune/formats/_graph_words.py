"""The graph of an exported program as JSON: every word in it is a name, an operator, a size or a
plain tree."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from typing import Any

import torch

from autoprune.errors import ModelError

__all__ = ["check_graph"]

_PYTHON_NAMES = """
    _operator.eq _operator.ne _operator.le _operator.ge _operator.lt _operator.gt _operator.neg
    _operator.pos _operator.mul _operator.add _operator.sub _operator.floordiv _operator.mod
    _operator.pow _operator.truediv _operator.and_ _operator.or_ _operator.lshift
    _operator.rshift _operator.getitem math.trunc math.ceil math.floor torch.sym_not
    torch.sym_int torch.sym_float torch.sym_ite torch.sym_max torch.sym_min torch.sym_sqrt
    torch._sym_sqrt
"""
# Arithmetic on sizes; a prefix would let `_operator.methodcaller` in
_PYTHON = frozenset(_PYTHON_NAMES.split())
# torch's own operators that are not arithmetic; `aten`, `prims` and what the user's own code has
# registered remain.
_SPACES_NAMES = """
    prim c10d symm_mem cuda profiler inductor static_runtime quantization export onnx _test
    _native _dtensor coor _c10d_functional _c10d_functional_autograd debugprims debug_mode_ops
    streams record_stream dist
"""
_SPACES = frozenset(_SPACES_NAMES.split())
# Operators that take graphs; the graphs in them are checked with the rest
_HIGHER = frozenset(
    {"cond", "map_impl", "scan", "wrap_with_set_grad_enabled", "wrap_with_autocast"}
)
# The words of sympy that sizes are written in.
_SYMBOLIC_NAMES = """
    Symbol Integer Float Rational Add Mul Pow Max Min Mod PythonMod FloorDiv CeilDiv CleanDiv
    ModularIndexing TrueDiv IntTrueDiv FloatTrueDiv Where Eq Ne Lt Le Gt Ge And Or Not Identity
    ToFloat TruncToInt FloorToInt CeilToInt Equality Unequality StrictLessThan LessThan
    StrictGreaterThan GreaterThan PowByNatural int_oo oo true false
"""
_SYMBOLIC = frozenset(_SYMBOLIC_NAMES.split())
# Calls of those words on numbers: no attribute, subscript or operator, by which code is reached
_SYNTAX = (
    ast.Expression,
    ast.Call,
    ast.Name,
    ast.Load,
    ast.Constant,
    ast.keyword,
    ast.UnaryOp,
    ast.unaryop,
)
# Characters of a size
_LONGEST = 4000
# Exponent of a size, at most: of a larger one sympy would compute the digits for hours
_POWER = 16
# A name of a parameter or key, as source may quote it
_PLAIN = re.compile(r"[^'\"\\{}\x00-\x1f]{0,500}")
# Objects of the user's own, which are unpickled
_CODE = frozenset({"as_custom_obj", "custom_obj"})
# Values; torch writes them into source by repr
_FREE = frozenset({"as_string", "as_strings", "torch_version"})
# Of which torch makes Python source
_IDENTIFIERS = frozenset({"name", "as_name", "forward_arg_names"})


def check_graph(graph: Any) -> Any:
    """The graph without what only describes it (metadata, guards, calls of submodules). Raises
    ModelError."""
    module = graph["graph_module"]
    calls = [entry for entry in module["module_call_graph"] if entry["fqn"] == ""]
    kept = module | {"module_call_graph": calls, "metadata": {}, "treespec_namedtuple_fields": {}}
    return _check_value(graph | {"graph_module": kept, "guards_code": []}, "")


def _check_value(value: Any, key: str) -> Any:
    """`value`, which lies under `key`, checked and with the metadata of nodes left out."""
    if isinstance(value, dict):
        for name in value:
            if (
                not _PLAIN.fullmatch(name)
                or name in _CODE
                or (name == "custom_obj_values" and value[name])
            ):
                raise ModelError(
                    f"the program holds {name[:80]!r}, which is no part of a plain graph"
                )
        return {
            name: {} if name == "metadata" else _check_value(inner, name)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_check_value(inner, key) for inner in value]
    if isinstance(value, str):
        _check_word(key, value)
    return value


def _check_word(key: str, value: str) -> None:
    if key in ("target", "as_operator"):
        if not _is_operator(value):
            raise ModelError(
                f"the program calls {value[:80]!r}, which is no operator of a plain graph"
            )
    elif key == "expr_str":
        _check_size(value)
    elif key in ("in_spec", "out_spec"):
        _check_tree(json.loads(value)[1])
    elif key in _IDENTIFIERS:
        if value and not value.isidentifier():
            raise ModelError(f"the program has the name {value[:80]!r}, which would become code")
    elif key not in _FREE and not _PLAIN.fullmatch(value):
        raise ModelError(f"the program's {key} is {value[:80]!r}, which is no name")


def _is_operator(target: str) -> bool:
    """Whether `target` is arithmetic on sizes or an operator of tensors that touches no file."""
    if target in _PYTHON:
        return True
    parts = target.split(".")
    if parts[:2] != ["torch", "ops"]:
        return False
    if parts[2:3] == ["higher_order"]:
        return len(parts) == 4 and parts[3] in _HIGHER
    if len(parts) != 5:
        return False
    packet = getattr(getattr(torch.ops, parts[2], None), parts[3], None)
    operator = (
        getattr(packet, parts[4], None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
    )
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    schema = operator._schema
    unsafe = parts[3].endswith("_unsafe") or any(
        "filename" in argument.name for argument in schema.arguments
    )
    # without a kernel it is one of TorchScript's: aten.save writes a file
    return (
        parts[2] not in _SPACES
        and not unsafe
        and torch._C._dispatch_has_kernel(str(operator._name))
    )


def _check_size(expression: str) -> None:
    """torch evaluates sizes as Python: only constructors of sympy, on numbers and names of
    symbols."""
    wrong = ModelError(f"the program holds the expression {expression[:80]!r}, which is no size")
    if len(expression) > _LONGEST:
        raise wrong
    try:
        nodes = list(ast.walk(ast.parse(expression, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise wrong from error
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    symbols = {id(node.args[0]) for node in calls if _function_name(node) == "Symbol" and node.args}
    words = {node.id for node in nodes if isinstance(node, ast.Name)}
    powers = [node for node in calls if _function_name(node) in ("Pow", "PowByNatural")]
    if (
        not words <= _SYMBOLIC
        or not all(isinstance(node, _SYNTAX) for node in nodes)
        or not all(
            _is_constant(node, id(node) in symbols)
            for node in nodes
            if isinstance(node, ast.Constant)
        )
        or len(powers) > 4
        or not all(_is_low(node) for node in powers)
    ):
        raise wrong


def _function_name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _is_constant(node: ast.Constant, symbol: bool) -> bool:
    """A truth value or a number of 64 bits; a word only as the name of a symbol or the digits of a
    Float."""
    value = node.value
    if isinstance(value, str):
        return (
            value.isidentifier()
            if symbol
            else re.fullmatch(r"-?[0-9.e+-]{1,40}", value) is not None
        )
    return isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 2**64)


def _is_low(power: ast.Call) -> bool:
    """Whether the exponent is a small number, as a size's is."""
    if len(power.args) != 2:
        return False
    text = ast.unparse(power.args[1])
    number = re.fullmatch(r"(?:Integer\()?-?(\d{1,4})\)?|Rational\(-?\d{1,2}, \d{1,2}\)", text)
    return number is not None and int(number[1] or 0) <= _POWER


def _check_tree(tree: Any) -> None:
    """torch imports the module of an enumeration and of a default factory that a tree's context
    names."""
    kind, context = tree["type"], tree["context"]
    if kind is not None and not (isinstance(kind, str) and re.fullmatch(r"[\w.]{1,200}", kind)):
        raise ModelError(f"the program's inputs have the type {str(kind)[:80]!r}, which is no name")
    if isinstance(context, str):
        # The name of a class, as named tuples have it
        with contextlib.suppress(ValueError):
            context = json.loads(context)
    if not _is_plain(context):
        raise ModelError(
            f"the program's inputs are described by {str(context)[:80]!r}, which would import a "
            "module"
        )
    for child in tree["children_spec"]:
        _check_tree(child)


def _is_plain(value: Any) -> bool:
    """Numbers and words without quotes, in lists."""
    if isinstance(value, list):
        return all(_is_plain(inner) for inner in value)
    return not isinstance(value, dict) and (
        not isinstance(value, str) or _PLAIN.fullmatch(value) is not None
    )
