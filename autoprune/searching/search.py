"""The search: a Run asks a Space for Plans, and keeps those whose Score on the Target fits the Budget."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from optuna.trial import Trial

from autoprune import plugins
from autoprune.errors import BudgetError
from autoprune.exporting.export import Finished, export
from autoprune.exporting.verify import verify_in_fresh_process
from autoprune.group import Group
from autoprune.plan import Plan
from autoprune.run import Run
from autoprune.score import Candidate, Score, pareto_front
from autoprune.searching import baseline, records
from autoprune.searching.evaluate import Evaluated, Evaluator
from autoprune.searching.finalists import ranked, settle
from autoprune.searching.listener import Listener, Quiet
from autoprune.searching.misses import nearest_miss
from autoprune.searching.preparation import Prepared, importance, prepare, require_reachable
from autoprune.searching.probes import useful
from autoprune.searching.promotion import promoted
from autoprune.searching.screening import Screening
from autoprune.searching.study import Journal
from autoprune.study import Study

__all__ = ["Result", "search"]


@dataclass(frozen=True)
class Result:
    """What a search found; `best` is None where it was interrupted before a plan met the budget."""

    run: Run
    dense: Score
    front: list[Candidate]
    best: Candidate | None
    groups: tuple[Group, ...]
    interrupted: bool = False


def search(study: Study, run: Run, listener: Listener | None = None) -> Result:
    """Search, or go on with the search in `run`; export and verify the best plan inside the budget to `run.best`.

    The first KeyboardInterrupt ends the trials, not the run: front and best so far are still written.
    Raises BudgetError where no plan meets the budget, VerificationError where the artefact is not what was recorded.
    """
    listener = listener or Quiet()
    with run.locked():
        run.sweep()
        try:
            return _searched(study, run, listener)
        except BudgetError as error:
            if not run.best.exists():
                raise
            raise BudgetError(f"{error}. {run.best} still holds the artefact of an earlier budget") from error


def _searched(study: Study, run: Run, listener: Listener) -> Result:
    """The straight line: prepare, baseline, trials, finalists, export."""
    prepared = prepare(study, run)
    for text in warnings_of(study, prepared):
        listener.note(text)
    require_reachable(study, prepared, study.budget)
    if study.search.finalists is not None:
        prepared, idle = useful(study, prepared)
        for text in idle:
            listener.note(text)
    interrupted = False
    search = _Search(study, run, prepared, listener)
    try:
        search.begin()
        if not search.dense_suffices():
            search.trials()
    except KeyboardInterrupt:
        interrupted = True
        if search.dense is None:
            raise
        listener.note("interrupted: writing the front and exporting the best so far; once more stops at once")
    try:
        return search.close(interrupted)
    except KeyboardInterrupt:
        if interrupted:
            raise
        listener.note("interrupted: exporting the best so far; once more stops at once")
        return search.close(interrupted=True)


def warnings_of(study: Study, prepared: Prepared) -> list[str]:
    """What the user should know before the search begins."""
    notes = [prepared.costs.note] if prepared.costs.note else []
    decisions = 3 * len(prepared.variables)
    if decisions > study.search.trials and study.space.share is None:
        notes.append(
            f"{decisions} search variables for {study.search.trials} trials: "
            f"`space: {{share: stage}}` makes one decision for all layers of a stage"
        )
    if prepared.dense.uncounted:
        notes.append(f"FLOPs leave out operators that cannot be counted: {', '.join(prepared.dense.uncounted)}")
    return notes


class _Search:
    """The state of one search."""

    def __init__(self, study: Study, run: Run, prepared: Prepared, listener: Listener) -> None:
        self.study, self.run, self.prepared, self.listener = study, run, prepared, listener
        self.journal = Journal(study, run, prepared.variables)
        self.dense: Score | None = None
        self.objectives = study.search.objectives
        self.started = time.monotonic()
        self.told = 0  # trials, by this process

    def begin(self) -> None:
        """The dense baseline, and the first plans in the queue."""
        trials, done = self.study.search.trials, self.journal.known()
        trained = baseline.kept(self.study, self.run)
        self.listener.planned(self.prepared.seconds(self.study, trials - done, trained), trials)
        if done:
            self.listener.note(f"going on with {self.run.folder}: {done} trials are done")
        dense = baseline.establish(self.study, self.prepared, self.run, self.listener)
        self.task = self.study.task.digest()
        scores = importance(self.study, self.prepared.model, self.prepared.coupling)
        self.evaluate = Evaluator(self.study, self.prepared, dense, scores, self.listener)
        self.dense = dense
        self.screening = Screening(self.evaluate, self.run, f"{self.task}-{self.study.search.seed}")
        self.journal.start(lambda: [Plan()] if self._suffices(dense) else self.screening.proposals(), dense)

    def _suffices(self, dense: Score) -> bool:
        limited = {limit.quantity for limit in self.study.budget.limits}
        if limited <= {"metric_drop"} and set(self.objectives) - {"metric", "loss"}:
            return False  # no cost is limited, but one is to be made better
        return not self.study.budget.broken(dense, dense, self.study.task.metric.goal) and not limited & set(
            self.objectives
        )

    def dense_suffices(self) -> bool:
        """Whether the dense model keeps the budget already, and nothing that is limited is to be made better still."""
        assert self.dense is not None
        if not self._suffices(self.dense):
            return False
        self.listener.note(
            f"the dense model keeps the budget already ({self.study.budget}); there is nothing to search. "
            f"Name a quantity among search.objectives to make it better still"
        )
        while not any(each.stage == "dense" for each in self._candidates()):
            trial, plan = self.journal.ask()
            self._tell(trial, self._evaluated(plan, trial.number), 0.0)
        return True

    def trials(self) -> None:
        """Judge plans until trials or time are used up: trained; or untrained, and then the best are trained."""
        count = self.study.search.finalists
        if count is None:
            self._repeat(self.journal.ask, self._evaluated)
        else:
            self._repeat(self._next, self._screened, reserve_s=self._training_s(count))
            self._promote(count)

    def _repeat(
        self,
        ask: Callable[[], tuple[Trial, Plan]],
        evaluate: Callable[[Plan, int], Evaluated],
        reserve_s: float = 0.0,
    ) -> None:
        settings = self.study.search
        executor = plugins.load("executor", settings.executor)()
        while (done := self.journal.finished()) < settings.trials:
            if self._late(reserve_s) and (
                done if settings.finalists is None else self.screening.started(self._candidates())
            ):
                self.listener.note(f"the time limit is reached after {done} trials")
                break
            if settings.finalists is not None and self.screening.enough(self._candidates()):
                self.listener.note(f"no better plan was found for long: the search stops after {done} trials")
                break
            began = time.monotonic()
            trial, plan = ask()
            self._tell(trial, executor.submit(evaluate, plan, trial.number).result(), time.monotonic() - began)

    def _next(self) -> tuple[Trial, Plan]:
        """A plan that waits, else a neighbour of the best ones or the sampler's, scaled to the budget."""
        if self.journal.waits():
            return self.journal.ask()
        candidates = self._candidates()
        self.screening.learn(candidates)
        draw = self.journal.draw()
        return self.journal.ask(self.screening.neighbour(candidates, draw), steer=self.screening.steered(draw))

    def _screened(self, plan: Plan, number: int) -> Evaluated:
        return self.evaluate.screen(plan, number) if len(plan) else self._evaluated(plan, number)

    def _promote(self, count: int) -> None:
        """Train the best `count` of the plans that were judged untrained."""
        assert self.dense is not None
        while chosen := promoted(self.study, self.dense, self._candidates(), self.journal.promoted(), count):
            if self._late() and any(each.stage == "trained" for each in self._candidates()):
                self.listener.note("the time limit is reached before all of the best plans were trained")
                return
            began = time.monotonic()
            trial, plan = self.journal.ask(chosen.plan, promotes=chosen.number)
            self._tell(trial, self._evaluated(plan, trial.number), time.monotonic() - began)

    def _late(self, reserve_s: float = 0.0) -> bool:
        limit = self.study.search.timeout_s
        return limit is not None and time.monotonic() - self.started + reserve_s > limit

    def _training_s(self, count: int) -> float:
        """What training the best may take, at most."""
        distilled = 1.3 if self.study.recovery.distill else 1.0
        return count * self.prepared.epoch_s * self.study.recovery.epochs * distilled

    def _evaluated(self, plan: Plan, number: int) -> Evaluated:
        if not len(plan):
            first = self.evaluate.baseline()
            return Evaluated(
                Candidate(
                    number, plan, first.candidate.score, first.candidate.feasible, "dense", first.candidate.reason
                ),
                first.model,
            )
        score = records.kept_result(self.run, self._key(plan), number)
        return self.evaluate(plan, number) if score is None else self.evaluate.known(plan, number, score)

    def _tell(self, trial: Trial, evaluated: Evaluated, seconds: float) -> None:
        assert self.dense is not None
        candidate = evaluated.candidate
        before = self.journal.candidates(self.dense)
        if candidate.trained:
            if evaluated.model is not None and records.worth_keeping(candidate, before, self.study.task.metric.goal):
                records.keep_model(self.run, candidate, evaluated.model, self.prepared.model)
            if candidate.stage == "trained":
                records.keep_result(self.run, self._key(candidate.plan), candidate)
        self.journal.tell(trial, candidate, seconds)
        self.told += 1
        self._write()
        self.listener.finished(candidate, next(iter(ranked(self.study, self._candidates())), None))

    def close(self, interrupted: bool) -> Result:
        """Measure the finalists again, export and verify the best, unless an earlier start has done it."""
        assert self.dense is not None
        candidates = self._candidates()
        best = None if self.told else records.exported(self.run, self.study, candidates)
        if best is None:
            kept = [each for each in candidates if (self.run.trial(each.number) / "score.json").exists()]
            best, judged = settle(self.study, self.prepared, self.dense, self.run, kept, self.listener)
            self._write(best, final=True)
            if best is not None:
                best = self._export(best)
            elif not interrupted:
                raise BudgetError(nearest_miss(self.study, self.study.budget, self.dense, _with(candidates, judged)))
        front = self._write(best, final=True)
        return Result(self.run, self.dense, front, best, self.prepared.coupling.groups, interrupted)

    def _export(self, best: Candidate) -> Candidate:
        assert self.dense is not None
        self.listener.started(best.number, "exporting and verifying")
        model = records.kept_model(self.run, best.number, self.prepared.model)
        done = Finished(best.plan, model, self.prepared.model, best.score, self.dense, best.number)
        score = export(self.study, done, self.run.best)
        verify_in_fresh_process(self.run.best, self.study.task)
        return Candidate(best.number, best.plan, score, best.feasible, best.stage, best.reason)

    def _candidates(self) -> list[Candidate]:
        assert self.dense is not None
        return self.journal.candidates(self.dense)

    def _write(self, best: Candidate | None = None, final: bool = False) -> list[Candidate]:
        """Write what is derived from the journal; gives the front. Before the end the best is the first in rank."""
        assert self.dense is not None
        candidates = self._candidates()
        front = pareto_front(candidates, self.objectives, self.study.task.metric.goal)
        chosen = best if final else next(iter(ranked(self.study, candidates)), None)
        front = [best if best is not None and each.number == best.number else each for each in front]
        records.write_front(self.run, self.study, self.dense, front, chosen)
        records.write_table(self.run, candidates, self.journal.trials())
        return front

    def _key(self, plan: Plan) -> str:
        recipe = asdict(self.study.recovery) | {"seed": self.study.search.seed}
        targets = [target.to_json() for target in (self.study.target, *self.study.further)]
        text = json.dumps([plan.digest, self.task, recipe, *targets], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with(candidates: Sequence[Candidate], judged: Sequence[Candidate]) -> list[Candidate]:
    known = {each.number: each for each in judged}
    return [known.get(each.number, each) for each in candidates]
