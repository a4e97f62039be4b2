"""A plan from a JSON file that the user names."""

from __future__ import annotations

import json
from pathlib import Path

from autoprune.errors import PlanError
from autoprune.plan import Plan

__all__ = ["read_plan"]


def read_plan(path: Path) -> Plan:
    """The plan in a file, such as an artefact's or a trial's plan.json. Raises PlanError that names the file."""
    try:
        return Plan.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise PlanError(f"{path}: there is no such file; give a plan.json") from error
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; give a plan.json") from error
    except ValueError as error:
        raise PlanError(f"{path}: this is no JSON: {error}") from error
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
