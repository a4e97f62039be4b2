"""The trials of a search while it runs: evaluated, told to the journal, kept in the run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace

from optuna.trial import Trial

from autoprune import plugins
from autoprune.plan import Plan
from autoprune.pruning.pruner import Pruned
from autoprune.score import Candidate, Score, by_quality, pareto_front
from autoprune.searching import records
from autoprune.searching.evaluating.evaluator import Evaluated
from autoprune.searching.failures import Failures
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.selecting.finalists import rank_finalists
from autoprune.searching.session import Session

__all__ = ["Trials"]

# Screened trials, between two times that the table is written: it is written whole, and the
# journal, which is the truth, has every one at once
_WRITTEN = 10


class Trials:
    """What both loops of a search share. `told` counts the trials that this process has ended."""

    def __init__(self, session: Session, journal: Journal) -> None:
        """Nothing is told yet."""
        self.session, self.journal, self.run = session, journal, session.run
        self.evaluate, self.study, self.dense = session.evaluator, session.study, session.dense
        self.told, self.failures = 0, Failures(session.run)
        self._executor = plugins.load("executor", self.study.search.executor)()

    def candidates(self) -> list[Candidate]:
        """All that have ended, held against the study's budget."""
        return self.journal.candidates(self.dense)

    def run_one(self, trial: Trial, plan: Plan, evaluate: Callable[[Plan, int], Evaluated]) -> None:
        """Evaluate a trial where the study's executor runs, and tell what came of it."""
        began = time.monotonic()
        try:
            done = self._executor.submit(evaluate, plan, trial.number).result()
            self._keep(done)
        except BaseException as error:
            done = self._fail(plan, trial.number, error)
        else:
            if len(plan):  # the dense model shows nothing
                self.failures.clear()
        self._tell(trial, done, time.monotonic() - began)
        self.failures.check()

    def trained(self, plan: Plan, number: int) -> Evaluated:
        """A plan trained, unless it breaks the budget before or was trained already; the empty one
        is dense."""
        if not len(plan):
            first = self.evaluate.baseline()
            return Evaluated(replace(first.candidate, number=number), first.model)
        score = records.kept_result(self.run, self._key(plan), number)
        if score is not None:
            return self.evaluate.judge_known(plan, number, score)
        return self.evaluate(plan, number, self._shallower(plan))

    def of_other_budgets(self) -> list[Candidate]:
        """What was trained for other budgets and kept, the best quality first."""
        mine = self.journal.numbers()
        other = [
            candidate
            for candidate in self.candidates()
            if candidate.stage == "trained" and candidate.number not in mine
        ]
        return by_quality(records.with_models(self.run, other), self.study.task.metric.goal)

    def _shallower(self, plan: Plan) -> Pruned | None:
        """Of the models trained for other budgets that lost nothing which the plan keeps, the one
        with least left."""
        pruner = self.session.pruner
        wanted = pruner.resolve(plan)
        for candidate in sorted(
            self.of_other_budgets(), key=lambda candidate: candidate.score.nonzero_params or 0
        ):
            if wanted.follows(pruner.resolve(candidate.plan)):
                model = records.kept_model(self.run, candidate.number, pruner.model)
                return replace(pruner.apply(candidate.plan), model=model)
        return None

    def screen(self, plan: Plan, number: int) -> Evaluated:
        """A plan judged untrained, unless it was before."""
        if not len(plan):
            return self.trained(plan, number)
        before = [
            candidate
            for candidate in self.candidates()
            if candidate.stage == "screened" and candidate.plan == plan
        ]
        return (
            Evaluated(replace(before[0], number=number))
            if before
            else self.evaluate.screen(plan, number)
        )

    def write(self, best: Candidate | None = None, final: bool = False) -> list[Candidate]:
        """Write what is derived from the journal; gives the front. Before the end the best is the
        first in rank."""
        candidates = self.candidates()
        front = pareto_front(candidates, self.study.search.objectives, self.study.task.metric.goal)
        chosen = best if final else next(iter(rank_finalists(self.study, candidates)), None)
        front = [
            best if best is not None and candidate.number == best.number else candidate
            for candidate in front
        ]
        records.write_front(self.run, self.study, self.dense, front, chosen)
        groups = self.session.prepared.coupling.groups
        records.write_table(self.run, candidates, self.journal.trials(), groups)
        return front

    def _fail(self, plan: Plan, number: int, error: BaseException) -> Evaluated:
        """What a trial is that raised something: failed, with one line of why."""
        reason = self.failures.add(error, self.run.trial(number))
        self.session.listener.note(f"trial {number} failed: {reason}")
        return Evaluated(Candidate(number, plan, Score(), False, "failed", reason))

    def _keep(self, evaluated: Evaluated) -> None:
        """Keep a trained model that may come onto the front, and what training the plan came to."""
        candidate = evaluated.candidate
        if not candidate.trained:
            return
        goal, model = self.study.task.metric.goal, evaluated.model
        if model is not None and records.worth_keeping(candidate, self.candidates(), goal):
            records.keep_model(self.run, candidate, model, self.session.prepared.model)
        if candidate.stage == "trained":
            records.keep_result(self.run, self._key(candidate.plan), candidate)

    def _tell(self, trial: Trial, evaluated: Evaluated, seconds: float) -> None:
        candidate = evaluated.candidate
        self.journal.tell(trial, candidate, seconds)
        self.told += 1
        if candidate.stage != "screened" or self.told % _WRITTEN == 0:
            self.write()
        self.session.listener.on_trial(
            candidate, next(iter(rank_finalists(self.study, self.candidates())), None)
        )

    def _key(self, plan: Plan) -> str:
        recipe = asdict(self.study.recovery) | {"seed": self.study.search.seed}
        targets: list[object] = [
            target.to_json() for target in (self.study.target, *self.study.further)
        ]
        text = json.dumps([plan.digest, self.study.task.digest(), recipe, *targets], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
