"""BudgetScaling: a plan scaled to the edge of the budget before it is built, so that trials are
spent where the answer lies.

AMC (He et al. 2018, arXiv:1802.03494) keeps every episode inside its budget by construction; here
all ratios of a plan are scaled by one factor, FLOPs and sizes being counted, latency predicted from
a short profile of the target and corrected by every candidate that is measured.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from autoprune.budget import Budget, Feasibility, Limit
from autoprune.decision import Decisions
from autoprune.errors import ModelError
from autoprune.measuring.prediction.predictor import Predictor
from autoprune.measuring.timing.latency import Latency
from autoprune.plan import Plan
from autoprune.pruning.pruner import Pruner
from autoprune.quantities import TIMED, is_resource
from autoprune.run import Run
from autoprune.score import Score
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.session import Session
from autoprune.study import Study

__all__ = ["BudgetScaling"]

# Of the budget: at its very edge falls outside what is measured again
_MARGINS = {"latency": 0.02, "throughput": 0.02}
# The file that ships is not the graph that was cut out
_MARGINS |= {"size": 0.005, "size_compressed": 0.005}
# Of the budget, that proposals are solved for: below the whole, because a prediction may be off;
# and of the dense cost, where nothing is limited and the whole front is wanted
_SHARES, _LEVELS = (1.0, 0.95, 0.9), (0.8, 0.6, 0.4, 0.25)
# Of bisection on a logarithmic scale: eleven halvings of four decades leave half a per cent
_STEPS, _RANGE = 11, 1e4
# Plans are enough to learn from: the time of a Gaussian process grows with their cube
_LEARNT = 160
# Of a profile, at most: seconds, of the time limit, plans
_PROFILE_S, _PROFILE_SHARE, _PLANS = 60.0, 0.2, 40


def _is_foreseen(quantity: str) -> bool:
    """Whether it is known of a plan before it is trained, and before it has run."""
    return quantity != "metric_drop" and not is_resource(quantity)


@dataclass
class BudgetScaling:
    """Knows about what a plan will cost, and scales plans to what the budget allows."""

    study: Study
    prepared: Prepared
    dense: Score
    pruner: Pruner
    # What of it can be foreseen; where no cost is limited, that of the dense model
    budget: Budget
    whole: bool = False  # no cost is limited, so the whole front is wanted
    # By target, "" the study's own
    predictors: Mapping[str, Predictor] = field(default_factory=dict)
    _known: dict[Any, Score] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session, *, own: bool = False) -> BudgetScaling:
        """Profile the targets whose latency is limited (the study's `own` in any case), or take
        what is kept of it."""
        study = session.study
        session.listener.on_step(0, f"profiling {study.target.name}")
        foreseen = [limit for limit in study.budget.limits if _is_foreseen(limit.quantity)]
        wanted = [
            name
            for name in study.search.objectives
            if name not in ("metric", "loss") and _is_foreseen(name)
        ]
        whole = all(limit.quantity == "metric_drop" for limit in study.budget.limits) and bool(
            wanted
        )
        if whole:
            foreseen = [Limit(wanted[0], 1.0, relative=True)]
        scaling = cls(
            study,
            session.prepared,
            session.dense,
            session.pruner,
            Budget(tuple(foreseen)),
            whole,
        )
        limited = [limit.target for limit in foreseen if limit.quantity in TIMED]
        timed = dict.fromkeys([""] * own + limited)
        seconds = min(
            _PROFILE_S, _PROFILE_SHARE / max(1, len(timed)) * (study.search.timeout_s or math.inf)
        )
        profiled = {
            target: scaling._profile_target(target, session.run, seconds) for target in timed
        }
        known = {
            target: predictor for target, predictor in profiled.items() if predictor is not None
        }
        limits = (
            limit for limit in foreseen if limit.quantity not in TIMED or limit.target in known
        )
        return replace(scaling, budget=Budget(tuple(limits)), predictors=known)

    @property
    def _feasibility(self) -> Feasibility:
        return replace(self.study, budget=self.budget).feasibility(self.dense)

    def shares(self) -> tuple[float, ...]:
        """Of the budget, that proposals are solved for; the first may turn out to lie outside."""
        return _LEVELS if self.whole or not self.budget.limits else _SHARES

    def share(self, draw: str) -> float:
        """Of the budget, that a sample is to spend: all, or where the whole front is wanted one of
        every level."""
        if not self.whole:
            return 1.0
        lowest = 1 + self._feasibility.violation(self.prepared.smallest)
        return random.Random(draw).uniform(min(lowest, 1.0), 1.0)

    def violation(self, plan: Plan) -> float:
        """The worst of used / limit - 1 that is to be expected, at most 0 where the plan keeps the
        budget.

        The limits are taken less a margin, where a figure may come out otherwise than it is
        foreseen.
        """
        margins = {limit.key: _MARGINS.get(limit.quantity, 0.0) for limit in self.budget.limits}
        violations = self.violations(plan).items()
        return max(((1 + used) / (1 - margins[key]) - 1 for key, used in violations), default=-1.0)

    def violations(self, plan: Plan) -> dict[str, float]:
        """What is to be expected of used / limit - 1, by the key of each limit that is foreseen,
        without a margin."""
        keep = self.pruner.resolve(plan).kept
        counted = any(limit.quantity not in TIMED for limit in self.budget.limits)
        score = self._count_costs(plan) if counted else Score()
        elsewhere = {
            target: self._foreseen(target, keep, score.on(target)) for target in self.predictors
        }
        own = elsewhere.pop("", score)
        score = own.evolve(elsewhere={**score.elsewhere, **elsewhere})
        return self._feasibility.violations(score)

    def latency(self, plan: Plan, target: str = "") -> float | None:
        """The ratio to dense that is predicted; None where nothing is known of it, as of zeros on
        sparse kernels."""
        if target not in self.predictors or self._teaches_nothing(plan, target):
            return None
        return self.predictors[target].ratio(self.pruner.resolve(plan).kept)

    def fits(self, plan: Plan, share: float = 1.0) -> bool:
        """Whether a plan is expected to spend at most `share` of the budget, less the margin."""
        return self.violation(plan) <= share - 1

    def fit_to_budget(self, sample: Decisions, share: float = 1.0) -> Decisions:
        """A sample with all ratios scaled by the least factor at which the plan fits; the most if
        none.

        Blocks stay or go as they did, unless there is nothing else to scale.
        """
        cut = [decision for decision in sample.values() if decision.acts and decision.ratio > 0]
        scalable = [decision for decision in cut if not decision.variable.whole] or cut
        if not self.budget.limits or not scalable:
            return sample

        def scaled(factor: float) -> Decisions:
            return sample.evolve(*(decision.at(decision.ratio * factor) for decision in scalable))

        high = max(decision.variable.options.ratio[1] / decision.ratio for decision in scalable)
        low = high / _RANGE
        if self.fits(scaled(high).plan, share):
            for _ in range(_STEPS):
                middle = (low * high) ** 0.5
                enough = self.fits(scaled(middle).plan, share)
                low, high = (low, middle) if enough else (middle, high)
        return scaled(high)

    def observe(self, plan: Plan, score: Score) -> None:
        """Learn from a measured plan, while there is much to learn."""
        keep = self.pruner.resolve(plan).kept
        for target, predictor in self.predictors.items():
            measured = score.on(target)
            if predictor.measured >= _LEARNT or self._teaches_nothing(plan, target):
                continue
            if measured.latency.ms is not None and measured.latency.ratio is not None:
                low, high = (
                    measured.latency.ms_low or measured.latency.ms,
                    measured.latency.ms_high or measured.latency.ms,
                )
                ratios = (
                    measured.latency.ratio,
                    measured.latency.ratio_low,
                    measured.latency.ratio_high,
                )
                predictor.observe(keep, Latency(measured.latency.ms, low, high, *ratios, 1, True))

    def _teaches_nothing(self, plan: Plan, target: str) -> bool:
        """Whether there are zeros that run on sparse kernels, whose latency says nothing of
        widths."""
        masked = bool(self.pruner.resolve(plan).masks)
        return masked and self.prepared.costs.on(target).lowers

    def _count_costs(self, plan: Plan) -> Score:
        """What can be counted of a plan; the same for all that come to the same widths and
        masks."""
        key = self.pruner.resolve(plan).cost_id
        if key not in self._known:
            pruned = self.pruner.apply(plan)
            costs = self.prepared.costs
            further = {
                limit.target
                for limit in self.budget.limits
                if limit.target and limit.quantity not in TIMED
            }
            elsewhere = {target: costs.on(target).score(pruned) for target in further}
            sized = any(
                limit.quantity.startswith("size") and not limit.target
                for limit in self.budget.limits
            )
            self._known[key] = costs.score(pruned, sized=sized).evolve(elsewhere=elsewhere)
        return self._known[key]

    def _foreseen(self, target: str, keep: Mapping[str, Tensor], score: Score) -> Score:
        predictor, batch = self.predictors[target], self.prepared.costs.on(target).target.batch
        ratio = predictor.ratio(keep)
        ms = ratio * (self.dense.on(target).latency.ms or predictor.dense_ms)
        return score.evolve(
            latency=replace(
                score.latency,
                ratio=ratio,
                ratio_high=ratio,
                ms=ms,
                ms_high=ms,
                throughput_low=batch * 1e3 / ms,
            ),
        )

    def _profile_target(self, target: str, run: Run, seconds: float) -> Predictor | None:
        """None where the model has no widths to learn about. What a time limit has cut short is not
        kept."""
        costs, model, coupling = (
            self.prepared.costs.on(target),
            self.prepared.model,
            self.prepared.coupling,
        )
        blocks = costs.leaves_out and any(variable.whole for variable in self.prepared.variables)
        key = costs.architecture + "-blocks" * blocks
        kept = costs.figures.recall("profile", key)
        if costs.figures.recorded and kept is None:
            kept = costs.figures.recall("profiled", key)
        if kept is not None:
            return Predictor.from_json(kept)

        def measure(keep: Mapping[str, Tensor]) -> Latency:
            return costs.time_plan(self.pruner.cut(keep))

        try:
            predictor = Predictor.profile(
                coupling,
                model,
                costs.inputs,
                measure,
                budget_s=seconds,
                plans=_PLANS,
                seed=self.study.search.seed,
                blocks=blocks,
            )
        except ModelError:
            return None
        whole = seconds == _PROFILE_S or predictor.measured == _PLANS
        costs.figures.keep("profile" if whole else "profiled", key, predictor.to_json())
        return predictor
