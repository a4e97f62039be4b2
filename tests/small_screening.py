"""A small search that judges plans without fine-tuning, prepared once; samples of its space."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from small_search import Listens, study

from autoprune.decision import Decision, Decisions
from autoprune.plan import Choice, Plan
from autoprune.run import Run
from autoprune.searching.callback import Quiet
from autoprune.searching.evaluating.evaluator import Evaluator
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.proposing.budget_scaling import BudgetScaling
from autoprune.searching.search import Result
from autoprune.searching.search import search as run_search
from autoprune.searching.session import Session
from autoprune.study import Study


def screening(budget: Mapping[str, Any] | None = None, **settings: Any) -> Study:
    return study(
        None if budget is None else dict(budget), **{"trials": 12, "finalists": 2, **settings}
    )


def searched(folder: Path, listener: Listens | None = None, **options: Any) -> Result:
    return run_search(screening(**options), Run(folder), listener)


def untouched(prepared: Prepared) -> Decisions:
    return Decisions.of_plan(prepared.variables, Plan())


def narrowed(prepared: Prepared, ratios: Mapping[str, float]) -> Decisions:
    """Structured at these ratios, everything else left as it is."""
    whole = untouched(prepared)
    return whole.evolve(*(whole[key].at(ratio, "structured") for key, ratio in ratios.items()))


def wider(decision: Decision) -> Decision:
    """By one step of width."""
    return decision.at(decision.ratio - decision.variable.step / decision.variable.groups[0].size)


def session(given: Study, prepared: Prepared, folder: Path) -> Session:
    pruner = prepared.pruner(given)
    return Session(Run(folder), Evaluator(given, prepared, prepared.dense, pruner, Quiet()))


def scaling(prepared: Prepared, folder: Path, **budget: str) -> BudgetScaling:
    return BudgetScaling.of(session(screening(budget or {"flops": "55%"}), prepared, folder))


def drawn(prepared: Prepared, draw: random.Random) -> Plan:
    choices: dict[str, Choice] = {}
    for each in prepared.variables:
        choices |= each.choices(
            each.options.techniques[0], draw.uniform(0, 0.8), each.options.criteria[0]
        )
    return Plan(choices)


def late_groups_matter(plan: Plan) -> float:
    """A loss that grows with what is removed, the more so the later the group."""
    return sum((number + 1) * choice.ratio**2 for number, (_, choice) in enumerate(plan))
