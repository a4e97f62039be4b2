"""References in a study (`zoo:name`, `package.module:function`) -> what they name; every failure
names its key."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autoprune import faults, plugins
from autoprune.errors import AutopruneError, InputError, MissingPackage, StudyError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["call_factory", "name_errors", "resolve", "sources", "split"]


def split(given: object, key: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of `zoo:digits` or `{name: zoo:digits, args: {...}}`. Raises StudyError
    for anything else."""
    if isinstance(given, str):
        return given, {}
    if (
        isinstance(given, Mapping)
        and isinstance(given.get("name"), str)
        and set(given) <= {"name", "args"}
    ):
        args = given.get("args") or {}
        if isinstance(args, Mapping) and all(isinstance(name, str) for name in args):
            return given["name"], dict(args)
        raise StudyError(
            f"args must be a mapping from names to values, got {args!r}", key=f"{key}.args"
        )
    raise StudyError(
        f"needs a reference, or {{name: reference, args: {{...}}}}; got {given!r}", key=key
    )


def resolve(kind: plugins.Kind | None, reference: str, folders: Sequence[Path], key: str) -> Any:
    """What `zoo:name` (a bundled plug-in of `kind`, if any) or `package.module:name` stands for.
    Raises StudyError."""
    prefix, _, name = reference.partition(":")
    if not name or not prefix:
        known = [f"zoo:{bundled}" for bundled in plugins.names(kind)] if kind else []
        needed = ", ".join(
            [*known, *(["torchvision:name"] if kind else []), "or my_module:function"]
        )
        raise StudyError(
            f"{reference!r} is no reference{nearest(f'zoo:{reference}', known)}; needed: {needed}",
            key=key,
        )
    with name_errors(key, reference):
        return (
            plugins.load(kind, name)
            if kind and prefix == "zoo"
            else plugins.import_reference(reference, folders)
        )


def call_factory(function: Any, args: Mapping[str, Any], reference: str, key: str) -> Any:
    """`function(**args)`. Raises StudyError where it is no function, the arguments do not fit, or
    it fails."""
    if not callable(function) or getattr(type(function), "forward", None) is not None:
        raise StudyError(
            f"{reference!r} must be a function or a class, it is a {type(function).__name__}",
            key=key,
        )
    try:
        signature = inspect.signature(function)
    except ValueError:  # some classes written in C have none
        signature = None
    if signature is not None:
        _check_arguments(signature, args, reference, key)
    with name_errors(key, reference):
        return function(**args)


def sources(references: Iterable[str], folders: Sequence[Path]) -> tuple[Path, ...]:
    """The user's files behind references: their modules, and what these import from `folders`, but
    bundled ones."""
    names = [reference.partition(":")[0] for reference in references if ":" in reference]
    queue = [
        sys.modules[name]
        for name in names
        if name not in ("zoo", "torchvision") and name in sys.modules
    ]
    roots = [Path(folder).resolve() for folder in folders]
    files: dict[Path, None] = {}
    while queue:
        module = queue.pop(0)
        # Built-in modules have no file
        path = Path(getattr(module, "__file__", None) or "").resolve()
        if path in files or path.suffix != ".py":
            continue
        files[path] = None
        queue += [other for other in _source_modules(module) if _is_users(other, roots)]
    return tuple(files)


@contextmanager
def name_errors(key: str, reference: str) -> Iterator[None]:
    """Turn any error inside into a StudyError that names the key, the reference and the line that
    failed."""
    try:
        yield
    except (StudyError, MissingPackage):
        raise
    except InputError as error:
        raise StudyError(str(error), key=key) from error
    except AutopruneError:
        raise
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise StudyError(f"{reference!r} failed with {faults.Fault.of(error)}", key=key) from error


def _check_arguments(
    signature: inspect.Signature, args: Mapping[str, Any], reference: str, key: str
) -> None:
    try:
        signature.bind(**args)
    except TypeError as error:
        unknown = [name for name in args if name not in signature.parameters]
        hint = nearest(unknown[0], signature.parameters) if unknown else ""
        raise StudyError(
            f"{reference!r} cannot take these arguments: {error}{hint}; it takes {signature}",
            key=f"{key}.args",
        ) from error


def _source_modules(module: ModuleType) -> list[ModuleType]:
    """Modules that a module's names come from."""
    modules: list[ModuleType] = []
    for member in list(vars(module).values()):
        other: Any = (
            member
            if isinstance(member, ModuleType)
            else sys.modules.get(str(getattr(member, "__module__", "")))
        )
        if isinstance(other, ModuleType):
            modules.append(other)
    return modules


def _is_users(module: ModuleType, roots: Sequence[Path]) -> bool:
    path = Path(getattr(module, "__file__", None) or "/").resolve()
    bundled = module.__name__.partition(".")[0] == "autoprune" or "site-packages" in path.parts
    return not bundled and any(path.is_relative_to(root) for root in roots)
