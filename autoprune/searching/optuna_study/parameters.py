"""Decisions as Optuna has them: flat parameters of a trial, `NAME.technique`, `NAME.ratio`,
`NAME.criterion`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from autoprune.decision import Decision, Decisions
from autoprune.plan import Plan
from autoprune.space import NONE, Variable

__all__ = ["Parameters", "distributions", "from_parameters", "to_parameters"]

Parameters = Mapping[str, Any]  # of a trial, by name


def distributions(
    variables: Sequence[Variable],
) -> dict[str, CategoricalDistribution | FloatDistribution]:
    """What Optuna may choose from, by parameter."""
    by_name: dict[str, CategoricalDistribution | FloatDistribution] = {}
    for variable in variables:
        options = variable.options
        by_name[f"{variable.name}.technique"] = CategoricalDistribution((NONE, *options.techniques))
        by_name[f"{variable.name}.ratio"] = FloatDistribution(*options.ratio)
        by_name[f"{variable.name}.criterion"] = CategoricalDistribution(options.criteria)
    return by_name


def to_parameters(decisions: Decisions) -> dict[str, Any]:
    """The parameters of the trial that takes these decisions."""
    parameters: dict[str, Any] = {}
    for name, decision in decisions.items():
        parameters[f"{name}.technique"] = decision.technique
        parameters[f"{name}.ratio"] = decision.ratio
        parameters[f"{name}.criterion"] = decision.criterion
    return parameters


def from_parameters(variables: Sequence[Variable], parameters: Parameters) -> Decisions:
    """The decisions of a trial, about the variables of now; what it does not have is left as it
    is."""
    known = {**to_parameters(Decisions.of_plan(variables, Plan())), **parameters}
    return Decisions(
        [
            Decision(
                variable,
                str(known[f"{variable.name}.technique"]),
                float(known[f"{variable.name}.ratio"]),
                str(known[f"{variable.name}.criterion"]),
            )
            for variable in variables
        ]
    )
