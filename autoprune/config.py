"""Study YAML -> nouns; every error carries file, key path and line. Importing this does not import
torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from autoprune import faults
from autoprune.budget import Budget, Limit
from autoprune.errors import InputError, StudyError, without_passwords
from autoprune.reading import overrides, yaml_lines
from autoprune.reading.bundled import bundled_paths, locate, read_target
from autoprune.reading.checks import check
from autoprune.reading.complaints import complaint
from autoprune.reading.recorded import target_of
from autoprune.reading.references import check_plugin
from autoprune.reading.resume import differences, open_run, refuse_changed
from autoprune.reading.schema import Options, StudySchema, TargetSchema, Training
from autoprune.reading.values import METRICS, duration
from autoprune.reading.yaml_lines import Document, KeyPath, Place, key_paths
from autoprune.space import Options as SpaceOptions
from autoprune.space import Space
from autoprune.target import Target

if TYPE_CHECKING:
    from autoprune.study import Study
    from autoprune.task import Recipe, Task

__all__ = [
    "Config",
    "build",
    "bundled_paths",
    "differences",
    "from_mapping",
    "open_run",
    "read",
    "refuse_changed",
    "target",
]

_DEFAULTS = SpaceOptions()


@dataclass(frozen=True)
class Config:
    """A study that fits the schema: its values, where each was written, and the folder that its own
    modules lie in."""

    values: StudySchema
    document: Document
    folder: Path

    @property
    def name(self) -> str:
        """The study's name."""
        return self.values.name

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the study's modules and files are looked for: its own folder, then the current
        one."""
        return tuple(dict.fromkeys((self.folder, Path.cwd())))

    def resolved(self) -> dict[str, Any]:
        """The study as a plain mapping in YAML's terms, in the order of the schema, with every
        default filled in.

        It is what is written down: the password of a storage's URL is not in it.
        `task` is `{"model": "python"}` where there is none: then model and data are given in
        Python.
        """
        values = self.values.model_dump(mode="json")
        if values["search"]["storage"] is not None:
            values["search"]["storage"] = without_passwords(values["search"]["storage"])
        task = values["task"] or {"model": "python"}
        for key in ("model", "data"):
            if isinstance(task.get(key), dict) and not task[key]["args"]:
                task[key] = task[key]["name"]
        if self.values.task is not None:
            task["metric"]["goal"] = (
                self.values.task.metric.goal or METRICS[self.values.task.metric.name]
            )
        training = (self.values.task.training if self.values.task else Training()).model_dump()
        recovery = {
            key: training[key] if value is None else value
            for key, value in values["recovery"].items()
        }
        space = self.values.space
        layers = {
            pattern: _options(options, space.default) for pattern, options in space.layers.items()
        }
        return values | {
            "task": task,
            "space": {
                "default": _options(space.default, space.default),
                "layers": layers,
                "share": values["space"]["share"],
            },
            "target": _target(self.values.target, self.folders).in_study(),
            "recovery": recovery,
            "folder": str(self.folder),
        }

    @contextlib.contextmanager
    def locating(self) -> Iterator[None]:
        """Give a StudyError from inside that names a key, but no file, the file and the line of
        that key.

        What the user's code raises, wherever it is called, is a CodeError.
        """
        try:
            with faults.boundary():
                yield
        except StudyError as error:
            raise self.document.locate_error(error) from error.__cause__


def read(
    study: str | Path,
    *,
    sets: Sequence[str] = (),
    budget: Sequence[str] = (),
    trials: int | None = None,
    timeout: str | None = None,
    seed: int | None = None,
) -> Config:
    """The study in a file, or the bundled one of that name.

    `sets` are `key.path=value` and replace what is written there; then `budget`, each
    `latency=50%`, replaces its own key; then trials, timeout, seed. Neither torch nor the study's
    modules are imported. Raises InputError.
    """
    path = locate(str(study), "study", Path.cwd())
    document = yaml_lines.read(path)
    if "version" not in document.values:
        raise document.error("the key 'version' is missing; write version: 1", ())
    if document.values.get("task") == {"model": "python"}:
        said = (
            "model and data of this study were given in Python; go on there: "
            "autoprune.search(..., out=...) continues, and its result exports"
        )
        raise document.error(said, ("task",))
    given = {"trials": trials, "timeout": timeout, "seed": seed}
    options: dict[str, tuple[KeyPath, Any]] = {
        f"--{key}": (("search", key), value) for key, value in given.items() if value is not None
    }
    folder = path.resolve().parent
    document = overrides.apply(
        document, sets, budget, options, lambda name: read_target(name, folder)
    )
    if document.values.get("task") is None:
        raise document.error(
            "the key 'task' is missing; it names model and data: task: {model: zoo:digits_cnn, "
            "data: zoo:digits}",
            (),
        )
    return _validate(document, path.stem, folder)


def from_mapping(values: Mapping[str, Any], folder: Path | None = None) -> Config:
    """The study in a mapping as in a YAML file; `version`, `name` and `task` may be left out.
    Raises StudyError."""
    plain = {"version": 1, **_plain(values)}
    here = (folder or Path.cwd()).resolve()
    document = Document(plain, {path: Place(None) for path in ((), *key_paths(plain))})
    document = overrides.apply(document, (), (), {}, lambda name: read_target(name, here))
    return _validate(document, "study", here)


def build(config: Config, task: Task | None = None) -> Study:
    """The nouns of the study: imports torch and the user's modules, loads the data. `task`: one
    made in Python.

    Raises StudyError with file and line, ModelError, MissingPackage.
    """
    from autoprune.study import Settings, Study
    from autoprune.task import Recipe
    from autoprune.training import tasks

    resolved, values = config.resolved(), config.values
    recovery = Recipe(**resolved["recovery"])
    with config.locating():
        if task is None:
            training = tasks.recipe(resolved["task"]["training"])
            _check_device("task.training", training)
            task = tasks.build(resolved["task"], config.folders, training)
        _check_device("recovery", recovery)
    budget, own = Budget.parse(values.budget), _target(values.target, config.folders)
    search = values.search.model_dump()
    timeout, stall = (search.pop(key) for key in ("timeout", "stall"))
    objectives, finalists = (search.pop(key) for key in ("objectives", "finalists"))
    return Study(
        name=values.name,
        task=task,
        space=_space(resolved["space"]),
        target=own,
        budget=budget,
        further=tuple(
            dict.fromkeys(
                target
                for limit in budget.limits
                for target in _further(limit, own.name, config.folder)
            )
        ),
        search=Settings(
            **search,
            finalists=None if finalists == "all" else finalists,
            objectives=tuple(objectives),
            timeout_s=None if timeout is None else duration(timeout),
            stall_s=None if stall is None else duration(stall),
        ),
        recovery=recovery,
        formats=tuple(values.export.formats),
        folder=config.folder,
        resolved=resolved,
    )


def target(given: str | Path | Mapping[str, Any] | Target, folder: Path | None = None) -> Target:
    """A bundled target by name, one in a YAML file under `folder`, or one in a mapping.

    Raises StudyError, MissingPackage.
    """
    if isinstance(given, Target):
        return given
    if isinstance(given, Mapping):
        return _target(
            from_mapping({"target": given}).values.target, (folder or Path.cwd(), Path.cwd())
        )
    document = read_target(str(given), folder or Path.cwd())
    try:
        values = TargetSchema.model_validate(document.values)
    except ValidationError as error:
        raise complaint(error, document, TargetSchema) from error
    with document.placing(("runtime",)):
        check_plugin("runtime", values.runtime, (Path.cwd(),))
    return _target(values, (folder or Path.cwd(), Path.cwd()))


def _validate(document: Document, name: str, folder: Path) -> Config:
    document = Document(
        {**document.values, "name": document.values.get("name", name)}, document.places
    )
    try:
        values = StudySchema.model_validate(document.values)
    except ValidationError as error:
        raise complaint(error, document, StudySchema) from error
    config = Config(
        values, document, folder if values.folder is None else (folder / values.folder).resolve()
    )
    check(values, document, config.folders)
    with config.locating():
        own = _target(values.target, config.folders)
    for limit in Budget.parse(values.budget).limits:
        with document.placing(("budget", limit.key)):
            _further(limit, own.name, folder)
    return config


def _further(limit: Limit, own: str, folder: Path) -> tuple[Target, ...]:
    """The further target of a limit, named as the limit names it."""
    if not limit.target:
        return ()
    if limit.target == own:
        raise StudyError(
            f"{own} is the study's own target; write {limit.quantity} without 'on {own}'"
        )
    return (replace(target(limit.target, folder), name=limit.target),)


def _check_device(section: str, recipe: Recipe) -> None:
    from autoprune.training import placement

    try:
        placement.device(recipe.device)
    except InputError as error:
        raise StudyError(str(error), key=f"{section}.device") from error


def _options(options: Options, default: Options) -> dict[str, Any]:
    """Options with every field filled in, from `default` or else the space's own defaults."""
    filled: dict[str, Any] = {}
    for key in ("techniques", "ratio", "criteria"):
        own, inherited = getattr(options, key), getattr(default, key)
        filled[key] = list(
            own
            if own is not None
            else inherited
            if inherited is not None
            else getattr(_DEFAULTS, key)
        )
    multiple_of = options.multiple_of or default.multiple_of
    return filled | ({"multiple_of": multiple_of} if multiple_of else {})


def _space(resolved: Mapping[str, Any]) -> Space:
    def options(given: Mapping[str, Any]) -> SpaceOptions:
        low, high = given["ratio"]
        techniques, criteria = tuple(given["techniques"]), tuple(given["criteria"])
        return SpaceOptions(techniques, (low, high), criteria, given.get("multiple_of"))

    layers = {pattern: options(given) for pattern, given in resolved["layers"].items()}
    share = resolved["share"]
    return Space(
        options(resolved["default"]),
        layers,
        share["depth"] if isinstance(share, Mapping) else share,
    )


def _target(values: TargetSchema, folders: Sequence[Path]) -> Target:
    if values.source is not None:
        given = values.model_dump(include=values.model_fields_set - {"source", "runtime"})
        return target_of(values.source, given, folders)
    given = values.model_dump(exclude={"source"})
    name = given.pop("name") or f"{given['device']}_{given['runtime'].rpartition(':')[2]}"
    return Target(name=name, **given)


def _plain(value: Any) -> Any:
    """A value as YAML would give it: lists for tuples, text for paths and keys."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
