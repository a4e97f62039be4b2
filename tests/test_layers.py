"""Imports run one way, low to high; only the outermost layer may see everything."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "autoprune"
NOUNS = (
    "files",
    "scratch",
    "plugins",
    "group",
    "plan",
    "fingerprint",
    "task",
    "target",
    "quantities",
    "latency_figures",
    "score",
    "budget",
    "space",
    "decision",
    "run",
)
NOUNS += ("study",)
LAYERS = (
    ("errors", "faults"),
    NOUNS,
    ("pruning",),
    ("formats",),
    ("measuring",),
    ("training",),
    ("exporting",),
    ("searching",),
    ("testing",),
    ("reporting",),
    ("reading", "config"),
    ("api", "arguments", "outcome", "plans", "subject"),
    ("options", "cli", "__main__"),
)
ROOMS = {  # in a package of several, what may import what is before it; `room.module` stands apart from its room
    "pruning": (
        "surgery tracing coupling",
        "ranking criteria techniques widths thresholds masks calibration importance reconstruction pruner",
    ),
    "measuring": (
        "einsum_flops flops quantities timing resources runtimes quantization runtime_module onnx_slicing",
        "sparse_kernels.kernels sparse_kernels.layers measure sparse_kernels profiling prediction",
    ),
    "searching": (
        "executors callback failures interrupt time_limit logbook stall",
        "evaluating session optuna_study records selecting proposing trials announcement stages winner search commands",
    ),
}
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
OPEN_SETS = (
    "pruning/criteria",
    "pruning/techniques",
    "measuring/runtimes",
    "measuring/quantities",
    "formats",
    "zoo/models",
    "zoo/datasets",
)
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path, *, typed: bool = False) -> list[tuple[str, int]]:
    """Names under `autoprune` that a file imports at run time, with the line; `typed`: also those of TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typed:
            node.body = []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            if node.module == "autoprune":
                found += [(alias.name, node.lineno) for alias in node.names]
            elif node.module and node.module.startswith("autoprune."):
                found.append((node.module.removeprefix("autoprune."), node.lineno))
        elif isinstance(node, ast.Import):
            found += [
                (alias.name.removeprefix("autoprune."), node.lineno)
                for alias in node.names
                if alias.name.startswith("autoprune.")
            ]
    return found


def layer(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_its_own_and_lower_layers(path: Path) -> None:
    mine = path.relative_to(ROOT).with_suffix("").parts[0]
    if mine in ("zoo", "__init__"):
        return
    assert mine in LEVEL, f"{mine} has no place in the order; give it one in tests/test_layers.py"
    wrong = [
        f"line {line}: {module}"
        for module, line in imports(path)
        if layer(module) in LEVEL and LEVEL[layer(module)] > LEVEL[mine]
    ]
    assert not wrong, f"{path.relative_to(ROOT)} is below {wrong}"


def rank(package: str, module: str) -> int | None:
    """The place of `room.module` among the rooms of a package; None for the package itself and what it has not."""
    order = " ".join(ROOMS[package]).split()
    parts = module.split(".")
    names = (".".join(parts[:2]), parts[0])
    return next((order.index(name) for name in names if name in order), None)


@pytest.mark.parametrize("package", ROOMS)
def test_a_room_imports_only_rooms_before_it(package: str) -> None:
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        own = ".".join(path.relative_to(ROOT / package).with_suffix("").parts)
        mine = rank(package, own)
        assert mine is not None or own == "__init__", (
            f"{package}/{own} has no place among the rooms; give it one"
        )
        for module, line in imports(path, typed=True) if mine is not None else ():
            room = f"{package}.{own.partition('.')[0]}"
            inside = module.startswith(f"{package}.") and module != room
            other = rank(package, module.removeprefix(f"{package}.")) if inside else None
            if other is not None and mine is not None and other > mine:
                wrong.append(f"{package}/{own}, line {line}: {module}")
    assert not wrong


def test_no_two_files_import_each_other_in_a_circle() -> None:
    """Annotations count too; only the package's own __init__, which loads its names late, may name what imports it."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in FILES
        if path.parent != ROOT or path.stem != "__init__"
    }
    graph = {
        name: {found for found in named(path) if found in names} - {name}
        for name, path in names.items()
    }
    while leaves := {name for name, others in graph.items() if not others & graph.keys()}:
        graph = {name: others for name, others in graph.items() if name not in leaves}
    assert not graph, f"a circle among {sorted(graph)}"


def named(path: Path) -> set[str]:
    """The modules that a file imports, as `package.module`, from which a name is taken or which are taken whole."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("autoprune"):
            base = node.module.removeprefix("autoprune").removeprefix(".")
            found |= {base, *(f"{base}.{alias.name}".removeprefix(".") for alias in node.names)}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_the_zoo(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] != "zoo":
        named = [
            module
            for module, _ in imports(path)
            if layer(module) == "zoo" and module != "zoo.metrics"
        ]
        assert not named, f"{path.relative_to(ROOT)} imports {named}; the zoo is loaded by name"


@pytest.mark.parametrize("folder", OPEN_SETS)
def test_members_of_an_open_set_do_not_know_each_other(folder: str) -> None:
    members = {path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_")}
    for name in members:
        for module, _ in imports(ROOT / folder / f"{name}.py"):
            place, _, other = module.rpartition(".")
            assert not (place == folder.replace("/", ".") and other in members), (
                f"{folder}/{name} imports {other}"
            )


def test_the_rule_sees_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from autoprune.cli import main\n"
        "def f():\n    from autoprune.searching import search\n    from autoprune import config\n"
    )
    assert imports(bad) == [("searching", 5), ("config", 6)]


TESTS = sorted(Path(__file__).parent.rglob("test_*.py"))


def test_no_test_imports_another() -> None:
    """What two of them need is a helper's."""
    wrong = []
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.name}: {name}" for name in names if name.startswith("test_")]
    assert not wrong


def test_no_test_patches_or_calls_a_private_function() -> None:
    """Constants may be patched, functions only by their public names: a refactoring is not to break tests."""
    wrong = []
    for path in TESTS:
        tree = ast.parse(path.read_text())
        ours = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autoprune")
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
                patched = [part.value for part in node.args if isinstance(part, ast.Constant)]
                names = [str(name).rpartition(".")[2] for name in patched]
                wrong += [f"{path.name}: {name}" for name in names if re.match("_[a-z]", name)]
            elif isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
                wrong += [f"{path.name}: {node.attr}"] * (ast.unparse(node.value) in ours)
    assert not wrong
