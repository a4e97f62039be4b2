"""Optuna's samplers by their names in a study, and one whose samples are scaled to the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from autoprune.space import Parameters, Variable, distributions

__all__ = ["SAMPLERS", "Steered"]

SAMPLERS: dict[str, Callable[[int], Any]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


class Steered(optuna.samplers.BaseSampler):
    """Another sampler, whose every sample is moved by `steer` before it is recorded."""

    def __init__(
        self, inner: optuna.samplers.BaseSampler, variables: Sequence[Variable], steer: Callable[[Parameters], Any]
    ) -> None:
        """`steer` takes and gives the parameters of a trial, all of them."""
        self._inner, self._all, self._steer = inner, distributions(variables), steer

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        """All parameters, so that Optuna asks for none of them alone."""
        return dict(self._all)

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """What the inner sampler gives, jointly where it can, moved."""
        found = self._inner.sample_relative(study, trial, self._inner.infer_relative_search_space(study, trial))
        for name, each in self._all.items():
            if name not in found:
                if each.single():
                    found[name] = each.choices[0] if isinstance(each, CategoricalDistribution) else each.low
                    continue
                found[name] = self._inner.sample_independent(study, trial, name, each)
        return dict(self._steer(found))

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        """The inner sampler's."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Any, trial: FrozenTrial) -> None:
        """Pass on."""
        self._inner.before_trial(study, trial)

    def after_trial(self, study: Any, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass on."""
        self._inner.after_trial(study, trial, state, values)
