"""The protocols of the open sets, and their loader: file name = plug-in name = name in YAML.

A plug-in file exports exactly one class or function in `__all__`. `package.module:Name` loads
anything importable. Where a plug-in has settings, its name may carry them: `n_of_m(m=8)`,
`block(rows=4, columns=4)`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from autoprune import faults
from autoprune.errors import CodeError, InputError, MissingPackage, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autoprune.group import Group
    from autoprune.target import Target
    from autoprune.task import Inputs

__all__ = [
    "Criterion",
    "Format",
    "Kind",
    "Need",
    "Quantity",
    "Runtime",
    "Technique",
    "check_settings",
    "create",
    "import_reference",
    "load",
    "names",
    "parse",
    "path",
]

Need = Literal["gradients", "squared gradients", "activations"]
Kind = Literal[
    "technique", "criterion", "runtime", "quantity", "format", "model", "dataset", "executor"
]

_PACKAGES: dict[str, str] = {
    "technique": "pruning/techniques",
    "criterion": "pruning/criteria",
    "runtime": "measuring/runtimes",
    "quantity": "measuring/quantities",
    "format": "formats",
    "model": "zoo/models",
    "dataset": "zoo/datasets",
    "executor": "searching/executors",
}


_CALLED = ("technique", "criterion", "runtime", "quantity", "format")  # by us, method by method


class Technique(Protocol):
    """Which part of a group's importance goes.

    Laws: `keep(i, 0)` keeps all; the removed share equals `ratio` within one element; at least one
    element stays; a higher ratio keeps a subset; scaling the importance changes nothing. One that
    removes larger parts says by a method `steps(shape)` how many a weight of that shape has: the
    share is the k / steps nearest to `ratio`, k < steps. One of weights that is `gradual` says by a
    method `share(progress)` how much of what goes is gone by `progress`, in [0, 1], of the
    training, and by `filled(part)` how much after a `part` of the way where layers are
    reconstructed meanwhile: never less than before, and all of it at 1. For one that is
    `elementwise` only the order of the elements counts.
    """

    level: Literal["units", "weights", "blocks"]
    gradual: bool

    def fits(self, group: Group) -> str | None:
        """Why this technique cannot act on `group`, or None."""

    def keep(self, importance: Tensor, ratio: float) -> Tensor:
        """Boolean, shaped like `importance`; True keeps. `ratio` in [0, 1) is the share removed."""


class Criterion(Protocol):
    """How much parts of a parameter matter. What one score is of, `scores`, says which groups it is
    for:

    - "elements": each element of a parameter. All groups: a unit's or a block's importance is the
      sum over all of its.
    - "weights": each weight of a layer against the others of it. Weights groups only.
    - "filters": each filter of a layer, (filters, elements) -> (filters,). Units groups only: the
      sum over the layers that produce the unit, relative to the average filter of each where they
      do not compare.
    - "scales": each scale of a batch norm, (channels,) -> (channels,). Units groups only: the mean
      over the unit's.

    `needs` says what it must see of the model on data: "gradients" (mean d loss / d weight),
    "squared gradients" (the mean of their squares), "activations" (the L2 norm of the input feature
    that a weight multiplies). `comparable` says that sums of different groups compare as they are,
    as estimates of the loss do; where it is False, importance is relative to the average unit of
    the group. Criteria of one `order`, where they name it, put the weights of a layer in the same
    order, and are one criterion for elementwise techniques.
    """

    scores: Literal["elements", "weights", "filters", "scales"]
    needs: tuple[Need, ...]
    comparable: bool

    def score(self, weight: Tensor, *needed: Tensor) -> Tensor:
        """Non-negative, one for each of what it scores; `needed` are shaped like `weight`, in the
        order of `needs`."""


class Runtime(Protocol):
    """Runs a model on the target. `artefact` says what it takes: a module, or ONNX bytes.

    `dtypes` are those it knows; any other is refused, and so is one that this machine would
    silently replace. For those in `converts` its ONNX file is converted before
    (`measuring.precision`). A runtime that has neither `dtypes`, `converts` nor `outputs` is good
    for fp32. One that takes signed integers alone has `symmetric = True`.
    """

    artefact: Literal["module", "onnx"]
    dtypes: tuple[str, ...]
    converts: tuple[str, ...]

    def prepare(self, artefact: Any, inputs: Inputs, target: Target) -> Callable[[], object]:
        """One call of the result is one inference of `artefact` on `inputs`, ready to be timed."""

    def outputs(
        self, artefact: Any, inputs: Inputs, target: Target
    ) -> Callable[[Inputs], list[Any]]:
        """A function from inputs shaped like `inputs` to the outputs, arrays in the order of the
        graph's."""

    def version(self) -> str:
        """Name and version of the runtime, part of the key of every cached latency."""


class Quantity(Protocol):
    """What a call of the model needs beside time, measured in a fresh process; less is better.

    A figure is a positive number in the base unit, whose factor in `units` is 1; the others are
    what a limit may be written in. `title` is its row in tables. `tolerance` is the share by which
    two measurements of one model may differ: more, and `verify` holds the record to be wrong.
    """

    units: Mapping[str, float]
    example: str
    title: str
    tolerance: float

    def unavailable(self, target: Target) -> str | None:
        """Why it cannot be measured for `target` on this machine, or None."""

    def begin(self, target: Target) -> Callable[[Callable[[], object]], float]:
        """Called before the model is loaded; the result, called with one inference as a function,
        measures."""


