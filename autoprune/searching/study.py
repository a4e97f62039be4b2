"""Optuna: ask, tell, constraints, resume. The journal is the truth about the trials."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from autoprune.errors import InputError
from autoprune.plan import Plan
from autoprune.run import Run
from autoprune.score import Candidate, Score
from autoprune.space import Variable, parameters, suggest
from autoprune.study import Study

__all__ = ["SAMPLERS", "Journal", "mend"]

optuna.logging.set_verbosity(optuna.logging.WARNING)


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True)


SAMPLERS = {
    "tpe": _tpe,
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}


class Journal:
    """The trials of a run, in Optuna's storage. Open it under the run's lock only.

    Each budget has an Optuna study of its own in the storage, as constraints are judged against a budget; a changed budget takes
    every trial over with its number.
    """

    def __init__(self, study: Study, run: Run, variables: Sequence[Variable]) -> None:
        self._study, self._variables = study, variables
        self._dense: Score | None = None
        with _quiet():
            storage = study.search.storage or _journal_storage(run.journal)
            directions = [
                study.task.metric.goal if name == "metric" else "minimize" for name in study.search.objectives
            ]
            name = f"{study.name} [{study.budget}]"
            known = optuna.get_all_study_names(storage=storage)
            self.optuna = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
            others = [other for other in known if other.startswith(f"{study.name} [") and other != name]
            self._earlier = [optuna.load_study(storage=storage, study_name=other) for other in others]

    @property
    def proposed(self) -> bool:
        """Whether the proposals are in the queue already, or come along from an earlier budget."""
        return any(study.user_attrs.get("proposed") for study in (self.optuna, *self._earlier))

    @classmethod
    def read(cls, study: Study, run: Run, variables: Sequence[Variable], dense: Score) -> list[Candidate]:
        """Every trial that a run has finished, under whichever budget, judged against `study.budget`; nothing is written."""
        mend(run.journal)
        with _quiet():
            storage = study.search.storage or _journal_storage(run.journal)
            names = [name for name in optuna.get_all_study_names(storage=storage) if name.startswith(f"{study.name} [")]
            longest = max((optuna.load_study(storage=storage, study_name=name) for name in names), key=lambda found: len(found.trials))
        journal = cls.__new__(cls)
        journal._study, journal._variables, journal.optuna = study, variables, longest
        return journal.candidates(dense)

    def start(self, proposals: Sequence[Plan], dense: Score) -> None:
        """Take over the trials of other budgets, enqueue the proposals once, and run again what was interrupted."""
        self._dense = dense
        with _quiet():
            if not self.optuna.trials and self._earlier:
                self._take_over(max(self._earlier, key=lambda other: len(other.trials)))
            for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.optuna.tell(trial.number, state=TrialState.FAIL)
                params = trial.system_attrs.get("fixed_params") or trial.params
                if params:
                    self.optuna.enqueue_trial(params)
            if not self.optuna.user_attrs.get("proposed"):
                for plan in proposals:
                    self.optuna.enqueue_trial(parameters(self._variables, plan), skip_if_exists=True)
                self.optuna.set_user_attr("proposed", True)

    def ask(self) -> tuple[Trial, Plan]:
        """The next trial and its plan; the sampler is seeded anew by (seed, number), so that a resumed search goes on as it would have."""
        number = sum(trial.state != TrialState.WAITING for trial in self.optuna.get_trials(deepcopy=False))
        with _quiet():
            self.optuna.sampler = SAMPLERS[self._study.search.sampler](zlib.crc32(f"{self._study.search.seed} {number}".encode()))
            trial = self.optuna.ask()
            plan = suggest(self._variables, trial)
            trial.set_user_attr("plan", plan.to_json())
        return trial, plan

    def tell(self, trial: Trial, candidate: Candidate, seconds: float) -> None:
        """Record a candidate: COMPLETE with what was really measured, or FAIL where its training broke down."""
        with _quiet():
            trial.set_user_attr("stage", candidate.stage)
            trial.set_user_attr("reason", candidate.reason)
            trial.set_user_attr("score", candidate.score.to_json())
            trial.set_user_attr("seconds", round(seconds, 3))
            if candidate.stage == "failed":
                self.optuna.tell(trial, state=TrialState.FAIL)
                return
            assert self._dense is not None
            for quantity, value in self._study.budget.violations(candidate.score, self._dense, self._study.task.metric.goal).items():
                trial.set_constraint(quantity, value)
            self.optuna.tell(trial, [candidate.score.objective(name) for name in self._study.search.objectives])

    def candidates(self, dense: Score) -> list[Candidate]:
        """Every trial that ended, judged against the study's budget."""
        return [self._candidate(trial, dense) for trial in self.optuna.get_trials(deepcopy=False) if "stage" in trial.user_attrs and trial.state.is_finished()]

    def finished(self) -> int:
        """How many trials ended by themselves; interrupted ones do not count."""
        return sum("stage" in trial.user_attrs and trial.state.is_finished() for trial in self.optuna.get_trials(deepcopy=False))

    def trials(self) -> list[FrozenTrial]:
        """Optuna's own records, for trials.csv."""
        return list(self.optuna.get_trials(deepcopy=False))

    def _candidate(self, trial: FrozenTrial, dense: Score) -> Candidate:
        score, attrs = Score.from_json(trial.user_attrs["score"]), trial.user_attrs
        broken = self._study.budget.broken(score, dense, self._study.task.metric.goal)
        feasible = not broken and attrs["stage"] in ("dense", "trained")
        return Candidate(trial.number, Plan.from_json(attrs["plan"]), score, feasible, attrs["stage"], attrs["reason"])

    def _take_over(self, other: optuna.Study) -> None:
        assert self._dense is not None
        for trial in other.get_trials():
            done = "score" in trial.user_attrs
            score = Score.from_json(trial.user_attrs["score"]) if done else Score()
            limits = self._study.budget.violations(score, self._dense, self._study.task.metric.goal) if done else {}
            state = TrialState.FAIL if trial.state == TrialState.RUNNING else trial.state
            attrs = {key: value for key, value in trial.system_attrs.items() if not key.startswith("constraints")}
            self.optuna.add_trial(optuna.trial.create_trial(
                state=state, values=trial.values if state == TrialState.COMPLETE else None, params=trial.params,
                distributions=trial.distributions, user_attrs=trial.user_attrs, system_attrs=attrs, constraints=limits or None))
        self.optuna.set_user_attr("proposed", bool(other.user_attrs.get("proposed")))


def mend(journal: Path) -> bool:
    """Cut off a last line that a crash tore, and clear a stale lock: either would spoil every later open. Needs the run's lock.

    Gives whether a torn line was found.
    """
    for lock in (journal.with_name(journal.name + ".lock"),):
        lock.unlink(missing_ok=True)
    if not journal.exists():
        return False
    content = journal.read_bytes()
    end = len(content)
    while end:
        start = content.rfind(b"\n", 0, end - 1) + 1
        if content[start:end].endswith(b"\n") and _is_json(content[start:end]):
            break
        end = start
    if end == len(content):
        return False
    with open(journal, "rb+") as file:
        file.truncate(end)
    return True


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _journal_storage(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    mend(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, AssertionError) as error:
        raise InputError(f"{path} cannot be read as a journal ({error}); start anew with --fresh, which keeps the old folder") from error


class _quiet(warnings.catch_warnings):
    """No warnings about Optuna's experimental interfaces inside."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return found
