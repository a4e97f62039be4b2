"""Bayesian regression of latency on the features of operations: a Gaussian process with a kernel
for each term.

What a term costs is the same for all operations, but for what differs by kind and by single
operation: three levels, each with a variance, as has each term; the likelihood of the measurements
chooses them (Rasmussen & Williams 2006, ch. 2 and 5). A term that explains nothing ends with a
variance near zero: so those steps are found that the device has. What the terms leave over is alike
in plans of like widths. All errors are relative to the latency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Measured", "Posterior", "fit", "prior", "spread"]

Array = np.ndarray[Any, np.dtype[np.float64]]

# How sure the prior is of: terms, levels, remainder, its length, noise
_SPREADS = (1.5, 0.7, 1.0, 0.5, 0.7)
_ITERATIONS = 60
# No logarithm is above, no relative noise below
_MOST, _QUIET = 3.0, 3e-3
_FOLDS = 5
# The spread at least: a machine is never quite the one it was during the profile
_LEAST = 1.25
# The spread where there are too few measurements to test it on
_UNTESTED = 2.0
# Places of the terms "work" and "root" in `features.SMOOTH_TERMS`
_ROUGH = (1, 4)
# Of dense: no latency is below, and a regression that extrapolates may say so
_FLOOR = 1e-3


@dataclass(frozen=True)
class Measured:
    """Plans and their latency: features (plans, terms, operations), share left of each group
    (plans, groups), ratios to dense (plans,), and the relative standard errors of these.
    """

    features: Array
    shares: Array
    ratios: Array
    errors: Array

    @property
    def rough(self) -> Array:
        """What a plan might take, to which errors are relative: (plans,)."""
        return _rough(self.features)

    def only(self, rows: Array | slice) -> Measured:
        """Some of the plans."""
        return Measured(
            self.features[rows], self.shares[rows], self.ratios[rows], self.errors[rows]
        )


def prior(terms: int, smooth: int) -> Array:
    """Logarithms of standard deviations before anything is measured: (terms + 3 levels + remainder,
    its length, noise).

    The first `smooth` terms are work and traffic; the others, steps in the width, start smaller.
    """
    start = np.full(terms, np.log(0.1))
    start[:smooth] = np.log(0.3)
    return np.concatenate([start, np.log([1.0, 0.5, 0.25]), np.log([0.02, 0.5, 0.01])])


def fit(measured: Measured, kinds: Sequence[int], start: Array) -> Array:
    """The most probable logarithms under the measurements and the prior `start`; deterministic."""
    from scipy.optimize import minimize

    # Beside the terms: three levels, the remainder, its length and the noise
    terms = len(start) - 6
    grams = np.stack([_gram(level, level) for level in _levels(measured.features, kinds)])
    rough = measured.rough
    grams /= rough[:, None] * rough
    apart = _apart(measured.shares, measured.shares)
    sure = np.repeat(_SPREADS, (terms, 3, 1, 1, 1))

    def cost(logs: Array) -> tuple[float, Array]:
        misfit, slope = _unlikely(logs, grams, apart, measured.ratios / rough, measured.errors)
        return misfit + 0.5 * float((((logs - start) / sure) ** 2).sum()), slope + (
            logs - start
        ) / sure**2

    # Four deviations of the prior to either side
    bounds = np.stack([start - 4 * sure, np.minimum(start + 4 * sure, _MOST)], 1)
    bounds[-1, 0] = np.log(_QUIET)
    optimum = minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _ITERATIONS}
    )
    return np.asarray(optimum.x, float)


def spread(measured: Measured, kinds: Sequence[int], start: Array) -> float:
    """How much wider intervals must be than the model itself says: at least 1.25.

    Everything is fitted anew to four fifths of the plans, five times; the factor covers 95 % of
    what was left out. The first plan, which is the dense model, is never left out.
    """
    count = len(measured.ratios)
    if count <= 2 * _FOLDS:
        return _UNTESTED
    off = []
    for fold in range(_FOLDS):
        out = np.array([row > 0 and row % _FOLDS == fold for row in range(count)])
        seen, left = measured.only(~out), measured.only(out)
        posterior, asked = (
            Posterior(seen, kinds, fit(seen, kinds, start)),
            (left.features, left.shares),
        )
        off.append(np.abs(left.ratios - posterior.mean(*asked)) / posterior.deviation(*asked))
    return max(_LEAST, float(np.quantile(np.concatenate(off), 0.95)) / 1.96)


class Posterior:
    """What the measurements say of plans that were not measured."""

    def __init__(self, measured: Measured, kinds: Sequence[int], logs: Array) -> None:
        from scipy.linalg import cho_factor, cho_solve

        terms, self._kinds, self._logs, self._shares = len(logs) - 6, kinds, logs, measured.shares
        term, level = np.exp(logs[:terms]), np.exp(logs[terms : terms + 3])
        self._scales = [factor * term[None, :, None] for factor in level]
        ratios = measured.ratios / measured.rough
        self._known = self._scale_features(measured.features) / measured.rough[:, None]
        covariance = self._known @ self._known.T + self._alike(measured.shares)
        covariance[np.diag_indices_from(covariance)] += (
            np.exp(2 * logs[-1]) + (measured.errors * ratios) ** 2
        )
        self._inverse = np.asarray(
            cho_solve(cho_factor(covariance, lower=True), np.eye(len(covariance)))
        )
        self._weights = self._inverse @ ratios

    def mean(self, features: Array, shares: Array) -> Array:
        """(plans, terms, operations), (plans, groups) -> ratio to dense."""
        return np.maximum(self._cross(features, shares) @ self._weights, _FLOOR)

    def deviation(self, features: Array, shares: Array) -> Array:
        """(plans, terms, operations), (plans, groups) -> standard deviation of a measurement of the
        ratio."""
        cross, rough = self._cross(features, shares), _rough(features)
        own = (self._scale_features(features) ** 2).sum(1) + rough**2 * np.exp(2 * self._logs[-3])
        left = np.maximum(
            own - np.einsum("pn,nm,pm->p", cross, self._inverse, cross, optimize=True), 0.0
        )
        return np.asarray(np.sqrt(left + np.exp(2 * self._logs[-1]) * rough**2))

    def _cross(self, features: Array, shares: Array) -> Array:
        return np.asarray(
            self._scale_features(features) @ self._known.T
            + _rough(features)[:, None] * self._alike(shares)
        )

    def _scale_features(self, features: Array) -> Array:
        levels = zip(_levels(features, self._kinds), self._scales, strict=True)
        return np.concatenate(
            [(level * scale).reshape(len(features), -1) for level, scale in levels], 1
        )

    def _alike(self, shares: Array) -> Array:
        amount, length = np.exp(2 * self._logs[-3]), np.exp(-2 * self._logs[-2])
        return np.asarray(amount * np.exp(-0.5 * length * _apart(shares, self._shares)))


def _unlikely(
    logs: Array, grams: Array, apart: Array, found: Array, errors: Array
) -> tuple[float, Array]:
    """Negative log likelihood of what was `found` (n,), and its gradient; `grams` (levels, terms,
    n, n)."""
    from scipy.linalg import cho_factor, cho_solve

    terms, slope = grams.shape[1], np.empty_like(logs)
    term, level = np.exp(2 * logs[:terms]), np.exp(2 * logs[terms : terms + 3])
    amount, length, noise = np.exp(2 * logs[-3]), np.exp(-2 * logs[-2]), np.exp(2 * logs[-1])
    by_term = np.tensordot(level, grams, (0, 0))
    alike = amount * np.exp(-0.5 * length * apart)
    covariance = (
        np.tensordot(term, by_term, (0, 0)) + alike + np.diag(noise + (errors * found) ** 2)
    )
    factor = cho_factor(covariance, lower=True)
    inverse = cho_solve(factor, np.eye(len(errors)))
    weights = inverse @ found
    pull = np.outer(weights, weights) - inverse
    slope[:terms] = -np.tensordot(by_term, pull, 2) * term
    slope[terms : terms + 3] = -np.tensordot(grams, pull, 2) @ term * level
    slope[-3] = -(pull * alike).sum()
    slope[-2] = -0.5 * (pull * alike * apart).sum() * length
    slope[-1] = -np.trace(pull) * noise
    return float(0.5 * weights @ found + np.log(np.diag(factor[0])).sum()), slope


def _rough(features: Array) -> Array:
    """As the mean of what is left of the work and of the widths would have it."""
    # Never near 0, as all errors are relative to it
    return np.asarray(0.05 + 0.95 * features[:, _ROUGH].sum(2).mean(1))


def _levels(features: Array, kinds: Sequence[int]) -> list[Array]:
    """(plans, terms, operations) -> summed over all operations, over those of each kind, and each
    alone."""
    member = np.eye(max(kinds, default=0) + 1)[list(kinds)]
    return [features.sum(2, keepdims=True), features @ member, features]


def _gram(first: Array, second: Array) -> Array:
    """(n, terms, k), (m, terms, k) -> (terms, n, m)."""
    return np.asarray(first.transpose(1, 0, 2) @ second.transpose(1, 2, 0))


def _apart(first: Array, second: Array) -> Array:
    """Mean squared difference of the shares of plans, (n, groups), (m, groups) -> (n, m)."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return np.asarray(np.maximum(squares, 0.0) / max(1, first.shape[1]))
