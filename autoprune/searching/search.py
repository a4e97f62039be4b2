"""The search: a Run asks a Space for Plans, and keeps those whose Score on the Target fits the Budget."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

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
from autoprune.searching.preparation import Prepared, importance, prepare, require_reachable
from autoprune.searching.proposals import proposals
from autoprune.searching.study import Journal
from autoprune.study import Study
from autoprune.target import Budget

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
        self.journal.start(lambda: [Plan()] if self._suffices(dense) else proposals(self.study, self.prepared), dense)
        self.dense = dense

    def _suffices(self, dense: Score) -> bool:
        limited = {limit.quantity for limit in self.study.budget.limits}
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
        """Ask, evaluate, tell, until the trials or the time are used up."""
        settings = self.study.search
        executor = plugins.load("executor", settings.executor)()
        while self.journal.finished() < settings.trials:
            late = settings.timeout_s is not None and time.monotonic() - self.started > settings.timeout_s
            if late and self.journal.finished():
                self.listener.note(f"the time limit is reached after {self.journal.finished()} trials")
                break
            began = time.monotonic()
            trial, plan = self.journal.ask()
            self._tell(trial, executor.submit(self._evaluated, plan, trial.number).result(), time.monotonic() - began)

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


def nearest_miss(study: Study, budget: Budget, dense: Score, candidates: Sequence[Candidate]) -> str:
    """Why no plan meets the budget: how near the best came, and which budget was reachable."""
    goal = study.task.metric.goal
    by_distance = [
        (max(budget.violations(each.score, dense, goal).values(), default=0.0), each)
        for each in candidates
        if each.stage != "failed"
    ]
    if not by_distance:
        return f"no plan was tried to the end, so none meets the budget ({budget})"
    nearest = min(by_distance, key=lambda pair: (pair[0], pair[1].number))[1]
    reached = "; ".join(budget.broken(nearest.score, dense, goal)) or "its model was not kept"
    failed = [each for each in candidates if each.stage == "failed"]
    broke = (
        f"{len(failed)} trials broke down in training (trial {failed[0].number}: {failed[0].reason}). "
        if failed
        else ""
    )
    return (
        f"no plan meets the budget ({budget}). The nearest was trial {nearest.number}: {reached}. "
        f"Reachable was {_reachable(study, dense, candidates, budget)}. {broke}"
        f"Give a budget like that, more trials, or a wider space.default.ratio"
    )


def _reachable(study: Study, dense: Score, candidates: Sequence[Candidate], budget: Budget) -> str:
    """The limits, in the budget's own quantities and units, that the trained trial nearest to it keeps."""
    goal = study.task.metric.goal
    trained = [each for each in candidates if each.trained]
    nearest = min(
        trained, key=lambda each: max(budget.violations(each.score, dense, goal).values(), default=0.0), default=None
    )
    if nearest is None:
        return "nothing: no trial was trained to the end"
    limits = []
    for limit in budget.limits:
        used = limit.used(nearest.score, dense, goal)
        if used is not None:
            up = 10.0 ** (math.floor(math.log10(abs(used))) - 2) if used else 1.0
            least, most = min(limit.value, math.floor(used / up) * up), max(limit.value, math.ceil(used / up) * up)
            limits.append(replace(limit, value=least if limit.lower else most))
    reached = ", ".join(f"{limit.key}={limit}" for limit in limits)
    return f"{reached} (trial {nearest.number}, {study.task.metric.name} {nearest.score.metric:.4g})"
