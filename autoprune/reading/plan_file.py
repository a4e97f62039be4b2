"""A plan from a JSON file that the user names."""

from __future__ import annotations

from pathlib import Path

from autoprune import files
from autoprune.errors import InputError, PlanError
from autoprune.plan import Plan

__all__ = ["read_plan"]

_BYTES = 8 * 1024 * 1024  # a thousand choices take a tenth of one MiB


def read_plan(path: Path) -> Plan:
    """The plan in a file, such as an artefact's or a trial's plan.json. Raises PlanError that names
    the file."""
    try:
        return Plan.from_json(files.json_of(files.text_of(path, _BYTES)))
    except FileNotFoundError as error:
        raise PlanError(f"{path}: there is no such file; give a plan.json") from error
    except IsADirectoryError as error:
        raise PlanError(f"{path}: this is a folder; give the plan.json in it") from error
    except InputError as error:
        raise PlanError(f"{path}: {error}; give a plan.json") from error
