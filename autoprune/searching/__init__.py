"""(Task, Space, Target) -> Pareto front."""

from autoprune.searching.results import Checked, check
from autoprune.searching.results import apply_plan as prune
from autoprune.searching.results import export_from as export
from autoprune.searching.search import Result, search

__all__ = ["Checked", "Result", "check", "export", "prune", "search"]
