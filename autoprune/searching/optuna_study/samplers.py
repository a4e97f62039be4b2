"""Optuna's samplers by their names in a study, and one whose samples are scaled to the budget.

A sampler is made anew for each trial that it is asked for, seeded by its number, so that a search
that was killed draws as one that was not: whatever it knows it takes from the trials that were
told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from autoprune.decision import Decisions
from autoprune.searching.optuna_study.parameters import (
    distributions,
    from_parameters,
    to_parameters,
)
from autoprune.space import Variable

__all__ = ["SAMPLERS", "ScaledSampler", "population"]

# At least; so many generations in all trials. Optuna breeds from 50, more than half of a search of
# 100 trials would draw at random
_POPULATION, _GENERATIONS = 8, 8


class Gaussian(optuna.samplers.GPSampler):
    """A Gaussian process whose acquisition function is searched in a tenth of the time of Optuna's
    own.

    Its every sample is scaled to the budget afterwards, so the last digits of the optimum are worth
    nothing.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._n_preliminary_samples, self._n_local_search, self._n_qmc_samples_ehvi = 256, 2, 32


class Generations(optuna.samplers.NSGAIISampler):
    """NSGA-II (Deb et al. 2002) of whose generations every plan is one that was told, whoever
    proposed it.

    Optuna's own counts its own samples alone: between proposals and exchange moves these never fill
    a generation.
    """

    def __init__(self, seed: int, size: int) -> None:
        super().__init__(seed=seed, population_size=size)
        self._size = size

    def sample_relative(
        self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """A child of the best of all generations that are full; nothing, so a random sample, in the
        first."""
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        told = [trial for trial in told if search_space.keys() <= trial.params.keys()]
        generation = len(told) // self._size
        study._storage.set_trial_system_attr(trial._trial_id, "autoprune:generation", generation)
        if generation == 0 or not search_space:
            return {}
        parents = self._elite_population_selection_strategy(study, told[: generation * self._size])
        return dict(self._child_generation_strategy(study, search_space, parents))


def population(trials: int) -> int:
    """How many plans make a generation of a search of so many trials."""
    return max(_POPULATION, trials // _GENERATIONS)


# By seed and number of trials asked for
SAMPLERS: dict[str, Callable[[int, int], Any]] = {
    "tpe": lambda seed, trials: optuna.samplers.TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed, trials: Generations(seed, population(trials)),
    "gp": lambda seed, trials: Gaussian(seed),
    "random": lambda seed, trials: optuna.samplers.RandomSampler(seed=seed),
}


class ScaledSampler(optuna.samplers.BaseSampler):
    """Another sampler, whose every sample is moved by `scale` before it is recorded."""

    def __init__(
        self,
        inner: optuna.samplers.BaseSampler,
        variables: Sequence[Variable],
        scale: Callable[[Decisions], Decisions],
    ) -> None:
        """`scale` takes and gives the decisions of a trial, about all variables."""
        self._inner, self._variables, self._scale = inner, variables, scale
        self._all = distributions(variables)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, Any]:
        """All parameters, so that Optuna asks for none of them alone."""
        return dict(self._all)

    def sample_relative(
        self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """What the inner sampler gives, jointly where it can, moved."""
        sample = self._inner.sample_relative(
            study, trial, self._inner.infer_relative_search_space(study, trial)
        )
        for name, distribution in self._all.items():
            if name not in sample:
                if distribution.single():
                    sample[name] = (
                        distribution.choices[0]
                        if isinstance(distribution, CategoricalDistribution)
                        else distribution.low
                    )
                    continue
                sample[name] = self._inner.sample_independent(study, trial, name, distribution)
        return to_parameters(self._scale(from_parameters(self._variables, sample)))

    def sample_independent(
        self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """The inner sampler's."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Any, trial: FrozenTrial) -> None:
        """Pass on."""
        self._inner.before_trial(study, trial)

    def after_trial(
        self, study: Any, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Pass on."""
        self._inner.after_trial(study, trial, state, values)
