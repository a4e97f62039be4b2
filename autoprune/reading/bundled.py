"""Where a study or a target is: a bundled one by its name, or a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from autoprune.errors import StudyError, nearest
from autoprune.reading import yaml_lines
from autoprune.reading.yaml_lines import Document

__all__ = ["bundled_paths", "locate", "read_target"]

_FOLDER = Path(__file__).parents[1] / "search_spaces"


def bundled_paths(kind: Literal["study", "target"] = "study") -> dict[str, Path]:
    """The studies, or targets, that ship with this package, by name."""
    folder = _FOLDER / "targets" if kind == "target" else _FOLDER
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def locate(given: str, kind: Literal["study", "target"], folder: Path) -> Path:
    """The file of a bundled name, or of a path relative to `folder` or to the current one. Raises
    StudyError."""
    known = bundled_paths(kind)
    if given in known:
        return known[given]
    path = Path(given).expanduser()
    for candidate in (folder / path, path):
        # of a name too long, or with a NUL, there is none; a study's folder has a hint of its own
        if os.path.exists(candidate) and not (kind == "target" and os.path.isdir(candidate)):
            return candidate
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        beside = [file.name for file in path.parent.glob("*.y*ml")]
        raise StudyError(
            f"there is no such {kind} file{nearest(path.name, beside)}; bundled: "
            f"{', '.join(known)}",
            file=given,
        )
    raise StudyError(
        f"unknown {kind} {given!r}{nearest(given, known)}; needed: a YAML file's path, or one of "
        f"{', '.join(known)}"
    )


def read_target(name: str, folder: Path) -> Document:
    """The document of a target by name or path; named as its file where it has no name. Raises
    StudyError."""
    path = locate(name, "target", folder)
    document = yaml_lines.read(path)
    return Document({"name": path.stem, **document.values}, document.places)
