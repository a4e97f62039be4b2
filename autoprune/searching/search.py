"""The search: a Run asks a Space for Plans, and keeps those whose Score on the Target fits the
Budget."""

from __future__ import annotations

from dataclasses import dataclass

from autoprune.errors import BudgetError, InputError
from autoprune.group import Group
from autoprune.run import Run
from autoprune.score import Candidate, Score
from autoprune.searching import records
from autoprune.searching.announcement import announce, warnings_of
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating import baseline
from autoprune.searching.evaluating.preparation import (
    Prepared,
    prepare,
    require_reachable,
)
from autoprune.searching.evaluating.probes import Probe, probe_techniques
from autoprune.searching.logbook import Logbook
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.selecting.answers import Answer, answers, in_words
from autoprune.searching.selecting.infeasible import needless
from autoprune.searching.selecting.promotion import best
from autoprune.searching.session import Session, hold
from autoprune.searching.stages import Stages
from autoprune.searching.time_limit import TimeLimit
from autoprune.searching.winner import Winner, with_figures
from autoprune.study import Study

__all__ = ["Result", "search", "train_best"]


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
    with hold(study, run, listener) as listener:
        try:
            return _run_search(study, run, listener)
        except BudgetError as error:
            if not run.best.exists():
                raise
            raise BudgetError(
                f"{error}. {run.best} still holds the artefact of an earlier search"
            ) from error


def _run_search(study: Study, run: Run, listener: Listener) -> Result:
    """The straight line: prepare, baseline, trials, finalists, export."""
    time = TimeLimit(study.search.timeout_s)
    log = Logbook(listener, run.folder / "log.txt", f"search {study.name}, {study.budget}")
    prepared = _prepare_and_check(study, run, log)
    Run.write_yaml(run.study, dict(study.resolved))
    log.open()
    probes: list[Probe] = []
    if study.search.finalists is not None:
        prepared, probes = probe_techniques(study, prepared, log)
    for text in (*(probe.verdict for probe in probes if probe.left), *warnings_of(study, prepared)):
        log.note(text)
    journal = Journal(study, run, prepared.variables)
    time.prepared()
    announce(study, run, prepared, journal, time, probes, log)
    stages = Stages(Session.begin(study, run, prepared, log), journal, time)
    interrupted = False
    try:
        stages.queue(probes)
        stages.run()
    except KeyboardInterrupt:
        interrupted = True
        log.note(
            "interrupted: writing the front and exporting the best that is trained; once more "
            "stops at once"
        )
    try:
        return _close(stages, interrupted)
    except KeyboardInterrupt:
        if interrupted:
            raise
        log.note("interrupted: exporting the best so far; once more stops at once")
        return _close(stages, interrupted=True)


def train_best(study: Study, run: Run, listener: Listener | None = None) -> Result:
    """Train the best of the plans that `run` has judged, under whichever budget, for
    `study.budget`; judge none anew.

    What it comes to is a trial of the run; the best that keeps the budget is exported and verified
    to `run.best`. Raises BudgetError, with what the run can answer, where no judged plan keeps it;
    InputError where dense does.
    """
    with hold(study, run, listener) as listener:
        time = TimeLimit(study.search.timeout_s)
        log = Logbook(
            listener, run.folder / "log.txt", f"train the best evaluated plan for {study.budget}"
        )
        prepared = _prepare_and_check(study, run, log)
        _require_judged(study, run, baseline.establish(study, prepared, run, log))
        Run.write_yaml(run.study, dict(study.resolved))
        log.open()
        if study.search.finalists is not None:
            prepared, _ = probe_techniques(study, prepared, log)
        journal = Journal(study, run, prepared.variables)
        time.prepared()
        announce(study, run, prepared, journal, time, (), log, judging=False)
        stages = Stages(Session.begin(study, run, prepared, log), journal, time)
        stages.queue(judging=False)
        stages.promote(1)
        return _close(stages, interrupted=False)


def _prepare_and_check(study: Study, run: Run, listener: Listener) -> Prepared:
    """What is known before anything is trained; refuses a budget that no plan can keep, or that
    dense keeps."""
    prepared = prepare(study, run, listener)
    require_reachable(study, prepared)
    if (reason := needless(study, prepared.dense)) is not None:
        raise InputError(reason)
    return prepared


def _require_judged(study: Study, run: Run, dense: Score) -> None:
    """Raise BudgetError, with what the run can answer, where none of its plans keeps the budget."""
    candidates = Journal.read(study, run, dense)
    if best(study, dense, candidates):
        return
    judged = in_words(
        [answer for answer in answers(study, dense, candidates) if not answer.trained],
        run.folder,
    )
    raise BudgetError(
        f"no plan that was evaluated in {run.folder} keeps the budget ({study.budget}). "
        f"{judged or 'None was evaluated without fine-tuning'}; search under this budget "
        "evaluates more"
    )


def _close(stages: Stages, interrupted: bool) -> Result:
    """Measure the finalists again, export and verify the best, unless an earlier start has done
    it."""
    session, trials = stages.session, stages.trials
    study, run, dense = session.study, session.run, session.dense
    winner, chosen = Winner(stages), None
    if not trials.told:
        chosen = records.exported_best(run, study, trials.candidates())
    if chosen is None:
        chosen = winner.choose_and_export(interrupted)
    front = trials.write(chosen, final=True)
    again = [*winner.measured_again, *([chosen] if chosen is not None else [])]
    kept = with_figures(records.answering(run, trials.candidates()), again)
    known = tuple(answers(study, dense, kept))
    groups = session.prepared.coupling.groups
    return Result(run, dense, front, chosen, groups, interrupted, known)
