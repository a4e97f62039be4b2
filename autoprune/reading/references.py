"""`package.module:name` and plug-in names, checked without importing anything, before torch is
loaded."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from autoprune import plugins
from autoprune.errors import InputError, MissingPackage, nearest

__all__ = ["check_plugin", "check_reference", "find"]

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_PREFIXES = ("zoo", "torchvision")


def check_plugin(kind: plugins.Kind, name: str, folders: Sequence[Path] = ()) -> None:
    """Check that plug-in `name`, or the reference `package.module:Name`, is there, and the packages
    it imports are.

    Settings of a bundled one, as in `name(key=value)`, are checked as well. Raises InputError,
    MissingPackage.
    """
    given = name
    name, settings = plugins.parse(given)
    if ":" in name:
        check_reference(name, folders)
        return
    known = plugins.names(kind)
    if name not in known:
        raise InputError(
            f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known) or 'none'}; "
            "or my_module:Name"
        )
    packages, fields = _bundled_members(plugins.path(kind, name))
    _check_packages(f"{kind} {name!r}", packages, ())
    if settings:
        plugins.check_settings(given, settings, fields)


@functools.cache
def _bundled_members(path: Path) -> tuple[set[str], dict[str, str]]:
    """The packages that a bundled plug-in's file imports, and the fields of its dataclass."""
    tree = ast.parse(path.read_bytes())
    return _import_names(ast.walk(tree)), _fields(tree)


def check_reference(
    reference: str, folders: Sequence[Path] = (), kind: plugins.Kind | None = None
) -> None:
    """Check `package.module:name`, and for a kind that the zoo has, `zoo:name` and
    `torchvision:name`.

    The module is looked for in `folders`, then as usual; nothing is imported. Raises InputError
    where the module, or the name in it, does not exist or the module is no valid Python;
    MissingPackage where it needs one that is missing.
    """
    prefix, _, name = reference.partition(":")
    if kind is not None and prefix in _PREFIXES and name:
        if prefix == "torchvision":
            _check_packages(repr(reference), {"torchvision"}, ())
            return
        known = [f"zoo:{name}" for name in plugins.names(kind)]
        if reference not in known:
            raise InputError(
                f"unknown {kind} {reference!r}{nearest(reference, known)}; known: "
                f"{', '.join(known) or 'none'}"
            )
        check_plugin(kind, name)
        return
    if not _REFERENCE.fullmatch(reference):
        bundled = [f"zoo:{name}" for name in plugins.names(kind)] if kind is not None else []
        others = f"{', '.join(bundled)}, torchvision:name or " if bundled else ""
        hint = nearest(f"zoo:{reference}", bundled)
        raise InputError(
            f"{reference!r} is no reference{hint}; needed: {others}my_package.my_module:name"
        )
    _check_module(reference, prefix, name.partition(".")[0], folders)


def find(module: str, folders: Sequence[Path] = ()) -> ModuleSpec | None:
    """Where `module` would be imported from, `folders` first; no package is imported on the way."""
    importlib.invalidate_caches()
    parts = module.split(".")
    spec = PathFinder.find_spec(
        parts[0], [*(str(Path(folder).resolve()) for folder in folders), *sys.path]
    )
    if spec is None:
        try:
            # Built-in modules, and packages installed in place
            spec = importlib.util.find_spec(parts[0])
        except ValueError:  # a module that is running and has no spec, as __main__
            return None
    for depth in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[:depth]), list(spec.submodule_search_locations))
    return spec


def _check_module(reference: str, module: str, name: str, folders: Sequence[Path]) -> None:
    spec = find(module, folders)
    if spec is None:
        places = ", ".join(dict.fromkeys(str(Path(folder).resolve()) for folder in folders))
        neighbours = {file.stem for folder in folders for file in Path(folder).glob("*.py")} | set(
            _PREFIXES
        )
        hint = nearest(module, neighbours)
        raise InputError(
            f"no module {module!r} for {reference!r}{hint}; looked in {places} and among the "
            "installed packages"
        )
    if spec.origin is None or not spec.origin.endswith(".py"):
        return
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except SyntaxError as error:
        raise InputError(
            f"{spec.origin}, line {error.lineno}, is no valid Python: {error.msg}"
        ) from error
    except (ValueError, RecursionError, MemoryError, OSError) as error:
        # a NUL; nested without end; not to be read
        raise InputError(
            f"{spec.origin} cannot be read as Python: {error or type(error).__name__}"
        ) from error
    known = _defined_names(tree)
    if known is not None and name not in known:
        public = sorted(name for name in known if not name.startswith("_"))
        raise InputError(
            f"{spec.origin} has no {name!r}{nearest(name, public)}; it has: "
            f"{', '.join(public) or 'nothing'}"
        )
    own = (*folders, *_above(Path(spec.origin), module))
    if any(_missing(package, own) for package in _import_names(tree.body)):
        # It may put folders of its own on the path, or take another
        plugins.import_reference(reference, folders)


def _above(file: Path, module: str) -> list[Path]:
    """The folder that the top-level package of `module` lies in."""
    depth = module.count(".") + (1 if file.name == "__init__.py" else 0)
    return [file.parents[depth]]


def _check_packages(what: str, packages: set[str], folders: Sequence[Path]) -> None:
    for package in sorted(packages):
        if _missing(package, folders):
            raise MissingPackage(
                f"{what} needs the package {package!r}, which is not installed: pip install "
                f"{package}"
            )


def _missing(package: str, folders: Sequence[Path]) -> bool:
    return package not in sys.stdlib_module_names and find(package, folders) is None


def _import_names(nodes: Iterator[ast.AST] | Sequence[ast.AST]) -> set[str]:
    """Top-level packages of the import statements among `nodes`; relative imports are left out."""
    packages = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            packages.add(node.module.partition(".")[0])
    return packages


def _fields(tree: ast.Module) -> dict[str, str]:
    """The fields of the dataclass in a plug-in's file, names with their types in words."""
    classes = [
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in (classes[0].body if classes else ())
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _defined_names(tree: ast.Module) -> set[str] | None:
    """Names that a module defines when it is imported; None where that cannot be read off its
    source."""
    names: set[str] = set()
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("globals", "exec", "setattr")
        ):
            return None
        queue += ast.iter_child_nodes(node)
    return None if names & {"*", "__getattr__"} else names
