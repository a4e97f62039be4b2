"""YAML that remembers its lines: every key path with the place it came from; a repeated key is
refused.

Plain values are read as YAML 1.2 reads them, so that `1e-3` is a number and `no` is a word.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from autoprune import files
from autoprune.errors import InputError, MissingPackage, StudyError

__all__ = ["Document", "KeyPath", "Place", "key_paths", "parse", "read", "scalar"]

KeyPath = tuple[str, ...]

# Of a document, aliases counted as often as they are used: a few lines of them may stand for
# billions of nodes
_NODES = 20_000
# A thousand layers by name take half of them
_DEPTH, _MARKS, _BYTES = 40, 20_000, 128 * 1024


@dataclass(frozen=True)
class Place:
    """Where a value was written: a file (or an option of the command line), and the line in it."""

    source: str | None
    line: int | None = None


@dataclass(frozen=True)
class Document:
    """A mapping and the place of every key path in it."""

    values: dict[str, Any] = field(default_factory=dict)
    places: Mapping[KeyPath, Place] = field(default_factory=lambda: {(): Place(None)})

    def place(self, path: KeyPath) -> Place:
        """Where `path` was written, or the nearest of its parents that was."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, Place(None))

    def error(self, message: str, path: KeyPath) -> StudyError:
        """A StudyError at `path`, with file and line."""
        place = self.place(path)
        return StudyError(message, file=place.source, key=".".join(path) or None, line=place.line)

    @contextlib.contextmanager
    def placing(self, path: KeyPath) -> Iterator[None]:
        """Give an InputError from inside the place of `path`."""
        try:
            yield
        except MissingPackage as error:
            raise MissingPackage(str(self.error(str(error), path))) from error
        except InputError as error:
            raise self.error(str(error), path) from error

    def locate_error(self, error: StudyError) -> StudyError:
        """`error` with file and line, where its key was written in this document and it does not
        name them yet."""
        if error.key is None or error.file is not None:
            return error
        known = {".".join(path): place for path, place in self.places.items() if path}
        parts = error.key.split(".")
        candidates = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        place = next(
            (known[key] for key in candidates if key in known), Place(self.place(()).source)
        )
        return StudyError(error.message, file=place.source, key=error.key, line=place.line)


def read(path: Path, shown: str | None = None) -> Document:
    """The document in a file, called `shown` in errors. Raises StudyError where it is not to be
    read."""
    name = shown or str(path)
    if os.path.isdir(path):
        inner = path / "study.yaml"
        hint = f"; did you mean {inner}?" if os.path.exists(inner) else "; give a YAML file"
        raise StudyError(f"this is a folder{hint}", file=name)
    try:
        text = files.text_of(path, _BYTES)
    except FileNotFoundError as error:
        raise StudyError("there is no such file", file=name) from error
    except InputError as error:
        raise StudyError(f"{error}; a study or target is a YAML file", file=name) from error
    return parse(text, name)


def parse(text: str, source: str | None = None) -> Document:
    """The document in `text`. Raises StudyError with the line of whatever is wrong."""
    reader = _Reader(source)
    values = reader.read(text)
    if not isinstance(values, dict):
        what = "it is empty" if values is None else f"it holds {values!r:.60}"
        raise StudyError(
            f"needs a mapping with version, name, task, ...; {what}", file=source, line=1
        )
    return Document(values, reader.places)


def scalar(text: str, source: str) -> Any:
    """The value of `key=text` on a command line: any YAML on one line. Raises StudyError."""
    return _Reader(source).read(text)


def key_paths(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    """The path of every key in nested mappings."""
    if not isinstance(value, Mapping):
        return []
    return [
        inner_path
        for key, inner in value.items()
        for inner_path in ((*path, str(key)), *key_paths(inner, (*path, str(key))))
    ]


def _short(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:50]!r}... ({len(text):,} characters)"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own way of telling a plain value's kind)


_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
for _kind, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _first
    )


class _Reader:
    """Builds plain values from YAML nodes and notes the line of each."""

    def __init__(self, source: str | None) -> None:
        self.source = source
        self.places: dict[KeyPath, Place] = {}
        self.open: set[int] = set()
        self.count = 0

    def read(self, text: str) -> Any:
        """The value in `text`."""
        if sum(text.count(mark) for mark in "[{,:") > _MARKS:
            raise StudyError(
                f"this YAML has more than {_MARKS:,} brackets, commas and colons", file=self.source
            )
        steps = (1 if mark in "[{" else -1 for mark in re.findall(r"[\[\]{}]", text))
        # PyYAML's time grows with its square
        if max(itertools.accumulate(steps), default=0) > 2 * _DEPTH:
            raise StudyError("this YAML is nested too deeply", file=self.source)
        try:
            node = _Loader(text).get_single_node()
            return None if node is None else self.value(node, ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = " ".join(part for part in (error.context, error.problem) if part)
            raise StudyError(
                f"this is no valid YAML: {problem}",
                file=self.source,
                line=mark.line + 1 if mark else None,
            ) from error
        except yaml.YAMLError as error:
            raise StudyError(
                f"this is no valid YAML: {' '.join(str(error).split())}", file=self.source
            ) from error
        except RecursionError as error:
            raise StudyError("this YAML is nested too deeply", file=self.source) from error

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        """The value of a node at `path`."""
        line = node.start_mark.line + 1
        self.places.setdefault(path, Place(self.source, line))
        self.count += 1
        if len(path) > _DEPTH:
            raise self.error(f"this YAML is nested more than {_DEPTH} deep", path[:3], line)
        if id(node) in self.open or self.count > _NODES:
            raise self.error("an alias that holds itself, or too many of them", path, line)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != f"tag:yaml.org,2002:{kind}":
            raise self.error(f"the tag {node.tag!r} cannot be used here", path, line)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            return [self.value(item, (*path, str(index))) for index, item in enumerate(node.value)]
        finally:
            self.open.discard(id(node))

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        """The mapping of a node; `<<` merges others into it, a key written twice is refused."""
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error("a key must be a single word", path, line)
            if key_node.tag == "tag:yaml.org,2002:merge":
                for node in (
                    value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                ):
                    given = self.value(node, path)
                    if not isinstance(given, dict):
                        raise self.error("<< needs a mapping", path, line)
                    merged = given | merged
                continue
            key = str(key_node.value)
            if key in lines:
                message = (
                    f"the key {key!r} is given twice, on line {lines[key]} and on line "
                    f"{line}; remove one"
                )
                raise self.error(message, (*path, key), line)
            lines[key] = line
            self.places[(*path, key)] = Place(self.source, line)
            own[key] = self.value(value_node, (*path, key))
        return merged | own

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        """The value of a word, by its tag."""
        kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value)
        if kind in ("str", "merge"):
            return text
        try:
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, 0) if text[:2].lower() in ("0x", "0o") else int(text)
            if kind == "float":
                return (
                    math.nan
                    if text.lower() == ".nan"
                    else float(text.replace(".", "", 1) if "inf" in text.lower() else text)
                )
        except (ValueError, KeyError) as error:
            raise self.error(
                f"{_short(text)} is no {kind}", path, node.start_mark.line + 1
            ) from error
        raise self.error(
            f"the tag {node.tag!r} cannot be used here", path, node.start_mark.line + 1
        )

    def error(self, message: str, path: KeyPath, line: int) -> StudyError:
        return StudyError(message, file=self.source, key=".".join(path) or None, line=line)
