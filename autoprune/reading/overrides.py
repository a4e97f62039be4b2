"""What the command line changes in a study; in errors, `--set search.trials=10` stands where file
and line would."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autoprune.errors import StudyError
from autoprune.reading import yaml_lines
from autoprune.reading.yaml_lines import Document, KeyPath, Place, key_paths

__all__ = ["apply"]

ReadTarget = Callable[[str], Document]

_TARGET = "cpu_onnxruntime"  # where a study names none
# `name` for `{name: name}`
_SHORT = (("task", "model"), ("task", "data"), ("task", "metric"))


def apply(
    document: Document,
    sets: Sequence[str],
    budget: Sequence[str],
    options: Mapping[str, tuple[KeyPath, Any]],
    target: ReadTarget,
) -> Document:
    """The document with `--set key.path=value`, then `--budget quantity=limit`, then other options
    written over it.

    `options` maps an option's name to the key path and the value it stands for. A target that is a
    name is replaced by what `target` reads for it, and a missing one by cpu_onnxruntime. Raises
    StudyError that names the argument.
    """
    editor = _Editor(document, target)
    for text in sets:
        key, value = _split(text, "--set", "key.path=value, as in --set search.trials=10")
        editor.put(_path(key, f"--set {text}"), value, f"--set {text}")
    limited: set[str] = set()
    for text in budget:
        key, value = _split(
            text, "--budget", "a quantity and its limit, as in --budget latency=50%"
        )
        if key in limited:
            said = (
                f"{key} is limited twice; `autoprune search` takes several limits of one "
                "quantity, for a family"
            )
            raise StudyError(said, file=f"--budget {text}")
        limited.add(key)
        editor.put(("budget", key), value, f"--budget {text}")
    for name, (path, value) in options.items():
        editor.put(path, value, f"{name} {value}")
    editor.open_target()
    return Document(editor.values, editor.places)


class _Editor:
    """A copy of a document, to be written to."""

    def __init__(self, document: Document, target: ReadTarget) -> None:
        self.values = {"target": _TARGET} | copy.deepcopy(document.values)
        self.places = dict(document.places)
        self.target = target

    def put(self, path: KeyPath, value: Any, source: str) -> None:
        """Write `value` at `path`, making the mappings on the way."""
        here = self.values
        for depth, part in enumerate(path[:-1], start=1):
            if path[:depth] == ("target",):
                self.open_target()
            inner = here.get(part)
            if isinstance(inner, str) and path[:depth] in _SHORT:
                inner = {"name": inner}
            if inner is not None and not isinstance(inner, dict):
                raise StudyError(
                    f"{'.'.join(path[:depth])} is {inner!r} and no mapping, so nothing can be set "
                    "in it",
                    file=source,
                )
            here[part] = {} if inner is None else inner
            here = here[part]
            self.places.setdefault(path[:depth], Place(source))
        here[path[-1]] = value
        self.places = {key: place for key, place in self.places.items() if key[: len(path)] != path}
        self.places |= {key: Place(source) for key in (path, *key_paths(value, path))}

    def open_target(self) -> None:
        """Replace the name of a target by its content."""
        name = self.values.get("target")
        if not isinstance(name, str):
            return
        try:
            document = self.target(name)
        except StudyError as error:
            if error.file not in (None, name):  # a fault inside the target's file
                raise
            raise Document({}, self.places).error(error.message, ("target",)) from error
        self.values["target"] = document.values
        self.places |= {("target", *path): place for path, place in document.places.items() if path}


def _split(text: str, option: str, needed: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise StudyError(f"needs {needed}", file=f"{option} {text}")
    return key.strip(), yaml_lines.scalar(value, f"{option} {text}")


def _path(key: str, source: str) -> KeyPath:
    """`space.layers."stage1.conv*".ratio` as a path: a part in quotation marks may hold dots."""
    if not re.fullmatch(r'("[^"]+"|[^."]+)(\.("[^"]+"|[^."]+))*', key):
        raise StudyError(
            "needs keys joined by dots; put a key that holds dots in quotation marks, as in "
            'space.layers."a.b".ratio',
            file=source,
        )
    return tuple(part.strip('"') for part in re.findall(r'"[^"]+"|[^."]+', key))
