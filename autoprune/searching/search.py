"""The search: a Run asks a Space for Plans, and keeps those whose Score on the Target fits the
Budget."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from autoprune.errors import AutopruneError, BudgetError, InputError, ModelError
from autoprune.exporting.export import Finished, export
from autoprune.exporting.verify import verify_in_fresh_process
from autoprune.group import Group
from autoprune.run import Run
from autoprune.score import Candidate, Score
from autoprune.searching import records
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating import baseline
from autoprune.searching.evaluating.evaluator import Evaluator
from autoprune.searching.evaluating.preparation import (
    Prepared,
    prepare,
    require_reachable,
)
from autoprune.searching.evaluating.probes import Probe, useful
from autoprune.searching.failures import Failures
from autoprune.searching.logbook import Logbook
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.proposing.screening import Screening
from autoprune.searching.selecting.answers import Answer, answers, in_words
from autoprune.searching.selecting.finalists import rank_finalists, settle
from autoprune.searching.selecting.infeasible import nearest_miss, needless
from autoprune.searching.selecting.promotion import best, next_promotion
from autoprune.searching.stall import watch
from autoprune.searching.time_limit import TimeLimit
from autoprune.searching.trials import Trials
from autoprune.space import plan_of
from autoprune.study import Study

__all__ = ["Result", "search", "train_best"]

_MORE = 10  # plans are judged beyond the trials asked for, while none keeps the budget
# Times the finalists that are trained, at most, while none keeps the budget
_ROUNDS = 3
# Plans, at most, in which a finalist gets back what it leaves of the budget
_REFILLS = 3
# Times the finalists that are promoted in one start, at most: of some latency or training is too
# bad
_TRIED = 10


@dataclass(frozen=True)
class Result:
    """What a search found; `best` is None where it was interrupted before a plan met the budget."""

    run: Run
    dense: Score
    front: list[Candidate]
    best: Candidate | None
    groups: tuple[Group, ...]
    interrupted: bool = False
    answers: tuple[Answer, ...] = ()  # the budgets that the run can answer now


def search(study: Study, run: Run, listener: Listener | None = None) -> Result:
    """Search, or go on with the search in `run`; export and verify the best plan inside the budget
    to `run.best`.

    The first KeyboardInterrupt ends the trials, not the run: front and best so far are still
    written. Raises BudgetError where no plan meets the budget, VerificationError where the artefact
    is not what was recorded, InputError, before anything of the run is changed, where the dense
    model keeps the budget already.
    """
    with watch(study, listener) as listener, run.lock():
        run.sweep()
        try:
            return _run_search(study, run, listener)
        except BudgetError as error:
            if not run.best.exists():
                raise
            raise BudgetError(
                f"{error}. {run.best} still holds the artefact of an earlier search"
            ) from error


def train_best(study: Study, run: Run, listener: Listener | None = None) -> Result:
    """Train the best of the plans that `run` has judged, under whichever budget, for
    `study.budget`; judge none anew.

    What it comes to is a trial of the run; the best that keeps the budget is exported and verified
    to `run.best`. Raises BudgetError, with what the run can answer, where no judged plan keeps it;
    InputError where dense does.
    """
    with watch(study, listener) as listener, run.lock():
        run.sweep()
        limit = TimeLimit(study.search.timeout_s)
        log = listener = Logbook(
            listener, run.folder / "log.txt", f"train the best evaluated plan for {study.budget}"
        )
        prepared = _prepare_and_check(study, run, listener)
        dense = baseline.establish(study, prepared, run, listener)
        candidates = Journal.read(study, run, dense)
        if not best(study, dense, candidates):
            judged = in_words(
                [answer for answer in answers(study, dense, candidates) if not answer.trained],
                run.folder,
            )
            raise BudgetError(
                f"no plan that was evaluated in {run.folder} keeps the budget ({study.budget}). "
                f"{judged or 'None was evaluated without fine-tuning'}; search under this budget "
                "evaluates more"
            )
        Run.write_yaml(run.study, dict(study.resolved))
        log.open()
        if study.search.finalists is not None:
            prepared, _ = useful(study, prepared, listener)
        search = _Search(study, run, prepared, limit, listener)
        search.begin(judging=False)
        search.promote(1)
        return search.close(interrupted=False)


def _prepare_and_check(study: Study, run: Run, listener: Listener) -> Prepared:
    """What is known before anything is trained; refuses a budget that no plan can keep, or that
    dense keeps."""
    prepared = prepare(study, run, listener)
    require_reachable(study, prepared)
    if (reason := needless(study, prepared.dense)) is not None:
        raise InputError(reason)
    return prepared


def _run_search(study: Study, run: Run, listener: Listener) -> Result:
    """The straight line: prepare, baseline, trials, finalists, export."""
    limit = TimeLimit(study.search.timeout_s)
    log = listener = Logbook(
        listener, run.folder / "log.txt", f"search {study.name}, {study.budget}"
    )
    prepared = _prepare_and_check(study, run, listener)
    Run.write_yaml(run.study, dict(study.resolved))
    log.open()
    probes: list[Probe] = []
    if study.search.finalists is not None:
        prepared, probes = useful(study, prepared, listener)
    for text in (*(probe.verdict for probe in probes if probe.left), *warnings_of(study, prepared)):
        listener.note(text)
    interrupted = False
    search = _Search(study, run, prepared, limit, listener, probes)
    try:
        search.begin()
        search.loops()
    except KeyboardInterrupt:
        interrupted = True
        if search.dense is None:
            raise
        listener.note(
            "interrupted: writing the front and exporting the best that is trained; once more "
            "stops at once"
        )
    try:
        return search.close(interrupted)
    except KeyboardInterrupt:
        if interrupted:
            raise
        listener.note("interrupted: exporting the best so far; once more stops at once")
        return search.close(interrupted=True)


def warnings_of(study: Study, prepared: Prepared) -> list[str]:
    """What the user should know before the search begins."""
    notes = [note for note in (prepared.coupling.unfollowed, prepared.costs.note) if note]
    decisions = 3 * len(prepared.variables)
    if decisions > study.search.trials and study.space.share is None:
        notes.append(
            f"{decisions} search variables for {study.search.trials} trials: "
            f"`space: {{share: stage}}` makes one decision for all layers of a stage"
        )
    if prepared.dense.uncounted:
        notes.append(
            "FLOPs leave out operators that cannot be counted: "
            f"{', '.join(prepared.dense.uncounted)}"
        )
    return notes


class _Search:
    """The state of one search."""

    def __init__(
        self,
        study: Study,
        run: Run,
        prepared: Prepared,
        limit: TimeLimit,
        listener: Listener,
        probes: Sequence[Probe] = (),
    ) -> None:
        self.study, self.run, self.prepared, self.time, self.listener = (
            study,
            run,
            prepared,
            limit,
            listener,
        )
        self.probes = probes
        self.journal = Journal(study, run, prepared.variables)
        if self.journal.damage is not None:
            listener.note(self.journal.damage)
        self.dense: Score | None = None
        self.tried = 0  # plans promoted since
        self.measured_again: list[Candidate] = []  # finalists that did not keep the budget then

    def begin(self, *, judging: bool = True) -> None:
        """The dense baseline, and the first plans in the queue where any are to be judged."""
        trials, done = self.study.search.trials, self.journal.count_ended()
        trained = baseline.has_baseline(self.study, self.run)
        left = max(
            0,
            trials
            - (done if self.study.search.finalists is None else self.journal.count_finished()),
        )
        left = left if judging else 0
        probes, finalists = (
            len(self.journal.missing_probes(self.probes)),
            self.study.search.finalists or 0,
        )
        whole = self.journal.count_numbered() + probes + left + finalists
        self.time.prepared()
        training = self.prepared.training_s(self.study)
        if (
            shortfall := self.time.shortfall(
                self.prepared.baseline_s(self.study, trained), training
            )
        ) is not None:
            self.listener.note(shortfall)
        if left and finalists:
            beside = f"; {probes} techniques were measured alone" if probes else ""
            self.listener.note(
                f"{left} plans are evaluated without fine-tuning, the best {finalists} are "
                f"trained{beside}"
            )
        self.listener.on_plan(self.prepared.seconds(self.study, left, trained), whole)
        if done:
            self.listener.note(
                f"going on with {self.run.folder}: {done} trials are done{self._replacement_note()}"
            )
        dense = baseline.establish(self.study, self.prepared, self.run, self.listener)
        task = self.study.task.digest()
        pruner = self.prepared.pruner(self.study)
        evaluate = Evaluator(self.study, self.prepared, dense, pruner, self.listener)
        self.dense, self.trials = dense, Trials(evaluate, self.journal, self.run, task)
        if lost := records.damaged_models(self.run, self.trials.candidates()):
            listed = ", ".join(map(str, lost))
            self.listener.note(
                f"damaged since they were kept, and left out: the models of the trials {listed}"
            )
        mark = f"{task}-{self.study.search.seed}"
        others = self.trials.of_other_budgets
        self.screening = Screening(evaluate, self.run, mark, self._late_to_judge, others)
        self.journal.start(self.screening.proposals if judging else None, dense, self.probes)

    def _replacement_note(self) -> str:
        """What of an earlier search this one may replace, and where its own results go."""
        if self.run.part:
            return (
                f"; what this budget comes to goes to {self.run.results}, the rest stays as it is"
            )
        return (
            f"; {self.run.best} is replaced where a better plan is found"
            if self.run.best.exists()
            else ""
        )

    def loops(self) -> None:
        """Judge plans until trials or time are used up: trained; or untrained, and then the best
        are trained."""
        count = self.study.search.finalists
        if count is None:
            self._train_all()
        else:
            self._screen()
            self.promote(count)

    def _train_all(self) -> None:
        while (done := self.journal.count_finished()) < self.study.search.trials:
            if done and self.time.over():
                self.listener.note(f"the time limit is reached after {done} trials")
                return
            self.trials.run_one(*self.journal.ask(), self.trials.trained)

    def _screen(self) -> None:
        """Plans that wait, neighbours of the best ones and the sampler's, scaled to the budget;
        untrained."""
        trials = self.study.search.trials
        while (done := self.journal.count_finished()) < trials + _MORE:
            candidates = self.trials.candidates()
            if done >= trials and self.screening.fitting(candidates):
                return
            if self._late_to_judge() and self.screening.has_begun(candidates):
                self.listener.note(
                    f"{done} plans are evaluated: what is left of the time limit is for training"
                )
                return
            if self.screening.enough(candidates, done):
                self.listener.note(
                    f"no better plan was found for long: {done} are evaluated, now the best are "
                    "trained"
                )
                return
            if self.journal.waits():
                trial, plan = self.journal.ask()
            else:
                self.screening.learn(candidates)
                draw = self.journal.draw()
                child = self.screening.neighbour(candidates, self.journal.parameters, draw)
                trial, plan = self.journal.ask(child, steer=self.screening.scale_sample(draw))
            self.trials.run_one(trial, plan, self.trials.screen)

    def promote(self, count: int) -> None:
        """Train the best `count` of those judged untrained; more, while none keeps the budget.

        At most three times the finalists are trained. With the time over, none beyond the finalists
        is tried.
        """
        finalists = self.study.search.finalists
        assert self.dense is not None and finalists is not None
        most, count = finalists * _ROUNDS, min(count, finalists * _ROUNDS)
        while True:
            candidates = self.trials.candidates()
            chosen = next_promotion(
                self.study,
                self.dense,
                candidates,
                self.journal.promotions(),
                count,
                self.journal.refills(),
            )
            if chosen is None:
                if rank_finalists(self.study, candidates) or count >= most:
                    return
                count += 1
                continue
            trained = any(candidate.stage == "trained" for candidate in candidates)
            if self.time.over() and (trained or self.tried >= finalists):
                self.listener.note(
                    "the time limit is reached before all of the best plans were trained"
                )
                return
            if self.tried >= finalists * _TRIED:
                self.listener.note(f"{self.tried} of the best plans were tried; no more are")
                return
            if self._refill(chosen):
                continue
            self.tried += 1
            self.trials.run_one(self.journal.promote(chosen), chosen.plan, self.trials.trained)

    def _refill(self, finalist: Candidate) -> bool:
        """Whether a finalist was judged again with what it leaves of the budget, in fresh
        processes, given back.

        A few times: what is given back differs, and which of it is worth most is seen only then.
        """
        refills = self.journal.refills()
        tried = len(refills.get(finalist.number, ()))
        if (
            self.time.over()
            or tried == _REFILLS
            or any(finalist.number in fuller for fuller in refills.values())
        ):
            return False
        given = self.journal.parameters(finalist.number)
        # It has what is no longer searched
        if plan_of(self.prepared.variables, given) != finalist.plan:
            return False
        score = self.trials.evaluate.finalist(finalist.plan, finalist.number)
        self.screening.learn(self.trials.candidates())
        fuller = self.screening.refill(given, finalist.plan, score, self.journal.draw())
        if fuller is None:
            return False
        self.trials.run_one(*self.journal.refill(finalist, fuller), self.trials.screen)
        return True

    def _late_to_judge(self) -> bool:
        """Whether what is left of the time limit is for training."""
        return self.time.over_for_judging(
            self.prepared.training_s(self.study), self.study.search.finalists or 0
        )

    def close(self, interrupted: bool) -> Result:
        """Measure the finalists again, export and verify the best, unless an earlier start has done
        it."""
        assert self.dense is not None
        candidates = self.trials.candidates()
        best = None if self.trials.told else records.exported_best(self.run, self.study, candidates)
        if best is None:
            best = self._choose_and_export(interrupted)
        front = self.trials.write(best, final=True)
        again = [*self.measured_again, *([best] if best is not None else [])]
        kept = _with(records.answering(self.run, self.trials.candidates()), again)
        known = tuple(answers(self.study, self.dense, kept))
        return Result(
            self.run, self.dense, front, best, self.prepared.coupling.groups, interrupted, known
        )

    def _choose_and_export(self, interrupted: bool) -> Candidate | None:
        """The best, exported; where that fails the next takes its place, and with none left the
        error is raised."""
        assert self.dense is not None
        out: set[int] = set()  # of the choice
        failures = Failures(self.run)
        failed: AutopruneError | None = None
        while True:
            best, judged = self._settle_best(interrupted, out)
            self.measured_again += [
                candidate for candidate in judged if not candidate.feasible and candidate.trained
            ]
            self.trials.write(best, final=True)
            if best is None:
                break
            try:
                return self._export(best)
            except BaseException as error:
                reason = failures.add(error, self.run.trial(best.number))
                failed = error if isinstance(error, AutopruneError) else ModelError(reason)
            self.listener.note(f"trial {best.number} cannot be exported: {reason}")
            out |= {
                best.number,
                *(candidate.number for candidate in judged if not candidate.feasible),
            }
            failures.check()
        if failed is not None:
            raise failed
        if not interrupted:
            seen = _with(self.trials.candidates(), judged)
            raise BudgetError(nearest_miss(self.study, self.dense, seen, self.run.folder))
        self.listener.note(
            "no plan that keeps the budget is trained yet: nothing to export; go on to get one"
        )
        return None

    def _settle_best(
        self, interrupted: bool, out: Set[int]
    ) -> tuple[Candidate | None, list[Candidate]]:
        """The best that keeps the budget when measured again; where none does, others are trained
        in their place.

        `out` are the numbers of those that are not to be chosen.
        """
        assert self.dense is not None
        count, judged = self.study.search.finalists, list[Candidate]()
        for extra in range(1, _ROUNDS + 1):
            seen, told = {*out, *(candidate.number for candidate in judged)}, self.trials.told
            kept = records.with_models(self.run, self.trials.candidates())
            fresh = [candidate for candidate in kept if candidate.number not in seen]
            best, found = settle(
                self.study, self.prepared, self.dense, self.run, fresh, self.listener
            )
            judged += found
            if best is not None or interrupted or count is None or extra == _ROUNDS:
                return best, judged
            self.promote(count * (extra + 1))
            if self.trials.told == told:
                break
        return None, judged

    def _export(self, best: Candidate) -> Candidate:
        assert self.dense is not None
        self.listener.on_step(
            0, "exporting and verifying the best, which takes about half a minute"
        )
        model = records.kept_model(self.run, best.number, self.prepared.model)
        done = Finished(best.plan, model, self.prepared.model, best.score, self.dense, best.number)
        score = export(self.study, done, self.run.best)
        verify_in_fresh_process(self.run.best, self.study.task)
        return replace(best, score=score)


def _with(candidates: Sequence[Candidate], judged: Sequence[Candidate]) -> list[Candidate]:
    known = {candidate.number: candidate for candidate in judged}
    return [known.get(candidate.number, candidate) for candidate in candidates]
