"""What pydantic finds wrong with a study, said in the study's own terms."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from autoprune.errors import StudyError, nearest
from autoprune.reading.yaml_lines import Document, KeyPath

__all__ = ["complaint"]

_NEEDED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list, as in [a, b]",
    "dict_type": "a mapping, as in {key: value}",
    "model_type": "a mapping, as in {key: value}",
    "model_attributes_type": "a mapping, as in {key: value}",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
}


def complaint(error: ValidationError, document: Document, schema: type[BaseModel]) -> StudyError:
    """The first problem as a StudyError, unknown keys before others: a mistyped key is why another
    is missing."""
    problems = sorted(
        error.errors(include_url=False), key=lambda value: value["type"] != "extra_forbidden"
    )
    first, others = problems[0], problems[1:]
    path = _path(first["loc"], document, missing=first["type"] == "missing")
    message = _message(first, schema)
    keys = list(
        dict.fromkeys(
            ".".join(_path(other["loc"], document, missing=other["type"] == "missing"))
            for other in others
        )
    )
    if keys:
        message += f" (also wrong: {', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
    return document.error(message, path)


def _path(location: Sequence[str | int], document: Document, missing: bool) -> KeyPath:
    """The key as it was written: without places in lists; `task.model` where that is short for
    `task.model.name`."""
    path = tuple(str(part) for part in location if isinstance(part, str))
    while not missing and path and path not in document.places:
        path = path[:-1]
    return path


def _message(error: ErrorDetails, schema: type[BaseModel]) -> str:
    kind, given, context = error["type"], _show_value(error["input"]), error.get("ctx", {})
    name = str(error["loc"][-1]) if error["loc"] else ""
    if kind == "extra_forbidden":
        known = _fields(schema, error["loc"][:-1])
        return f"unknown key {name!r}{nearest(name, known)}; known: {', '.join(known)}"
    if kind == "missing":
        return f"the key {name!r} is missing; it is needed"
    if kind == "literal_error" and name == "version":
        return f"this release reads studies of version 1; got {given}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        return f"must be {context['expected']}{nearest(str(error['input']), choices)}; got {given}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {context[bound]:g}; got {given}"
    if kind in ("too_short", "string_too_short"):
        return f"must not be empty; got {given}"
    if kind in _NEEDED:
        return f"needs {_NEEDED[kind]}; got {given}"
    if kind == "value_error":
        return str(context["error"])
    return f"{error['msg']}; got {given}"


def _show_value(value: object) -> str:
    """A value as YAML would write it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields(schema: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the fields of the section at `location`."""
    here: Any = schema
    for part in location:
        if isinstance(here, type) and issubclass(here, BaseModel) and part in here.model_fields:
            here = _section(here.model_fields[str(part)].annotation)
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


def _section(annotation: Any) -> Any:
    """The model in `Model | None` or `dict[str, Model]`, else the annotation itself."""
    inner = [
        arg
        for arg in typing.get_args(annotation)
        if isinstance(arg, type) and issubclass(arg, BaseModel)
    ]
    return inner[0] if inner else annotation
