"""Quality foreseen: which of many neighbours, none of them judged yet, is worth being judged next.

A regression of the untrained loss on what each group keeps. On a small VGG, from 60 judged plans it
ranked the next 60 with a correlation of 0.8, for a millisecond a plan where judging takes seconds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from autoprune.plan import Plan
from autoprune.space import Variable

__all__ = ["Surrogate"]

# Plans judged, before anything is foreseen: a regression has a coefficient or two for each
# technique of each group
_FEWEST = 20
# Quantile of the losses: what is worse counts as that bad, and does not bend the rest
_WORST = 0.8

Array = np.ndarray[Any, np.dtype[np.float64]]


class Surrogate:
    """Bayesian ridge regression (MacKay 1992) on the logarithms of kept shares, by technique, and
    their squares.

    Of blocks on whether they go.
    """

    def __init__(self, variables: Sequence[Variable]) -> None:
        self.variables = variables
        self._seen: dict[Plan, tuple[Array, float]] = {}

    def observe(self, plan: Plan, loss: float) -> None:
        """Learn what a plan came to, untrained; the lower the loss, the better."""
        if math.isfinite(loss):
            self._seen[plan] = self._features(plan), loss

    @property
    def ready(self) -> bool:
        """Whether enough was judged to foresee anything."""
        return len(self._seen) >= _FEWEST

    def order(self, plans: Sequence[Plan]) -> list[int]:
        """Places in `plans`, most promising first: by the loss foreseen less its standard
        deviation.

        As they are while little is known.
        """
        if not self.ready or len(plans) < 2:
            return list(range(len(plans)))
        from sklearn.linear_model import BayesianRidge

        rows = np.stack([features for features, _ in self._seen.values()])
        losses = np.array([loss for _, loss in self._seen.values()])
        losses = np.minimum(losses, np.quantile(losses, _WORST))
        scale = rows.std(0)
        used = scale > 0  # what was never varied tells nothing
        if not used.any() or losses.std() == 0:
            return list(range(len(plans)))
        centre, scale = rows.mean(0)[used], scale[used]
        with warnings.catch_warnings():
            # Of iterations that do not converge: it only ranks
            warnings.simplefilter("ignore")
            model = BayesianRidge().fit(
                (rows[:, used] - centre) / scale, (losses - losses.mean()) / losses.std()
            )
            asked = np.stack([self._features(plan) for plan in plans])[:, used]
            mean, deviation = model.predict((asked - centre) / scale, return_std=True)
        return [int(place) for place in np.argsort(mean - deviation, kind="stable")]

    def _features(self, plan: Plan) -> Array:
        features: list[float] = []
        for variable in self.variables:
            # of a group in a block that goes there is none
            choices = (plan.choices.get(group.key) for group in variable.groups)
            choice = next((choice for choice in choices if choice is not None), None)
            if variable.whole:
                features.append(float(choice is not None))
                continue
            gone = -math.log(1 - min(choice.ratio, 0.999)) if choice else 0.0
            for name in variable.options.techniques:
                taken = choice is not None and choice.technique == name
                features += [gone * taken, gone**2 * taken]
            features += [
                gone * (choice is not None and choice.criterion == name)
                for name in variable.options.criteria[1:]
            ]
        return np.array(features)
