"""The target `{runtime: recorded, from: RUN}`: that of RUN, whose figures are the answer to every
measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoprune.errors import StudyError
from autoprune.files import read_mapping
from autoprune.run import Run
from autoprune.target import Target

__all__ = ["RECORDED", "target_of"]

RECORDED = "recorded"  # as a runtime
# Runs that are repeated from one another: two that name each other would go on for ever
_NESTED = 8


def target_of(
    source: str, given: dict[str, Any], folders: Sequence[Path], nested: int = 0
) -> Target:
    """The target of the run in `source`, relative to one of `folders`; what else is `given` has to
    be its own.

    Raises StudyError, with the key, where there is no such run, or where it has another target.
    """
    folder = next((folder / source for folder in folders if (folder / source).is_dir()), None)
    if folder is None:
        places = ", ".join(str(folder) for folder in folders)
        raise StudyError(f"there is no run {source!r}; looked in {places}", key="target.from")
    study = Run(folder).study
    try:
        kept = read_mapping(study)["target"]
        fields = {key: value for key, value in kept.items() if key != "from"}
        if fields["runtime"] == RECORDED:
            if nested == _NESTED:
                raise StudyError(
                    f"{folder} was repeated from {_NESTED} other runs, or from itself",
                    key="target.from",
                )
            base = target_of(kept["from"], {}, (folder,), nested + 1)
        else:
            base = Target(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = (
            f"{study} does not say what was measured there ({type(error).__name__}); give the "
            "folder of a search"
        )
        raise StudyError(said, key="target.from") from error
    for key, value in given.items():
        if value != getattr(base, key):
            said = (
                f"{key} is {value!r}, and {folder} was measured with {getattr(base, key)!r}; "
                "leave it out"
            )
            raise StudyError(said, key=f"target.{key}")
    return replace(base, recorded=str(folder.resolve()))
