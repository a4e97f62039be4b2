"""The protocols of the open sets, and their loader: file name = plug-in name = name in YAML.

A plug-in file exports exactly one class or function in `__all__`. `package.module:Name` loads anything importable.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from autoprune.errors import InputError, MissingPackage, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autoprune.group import Group
    from autoprune.target import Target
    from autoprune.task import Inputs

__all__ = ["Criterion", "Format", "Kind", "Runtime", "Technique", "import_reference", "load", "names", "path"]

Kind = Literal["technique", "criterion", "runtime", "format", "model", "dataset", "executor"]

_PACKAGES: dict[str, str] = {
    "technique": "pruning/techniques",
    "criterion": "pruning/criteria",
    "runtime": "measuring/runtimes",
    "format": "formats",
    "model": "zoo/models",
    "dataset": "zoo/datasets",
    "executor": "searching/executors",
}


class Technique(Protocol):
    """Which part of a group's importance goes.

    Laws: `keep(i, 0)` keeps all; the removed share equals `ratio` within one element; at least one element stays;
    a higher ratio keeps a subset; scaling the importance changes nothing.
    """

    level: Literal["units", "weights"]
    gradual: bool

    def fits(self, group: Group) -> str | None:
        """Why this technique cannot act on `group`, or None."""

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance`; True keeps. `ratio` in [0, 1) is the share removed."""


class Criterion(Protocol):
    """How much each element of a parameter matters; a unit's importance is the sum over its elements."""

    needs_gradients: bool

    def score(self, weight: Tensor, gradient: Tensor | None) -> Tensor:
        """Non-negative, shaped like `weight`; `gradient` is d loss / d weight where `needs_gradients`."""


class Runtime(Protocol):
    """Runs a model on the target. `artefact` says what it takes: a module, or ONNX bytes."""

    artefact: Literal["module", "onnx"]

    def prepare(self, artefact: Any, inputs: Inputs, target: Target) -> Callable[[], object]:
        """One call of the result is one inference of `artefact` on `inputs`, ready to be timed."""

    def version(self) -> str:
        """Name and version of the runtime, part of the key of every cached latency."""


class Format(Protocol):
    """Model <-> file. `suffix` is the file's ending; a batch of any size must run."""

    filename: str

    def save(self, model: nn.Module, inputs: Inputs, path: Path) -> None:
        """Write `model` (on CPU, in eval mode) to `path`, one file."""

    def load(self, path: Path, template: Callable[[], nn.Module] | None) -> Callable[[Inputs], list[Tensor]]:
        """A function from inputs to the model's output tensors; `template` builds the cut module, where needed."""


def names(kind: Kind) -> list[str]:
    """Names of the bundled plug-ins of `kind`, found without importing them."""
    folder = Path(__file__).parent / _PACKAGES[kind]
    return sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if not module.name.startswith("_"))


def path(kind: Kind, name: str) -> Path:
    """The file of the bundled plug-in `name`, whether or not its optional packages are installed."""
    return Path(__file__).parent / _PACKAGES[kind] / f"{name}.py"


def load(kind: Kind, name: str, folders: Sequence[Path] = ()) -> Any:
    """The class or function of plug-in `name`: a bundled one, or `package.module:Name`.

    Raises InputError for an unknown name, MissingPackage where its optional package is not installed.
    """
    if ":" in name:
        return import_reference(name, folders)
    known = names(kind)
    if name not in known:
        raise InputError(f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    package = "autoprune." + _PACKAGES[kind].replace("/", ".")
    try:
        module = importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{kind} {name!r} needs the package {error.name!r}: pip install {error.name}") from error
    (public,) = module.__all__
    return getattr(module, public)


def import_reference(reference: str, folders: Sequence[Path] = ()) -> Any:
    """The object that `package.module:name` names; its module is looked for in `folders` first, then as usual.

    Raises InputError where the module or the name does not exist. An error inside the module is passed on as it is.
    """
    module_name, _, attribute = reference.partition(":")
    for folder in reversed([str(Path(folder).resolve()) for folder in folders]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise MissingPackage(f"{reference!r} needs the package {error.name!r}: pip install {error.name}") from error
        places = ", ".join(str(folder) for folder in folders) or "the Python path"
        raise InputError(
            f"no module {error.name!r} for {reference!r}; looked in {places} and the Python path"
        ) from error
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [name for name in vars(target) if not name.startswith("_")]
            raise InputError(f"module {module_name!r} has no {attribute!r}{nearest(attribute, public)}")
        target = getattr(target, part)
    return target