class Format(Protocol):
    """Model <-> file. `suffix` is the file's ending; a batch of any size must run."""

    filename: str

    def save(self, model: nn.Module, inputs: Inputs, path: Path) -> None:
        """Write `model` (on CPU, in eval mode) to `path`, one file."""

    def load(
        self, path: Path, template: Callable[[], nn.Module] | None
    ) -> Callable[[Inputs], list[Tensor]]:
        """A function from inputs to the model's output tensors; `template` builds the cut module,
        where needed."""


def names(kind: Kind) -> list[str]:
    """Names of the bundled plug-ins of `kind`, found without importing them."""
    folder = Path(__file__).parent / _PACKAGES[kind]
    return sorted(
        module.name
        for module in pkgutil.iter_modules([str(folder)])
        if not module.name.startswith("_")
    )


def of_level(level: str) -> tuple[str, ...]:
    """Names of the bundled techniques that act on `level`."""
    return tuple(name for name in names("technique") if create("technique", name).level == level)


def path(kind: Kind, name: str) -> Path:
    """The file of the bundled plug-in `name`, whether or not its optional packages are
    installed."""
    return Path(__file__).parent / _PACKAGES[kind] / f"{name}.py"


def load(kind: Kind, name: str, folders: Sequence[Path] = ()) -> Any:
    """The class or function of plug-in `name`: a bundled one, or `package.module:Name`.

    Raises InputError for an unknown name, MissingPackage where its optional package is not
    installed.
    """
    if ":" not in name:
        return _load_bundled(kind, name)
    loaded = import_reference(name, folders)
    return faults.guard(loaded, f"the {kind} {name!r}") if kind in _CALLED else loaded


@functools.cache
def _load_bundled(kind: Kind, name: str) -> Any:
    if not name.isidentifier() or name.startswith("_") or not path(kind, name).is_file():
        known = names(kind)
        raise InputError(
            f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        )
    package = "autoprune." + _PACKAGES[kind].replace("/", ".")
    try:
        module = importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{kind} {name!r} needs the package {error.name!r}: pip install {error.name}"
        ) from error
    (public,) = module.__all__
    return getattr(module, public)


def create(kind: Kind, given: str, folders: Sequence[Path] = ()) -> Any:
    """An instance of the plug-in that `given` names, `name` or `name(key=value, ...)`.

    Raises InputError for an unknown name or a setting that it has not or that does not fit;
    MissingPackage as `load`.
    """
    name, settings = parse(given)
    plugin = load(kind, name, folders)
    if settings:
        fields = inspect.signature(plugin).parameters.values()
        check_settings(given, settings, {field.name: _word(field.annotation) for field in fields})
    if ":" not in name:
        return plugin(**settings)
    with faults.code(f"the {kind} {given!r}"):
        return plugin(**settings)


def parse(given: str) -> tuple[str, dict[str, Any]]:
    """Name and settings of `name(key=value, ...)`; values are literals. Raises InputError."""
    name, bracket, inside = given.partition("(")
    if not bracket:
        return given, {}
    try:
        call = ast.parse(f"_({inside}", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            settings = {
                str(keyword.arg): ast.literal_eval(keyword.value)
                for keyword in call.keywords
                if keyword.arg
            }
            if len(settings) == len(call.keywords):
                return name.strip(), settings
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise InputError(
        f"{given!r} is no name with settings; needed: name(key=value, ...), each value a plain "
        "number or word, and in "
        "YAML quotes around the whole where it holds a comma"
    )


def check_settings(given: str, settings: Mapping[str, Any], fields: Mapping[str, str]) -> None:
    """Check that a plug-in with these `fields`, names with their types in words, has the settings
    in `given`."""
    for key, value in settings.items():
        if key not in fields:
            known = ", ".join(fields) or "it has none"
            raise InputError(
                f"{given!r} has an unknown setting {key!r}{nearest(key, fields)}; settings: {known}"
            )
        plain = fields[key] in ("bool", "int", "float", "str")
        whole = fields[key] == "float" and type(value) is int
        if plain and not whole and type(value).__name__ != fields[key]:
            raise InputError(
                f"{given!r}: the setting {key!r} needs a value of type {fields[key]}, got {value!r}"
            )


def _word(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def import_reference(reference: str, folders: Sequence[Path] = ()) -> Any:
    """The object that `package.module:name` names; its module is looked for in `folders` first,
    then as usual.

    Raises InputError where the module or the name does not exist; what its code raises when it is
    imported as CodeError, with the line. No package is named to be installed: it may be a file of
    the user's own that is missing.
    """
    module_name, _, attribute = reference.partition(":")
    for folder in reversed([str(Path(folder).resolve()) for folder in folders]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        with faults.code(f"importing {module_name!r} for {reference!r}"):
            module = importlib.import_module(module_name)
    except CodeError as error:
        cause = error.__cause__
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if cause is None or missing is None:
            raise
        fault, places = (
            faults.Fault.of(cause),
            ", ".join(str(folder) for folder in folders) or "the Python path",
        )
        if (module_name + ".").startswith(missing + ".") and not fault.own:
            raise InputError(
                f"no module {missing!r} for {reference!r}; looked in {places} and the Python path"
            ) from cause
        raise MissingPackage(
            f"{reference!r} imports {missing!r} ({fault.place}), which is not installed and no "
            f"file in {places}; "
            "install the package that has it, or, if it is a file of yours, put its folder on "
            "PYTHONPATH"
        ) from cause
    target: Any = module
    for part in attribute.split("."):
        if not hasattr(target, part):
            public = [name for name in vars(target) if not name.startswith("_")]
            raise InputError(
                f"module {module_name!r} has no {attribute!r}{nearest(attribute, public)}"
            )
        target = getattr(target, part)
    return target
