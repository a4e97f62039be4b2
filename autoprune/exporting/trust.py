"""What using an artefact or a run would do beside reading it: run code that its study names, or go
to the network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import InputError
from autoprune.exporting import artefact
from autoprune.files import read_mapping

__all__ = ["dangers", "require_trust"]

# Names that come with autoprune or torchvision: nobody's own code
_BUNDLED = re.compile(r"(zoo|torchvision):\w+")
# package.module:name, plug-in settings
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.:]*(\(.*)?", re.DOTALL)
# Arguments of torchvision's models and data sets that download
_FETCHES = ("weights", "weights_backbone", "download")
# A path and arguments, handed on as they are: no reference in them is imported
_PLAIN = frozenset({"folder", "args"})
# Mappings of which the keys are quantities
_BY_QUANTITY = ("budget", "resources")


def require_trust(folder: Path, trust: bool, command: str) -> None:
    """Raise InputError where `folder`'s records name code of somebody's own, or a download, and
    that is not trusted.

    A record that cannot be read names nothing, and nothing of it is run.
    """
    named: list[str] = []
    for name in () if trust else (artefact.STUDY, artefact.SCORE):
        try:
            named += dangers(read_mapping(folder / name))
        except ValueError:
            continue
    if named:
        raise InputError(
            f"{folder} names {', '.join(dict.fromkeys(named))}"[:300]
            + ", which would be run or fetched; where you "
            f"trust whoever made it: {command}"
        )


def dangers(record: Mapping[str, Any]) -> list[str]:
    """Every reference in a study or score that is no bundled one, every download and every storage
    elsewhere."""
    search = record.get("search")
    storage = search.get("storage") if isinstance(search, Mapping) else None
    return [
        *_foreign_references(record),
        *([f"the storage {str(storage).partition('://')[0]}://..."] if storage else []),
    ]


def _foreign_references(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        args, name = value.get("args"), value.get("name")
        if isinstance(args, Mapping):
            yield from (
                f"{name!r} with {option}={args[option]!r}"
                for option in _FETCHES
                if args.get(option)
            )
        if key in _BY_QUANTITY:  # one of the user's own is code
            for quantity in value:
                yield from _foreign_references(str(quantity).partition(" on ")[0])
        for inner in value:
            if inner not in _PLAIN:
                yield from _foreign_references(value[inner], str(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _foreign_references(inner, key)
    elif (
        isinstance(value, str)
        and key != "storage"
        and _REFERENCE.fullmatch(value)
        and not _BUNDLED.fullmatch(value)
    ):
        yield repr(value[:100])
