"""Hardware-aware automatic pruning for PyTorch: the best model inside a latency budget, measured
and verified.

The public names load on first use, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoprune.api import SearchResult, groups, load, measure, prune, search
    from autoprune.budget import Budget, Limit
    from autoprune.errors import (
        AutopruneError,
        BudgetError,
        CodeError,
        InputError,
        MissingPackage,
        ModelError,
        PlanError,
        StudyError,
        TrainingError,
        TrialsError,
        VerificationError,
    )
    from autoprune.group import Group
    from autoprune.latency_figures import LatencyFigures
    from autoprune.plan import Choice, Plan
    from autoprune.score import Candidate, Score
    from autoprune.target import Target

_PLACES = {
    "api": ("SearchResult", "groups", "load", "measure", "prune", "search"),
    "errors": (
        "AutopruneError",
        "BudgetError",
        "CodeError",
        "InputError",
        "MissingPackage",
        "ModelError",
        "PlanError",
        "StudyError",
        "TrainingError",
        "TrialsError",
        "VerificationError",
    ),
    "group": ("Group",),
    "latency_figures": ("LatencyFigures",),
    "plan": ("Choice", "Plan"),
    "score": ("Candidate", "Score"),
    "budget": ("Budget", "Limit"),
    "target": ("Target",),
}
_HOME = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "AutopruneError",
    "Budget",
    "BudgetError",
    "Candidate",
    "Choice",
    "CodeError",
    "Group",
    "InputError",
    "LatencyFigures",
    "Limit",
    "MissingPackage",
    "ModelError",
    "Plan",
    "PlanError",
    "Score",
    "SearchResult",
    "StudyError",
    "Target",
    "TrainingError",
    "TrialsError",
    "VerificationError",
    "groups",
    "load",
    "measure",
    "prune",
    "search",
]

try:
    __version__ = version("autoprune")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'autoprune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"autoprune.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
