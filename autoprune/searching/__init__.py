"""(Task, Space, Target) -> Pareto front."""

from autoprune.searching.commands import Checked, answerable, check, export_trained, sensitivity
from autoprune.searching.commands import apply_plan as prune
from autoprune.searching.commands import export_from as export
from autoprune.searching.proposing.sensitivity import RATIOS
from autoprune.searching.search import Result, search

__all__ = [
    "RATIOS",
    "Checked",
    "Result",
    "answerable",
    "check",
    "export",
    "export_trained",
    "prune",
    "search",
    "sensitivity",
]
