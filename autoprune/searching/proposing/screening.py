"""Screening: hundreds of plans at the edge of the budget, judged untrained; where they come from,
when it is enough.

First the proposals, then the sampler's plans, and, around the best so far, exchange moves; all
scaled to the budget by what is predicted of their cost, all corrected by what is then measured.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from typing import Any

from autoprune.plan import Plan
from autoprune.score import Candidate, Score
from autoprune.searching.proposing.budget_scaling import Steering
from autoprune.searching.proposing.heuristics import (
    by_importance,
    proposals,
    ranked_globally,
    shallower,
    thresholds,
)
from autoprune.searching.proposing.local_search import exchange, fill, narrow
from autoprune.searching.proposing.loss_model import Surrogate
from autoprune.searching.proposing.nets import Nets
from autoprune.searching.proposing.sensitivity import RATIOS, knapsack, sensitivities
from autoprune.searching.selecting.promotion import best
from autoprune.searching.session import Session
from autoprune.space import parameters, plan_of

__all__ = ["Screening"]

_EXPLORED = 0.3  # of the trials, before exchange moves begin
_EVERY = 4  # trial is the sampler's even then
_PARENTS = 8  # best plans that exchange moves start from
# Neighbours looked at, and so many moves away, for each one that is judged
_CHILDREN, _MOVES = 12, 3
# Of the budget: what a finalist leaves and gets back; what is left of it then
_LEFT, _REST = 0.015, 0.005
_VAIN = 10  # plans are judged even over the time limit, while none keeps the budget
# Trials without a better plan, at least, and their share, before it stops by itself
_PATIENCE, _IDLE = 60, 0.5


class Screening:
    """Which plans are judged untrained next."""

    def __init__(
        self,
        session: Session,
        late: Callable[[], bool],
        of_other_budgets: Callable[[], list[Candidate]] = list,
    ) -> None:
        """Nothing is measured before it is needed. `late()`: whether the time is over.

        `of_other_budgets()`: what was trained for them, the best first; scaled to this one it is
        among the first plans.
        """
        self.session, self.late, self.of_other_budgets = session, late, of_other_budgets
        self.study, self.dense = session.study, session.dense
        self.variables = session.prepared.variables
        self.surrogate = Surrogate(self.variables)
        self._observed: set[int] = set()

    @functools.cached_property
    def steering(self) -> Steering:
        """What plans will cost, after a profile of the target, which is kept in the run."""
        return Steering.of(self.session)

    @functools.cached_property
    def nets(self) -> Nets:
        """Those that were judged."""
        return Nets(self.steering.pruner)

    def proposals(self) -> list[Plan]:
        """The first plans; a ranking of all units among them and, where trials outnumber
        sensitivities, a knapsack."""
        settings, prepared = self.study.search, self.session.prepared
        if settings.finalists is None:
            return proposals(prepared, self.steering)

        def ranked(share: float) -> Plan:
            return ranked_globally(prepared, self.steering, share)

        masked = [*thresholds(prepared, self.steering), *self._scaled_plans()]
        alone = shallower(
            self.variables, self.steering, by_importance(self.variables, self.steering)
        )
        levels = sum(
            len(variable.options.techniques) * (1 if variable.whole else len(RATIOS))
            for variable in self.variables
        )
        if levels > settings.trials or not self.steering.budget.limits:
            return proposals(prepared, self.steering, [ranked, *masked, *alone])
        self.session.listener.on_step(0, f"evaluating {levels} single decisions")
        judge = self.session.evaluator.judge_untrained
        rows = sensitivities(self.session, self.steering, late=self.late)
        if not rows:
            return proposals(prepared, self.steering, [ranked, *masked, *alone])
        dense, losses = judge(Plan()), {row.variable: row.loss for row in rows}
        blocks = [
            variable for variable in self.variables if variable.name in losses and variable.whole
        ]
        shallow = shallower(
            self.variables, self.steering, sorted(blocks, key=lambda block: losses[block.name])
        )

        def solved(share: float) -> Plan:
            return knapsack(self.variables, rows, dense, self.steering, share)

        return proposals(prepared, self.steering, [ranked, *masked, solved, *shallow])

    def _scaled_plans(self) -> list[Callable[[float], Plan]]:
        """The plans that were trained for other budgets, their ratios scaled to a share of this
        one."""

        def scaled(plan: Plan, share: float) -> Plan:
            return plan_of(
                self.variables, self.steering.fit_to_budget(parameters(self.variables, plan), share)
            )

        best_ones = self.of_other_budgets()[: self.study.search.finalists or 0]
        return [functools.partial(scaled, one.plan) for one in best_ones]

    def scale_sample(self, draw: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """How a sample is moved: scaled to the budget, or where the whole front is wanted to one of
        its levels.

        What leaves so much as it is that it cannot be scaled to the budget loses more, group by
        group; what leaves something of the budget is given units back. What comes to a net that was
        judged already is moved on, to a neighbour that was not.
        """
        share = self.steering.share(draw)

        def fits(sample: Mapping[str, Any]) -> bool:
            return self.steering.fits(plan_of(self.variables, sample), share)

        def moved(sample: Mapping[str, Any]) -> dict[str, Any]:
            found = narrow(self.variables, self.steering.fit_to_budget(sample, share), fits, draw)
            found = self._fill_up(found, fits, draw)
            plan = plan_of(self.variables, found)
            if plan not in self.nets:
                return found
            used = self.steering.violation(plan)
            new = self._new(used if self.steering.whole else max(used, 0.0))
            return exchange(self.variables, [found], new, draw) or found

        return moved

    def _within(self, allowed: float) -> Callable[[Mapping[str, Any]], bool]:
        """Whether parameters come to a net that costs no more than is `allowed`."""
        return lambda child: self.steering.violation(plan_of(self.variables, child)) <= allowed

    def _new(self, allowed: float) -> Callable[[Mapping[str, Any]], bool]:
        """Whether parameters come to a net that costs no more than is `allowed` and was not judged
        yet."""
        within = self._within(allowed)
        return lambda child: within(child) and plan_of(self.variables, child) not in self.nets

    def neighbour(
        self, candidates: list[Candidate], given: Callable[[int], dict[str, Any]], draw: str
    ) -> dict[str, Any] | None:
        """Parameters of the most promising of some neighbours of the best plans so far, a few moves
        away.

        None where it is the sampler's turn, or there is none. `given` are the parameters of a trial
        by its number.
        """
        done = sum(candidate.stage == "screened" for candidate in candidates)
        if done < _EXPLORED * self.study.search.trials or done % _EVERY == 0:
            return None
        parents = best(self.study, self.dense, candidates)[:_PARENTS]
        if not parents:
            return None
        allowed = 0.0
        if self.steering.whole:  # one of the front, at its own level
            parents = [random.Random(draw).choice(parents)]
            allowed = self.steering.violation(parents[0].plan)
        new = self._new(allowed)
        found = self._promising([given(parent.number) for parent in parents], new, draw)
        if found is None:
            return None
        full = self._fill_up(found, self._within(allowed), draw)
        return full if new(full) else found

    def _fill_up(
        self, given: dict[str, Any], fits: Callable[[Mapping[str, Any]], bool], draw: str
    ) -> dict[str, Any]:
        """With what is left of the budget given back to units, where anything of it is foreseen."""
        return (
            fill(self.variables, given, fits, draw)
            if self.steering.budget.limits and fits(given)
            else given
        )

    def refill(
        self, given: dict[str, Any], plan: Plan, score: Score, draw: str
    ) -> dict[str, Any] | None:
        """A finalist's parameters with what is left of the budget given back to units; None where
        none fits any more.

        `score` is the finalist's in fresh processes: what is foreseen of its neighbours is
        corrected by it, limit by limit.
        """
        foreseen = self.steering.violations(plan)
        real = self.study.feasibility(self.dense).violations(score)
        if self.steering.whole or not foreseen or max(real.values(), default=0.0) > -_LEFT:
            return None
        off = {
            key: (1 + real[key]) / (1 + used)
            for key, used in foreseen.items()
            if key in real and used > -1
        }

        def fits(child: Mapping[str, Any]) -> bool:
            spent = self.steering.violations(plan_of(self.variables, child))
            return all((1 + used) * off.get(key, 1.0) <= 1 - _REST for key, used in spent.items())

        fuller = (
            fill(self.variables, given, fits, f"{draw} {attempt}") for attempt in range(_CHILDREN)
        )
        new = [child for child in fuller if plan_of(self.variables, child) not in self.nets]
        order = self.surrogate.order(
            [self.steering.pruner.resolve(plan_of(self.variables, child)).plan for child in new]
        )
        return new[order[0]] if new else None

    def _promising(
        self, start: list[dict[str, Any]], fits: Callable[[Mapping[str, Any]], bool], draw: str
    ) -> dict[str, Any] | None:
        """Of neighbours that fit, of the neighbours of the most promising of these, and so on, the
        most promising."""
        if not self.surrogate.ready:
            return exchange(self.variables, start, fits, draw)
        found: list[dict[str, Any]] = []
        for step in range(_MOVES):
            children = (
                exchange(self.variables, start, fits, f"{draw} {step} {attempt}")
                for attempt in range(_CHILDREN)
            )
            found += [child for child in children if child is not None]
            order = self.surrogate.order(
                [
                    self.steering.pruner.resolve(plan_of(self.variables, child)).plan
                    for child in found
                ]
            )
            found = [found[place] for place in order]
            start = found[:_PARENTS] or start
        return found[0] if found else None

    def learn(self, candidates: list[Candidate]) -> None:
        """Correct what is foreseen of costs and quality by what was measured and judged since."""
        for candidate in candidates:
            if candidate.number not in self._observed:
                self._observed.add(candidate.number)
                self.nets.add(candidate.plan)
                self.steering.observe(candidate.plan, candidate.score)
                if candidate.stage == "screened" and candidate.score.loss is not None:
                    self.surrogate.observe(
                        self.steering.pruner.resolve(candidate.plan).plan, candidate.score.loss
                    )

    def fitting(self, candidates: list[Candidate]) -> bool:
        """Whether there is a plan to train."""
        return bool(best(self.study, self.dense, candidates))

    def has_begun(self, candidates: list[Candidate]) -> bool:
        """Whether there is a plan to train, or a fair number were judged in vain."""
        return len(candidates) > _VAIN or self.fitting(candidates)

    def enough(self, candidates: list[Candidate], done: int) -> bool:
        """Whether no plan inside the budget has been the best yet, untrained, for half of all
        trials (60 at least).

        `done` trials count for this budget. Where the whole front is wanted there is no one best
        plan.
        """
        patience = max(_PATIENCE, round(_IDLE * self.study.search.trials))
        if done < patience or self.steering.whole:
            return False
        screened = [candidate for candidate in candidates if candidate.stage == "screened"]
        found = best(self.study, self.dense, screened)
        return bool(found) and len(screened) - 1 - screened.index(found[0]) >= patience
