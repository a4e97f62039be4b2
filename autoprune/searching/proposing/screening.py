"""Screening: hundreds of plans at the edge of the budget, judged untrained; where they come from,
when it is enough.

First the proposals, then the sampler's plans, and, around the best so far, exchange moves; all
scaled to the budget by what is predicted of their cost, all corrected by what is then measured.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

from autoprune.decision import Decisions
from autoprune.plan import Plan
from autoprune.score import Candidate, Score
from autoprune.searching.proposing.budget_scaling import BudgetScaling
from autoprune.searching.proposing.heuristics import (
    by_importance,
    proposals,
    ranked_globally,
    shallower,
    thresholds,
)
from autoprune.searching.proposing.local_search import Fits, exchange, fill, narrow
from autoprune.searching.proposing.loss_model import Surrogate
from autoprune.searching.proposing.nets import Nets
from autoprune.searching.proposing.sensitivity import RATIOS, knapsack, sensitivities
from autoprune.searching.selecting.promotion import best
from autoprune.searching.session import Session

__all__ = ["Screening"]

# Of the trials, before exchange moves begin: until then proposals and samples show the regression
# of losses what matters
_EXPLORED = 0.3
# Trial is the sampler's even then: moves around the best plans alone never leave them
_EVERY = 4
# Best plans that exchange moves start from: the very best may be a local optimum
_PARENTS = 8
# Neighbours looked at, and so many moves away, for each one that is judged: a look is a
# prediction, of milliseconds, and judging takes a second
_CHILDREN, _MOVES = 12, 3
# Of the budget: what a finalist leaves and gets back; what is left of it then
_LEFT, _REST = 0.015, 0.005
# Plans are judged even over the time limit, while none keeps the budget: without one there is
# nothing to train, and the time was for nothing
_VAIN = 10
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
    def scaling(self) -> BudgetScaling:
        """What plans will cost, after a profile of the target, which is kept in the run."""
        return BudgetScaling.of(self.session)

    @functools.cached_property
    def nets(self) -> Nets:
        """Those that were judged."""
        return Nets(self.scaling.pruner)

    def proposals(self) -> list[Plan]:
        """The first plans; a ranking of all units among them and, where trials outnumber
        sensitivities, a knapsack."""
        settings, prepared = self.study.search, self.session.prepared
        if settings.finalists is None:
            return proposals(prepared, self.scaling)

        def ranked(share: float) -> Plan:
            return ranked_globally(prepared, self.scaling, share)

        masked = [*thresholds(prepared, self.scaling), *self._scaled_plans()]
        alone = shallower(self.variables, self.scaling, by_importance(self.variables, self.scaling))
        levels = sum(
            len(variable.options.techniques) * (1 if variable.whole else len(RATIOS))
            for variable in self.variables
        )
        if levels > settings.trials or not self.scaling.budget.limits:
            return proposals(prepared, self.scaling, [ranked, *masked, *alone])
        self.session.listener.on_step(0, f"evaluating {levels} single decisions")
        judge = self.session.evaluator.judge_untrained
        rows = sensitivities(self.session, self.scaling, late=self.late)
        if not rows:
            return proposals(prepared, self.scaling, [ranked, *masked, *alone])
        dense, losses = judge(Plan()), {row.variable: row.loss for row in rows}
        blocks = [
            variable for variable in self.variables if variable.name in losses and variable.whole
        ]
        shallow = shallower(
            self.variables, self.scaling, sorted(blocks, key=lambda block: losses[block.name])
        )

        def solved(share: float) -> Plan:
            return knapsack(self.variables, rows, dense, self.scaling, share)

        return proposals(prepared, self.scaling, [ranked, *masked, solved, *shallow])

    def _scaled_plans(self) -> list[Callable[[float], Plan]]:
        """The plans that were trained for other budgets, their ratios scaled to a share of this
        one."""

        def scaled(plan: Plan, share: float) -> Plan:
            sample = Decisions.of_plan(self.variables, plan)
            return self.scaling.fit_to_budget(sample, share).plan

        best_ones = self.of_other_budgets()[: self.study.search.finalists or 0]
        return [functools.partial(scaled, one.plan) for one in best_ones]

    def scale_sample(self, draw: str) -> Callable[[Decisions], Decisions]:
        """How a sample is moved: scaled to the budget, or where the whole front is wanted to one of
        its levels.

        What leaves so much as it is that it cannot be scaled to the budget loses more, group by
        group; what leaves something of the budget is given units back. What comes to a net that was
        judged already is moved on, to a neighbour that was not.
        """
        share = self.scaling.share(draw)

        def fits(sample: Decisions) -> bool:
            return self.scaling.fits(sample.plan, share)

        def moved(sample: Decisions) -> Decisions:
            scaled = narrow(self.scaling.fit_to_budget(sample, share), fits, draw)
            full = self._fill_up(scaled, fits, draw)
            if full.plan not in self.nets:
                return full
            used = self.scaling.violation(full.plan)
            new = self._new(used if self.scaling.whole else max(used, 0.0))
            return exchange([full], new, draw) or full

        return moved

    def _within(self, allowed: float) -> Fits:
        """Whether decisions come to a net that costs no more than is `allowed`."""
        return lambda child: self.scaling.violation(child.plan) <= allowed

    def _new(self, allowed: float) -> Fits:
        """Whether decisions come to a net that costs no more than is `allowed` and was not judged
        yet."""
        within = self._within(allowed)
        return lambda child: within(child) and child.plan not in self.nets

    def neighbour(
        self, candidates: list[Candidate], given: Callable[[int], Decisions], draw: str
    ) -> Decisions | None:
        """The most promising of some neighbours of the best plans so far, a few moves away.

        None where it is the sampler's turn, or there is none. `given` are the decisions of a trial
        by its number.
        """
        done = sum(candidate.stage == "screened" for candidate in candidates)
        if done < _EXPLORED * self.study.search.trials or done % _EVERY == 0:
            return None
        parents = best(self.study, self.dense, candidates)[:_PARENTS]
        if not parents:
            return None
        allowed = 0.0
        if self.scaling.whole:  # one of the front, at its own level
            parents = [random.Random(draw).choice(parents)]
            allowed = self.scaling.violation(parents[0].plan)
        new = self._new(allowed)
        child = self._promising([given(parent.number) for parent in parents], new, draw)
        if child is None:
            return None
        full = self._fill_up(child, self._within(allowed), draw)
        return full if new(full) else child

    def _fill_up(self, sample: Decisions, fits: Fits, draw: str) -> Decisions:
        """With what is left of the budget given back to units, where anything of it is foreseen."""
        foreseen = self.scaling.budget.limits and fits(sample)
        return fill(sample, fits, draw) if foreseen else sample

    def refill(self, finalist: Decisions, score: Score, draw: str) -> Decisions | None:
        """A finalist with what is left of the budget given back to units; None where none fits any
        more.

        `score` is the finalist's in fresh processes: what is foreseen of its neighbours is
        corrected by it, limit by limit.
        """
        foreseen = self.scaling.violations(finalist.plan)
        real = self.study.feasibility(self.dense).violations(score)
        if self.scaling.whole or not foreseen or max(real.values(), default=0.0) > -_LEFT:
            return None
        off = {
            key: (1 + real[key]) / (1 + used)
            for key, used in foreseen.items()
            if key in real and used > -1
        }

        def fits(child: Decisions) -> bool:
            spent = self.scaling.violations(child.plan)
            return all((1 + used) * off.get(key, 1.0) <= 1 - _REST for key, used in spent.items())

        fuller = (fill(finalist, fits, f"{draw} {attempt}") for attempt in range(_CHILDREN))
        new = self._by_promise([child for child in fuller if child.plan not in self.nets])
        return new[0] if new else None

    def _promising(self, start: list[Decisions], fits: Fits, draw: str) -> Decisions | None:
        """Of neighbours that fit, of the neighbours of the most promising of these, and so on, the
        most promising."""
        if not self.surrogate.ready:
            return exchange(start, fits, draw)
        promising: list[Decisions] = []
        for step in range(_MOVES):
            children = (
                exchange(start, fits, f"{draw} {step} {attempt}") for attempt in range(_CHILDREN)
            )
            promising += [child for child in children if child is not None]
            promising = self._by_promise(promising)
            start = promising[:_PARENTS] or start
        return promising[0] if promising else None

    def _by_promise(self, children: list[Decisions]) -> list[Decisions]:
        """The most promising first."""
        resolve = self.scaling.pruner.resolve
        order = self.surrogate.order([resolve(child.plan).plan for child in children])
        return [children[place] for place in order]

    def learn(self, candidates: list[Candidate]) -> None:
        """Correct what is foreseen of costs and quality by what was measured and judged since."""
        for candidate in candidates:
            if candidate.number not in self._observed:
                self._observed.add(candidate.number)
                self.nets.add(candidate.plan)
                self.scaling.observe(candidate.plan, candidate.score)
                if candidate.stage == "screened" and candidate.score.loss is not None:
                    self.surrogate.observe(
                        self.scaling.pruner.resolve(candidate.plan).plan, candidate.score.loss
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
        if done < patience or self.scaling.whole:
            return False
        screened = [candidate for candidate in candidates if candidate.stage == "screened"]
        order = best(self.study, self.dense, screened)
        return bool(order) and len(screened) - 1 - screened.index(order[0]) >= patience
