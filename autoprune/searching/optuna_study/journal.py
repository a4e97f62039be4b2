"""Optuna: ask, tell, constraints, resume. The journal is the truth about the trials."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from autoprune.decision import Decisions
from autoprune.errors import InputError
from autoprune.plan import Plan
from autoprune.run import Run
from autoprune.score import Candidate, Score, direction
from autoprune.searching.evaluating.probes import Probe
from autoprune.searching.optuna_study.parameters import (
    distributions,
    from_parameters,
    to_parameters,
)
from autoprune.searching.optuna_study.samplers import SAMPLERS, ScaledSampler
from autoprune.searching.optuna_study.storage import open_storage
from autoprune.space import Variable
from autoprune.study import Study

__all__ = ["Journal"]

optuna.logging.set_verbosity(optuna.logging.WARNING)


_VERSION = 2  # of what trials hold: plans, and the loss that they are judged by


class Journal:
    """The trials of a run, in Optuna's storage. Open it under the run's lock only.

    Each budget has an Optuna study of its own in the storage, as constraints belong to a budget.
    One that is begun or gone on with first takes over what the longest has more, so a number means
    the same plan in all of them.
    """

    def __init__(self, study: Study, run: Run, variables: Sequence[Variable]) -> None:
        self._study, self._variables = study, variables
        self._dense: Score | None = None
        # By number; what has ended does not change
        self._seen: dict[int, Candidate] = {}
        with _quiet():
            storage, begins, self.damage = open_storage(study, run)
            directions = [
                direction(name, study.task.metric.goal) for name in study.search.objectives
            ]
            name = f"{begins}{study.budget}]"
            known = optuna.get_all_study_names(storage=storage)
            self.optuna = optuna.create_study(
                storage=storage, study_name=name, directions=directions, load_if_exists=True
            )
            others = [other for other in known if other.startswith(begins) and other != name]
            self._others = [
                optuna.load_study(storage=storage, study_name=other) for other in others
            ]
            for trial in (self.optuna, *self._others):
                _check_version(trial, run, self.damage)
            self.optuna.set_user_attr("version", _VERSION)

    @classmethod
    def read(cls, study: Study, run: Run, dense: Score) -> list[Candidate]:
        """Every trial that a run has finished, under any budget, judged against `study.budget`;
        nothing is added."""
        with _quiet():
            storage, begins, damage = open_storage(study, run, change=False)
            names = [
                name
                for name in optuna.get_all_study_names(storage=storage)
                if name.startswith(begins)
            ]
            studies = [optuna.load_study(storage=storage, study_name=name) for name in names]
        journal = cls.__new__(cls)
        journal._study, journal._seen = study, {}
        if not studies:
            return []
        for one in studies:
            _check_version(one, run, damage)
        journal.optuna = max(studies, key=_length)
        return journal.candidates(dense)

    def start(
        self,
        proposals: Callable[[], Sequence[Plan]] | None,
        dense: Score,
        probes: Sequence[Probe] = (),
    ) -> None:
        """Take over trials of other budgets, queue what was interrupted, and once, while trials are
        left, proposals.

        The dense model is the first trial, the `probes` come next. None where no plan is to be
        judged: then those are for a later start.
        """
        self._dense = dense
        with _quiet():
            longest = max((self.optuna, *self._others), key=_length)
            if longest is not self.optuna:
                self._take_over(longest)
            for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                self.optuna.tell(trial.number, state=TrialState.FAIL)
            if any(_follows(trial) for trial in self._waiting()):
                self._hold_back()  # who is to be promoted is found out anew
            self._queue_again()
            if proposals is None:
                return
            proposing = (
                not self.optuna.user_attrs.get("proposed")
                and self.count_finished() < self._study.search.trials
            )
            if proposing:
                self.optuna.enqueue_trial(self._parameters(Plan()), skip_if_exists=True)
            self.keep_probes(probes)
            if proposing:
                for plan in proposals():
                    self.optuna.enqueue_trial(self._parameters(plan), skip_if_exists=True)
                self.optuna.set_user_attr("proposed", True)

    def missing_probes(self, probes: Sequence[Probe]) -> list[Probe]:
        """Those that are not in the journal yet, under this budget."""
        trials = (
            trial.user_attrs for trial in self.optuna.get_trials(deepcopy=False) if _probes(trial)
        )
        known = {(attrs["probe"], attrs["budget"]) for attrs in trials}
        return [
            probe for probe in probes if (probe.technique, str(self._study.budget)) not in known
        ]

    def keep_probes(self, probes: Sequence[Probe]) -> None:
        """Record probes as trials; FAIL, without parameters: nothing is to be learnt from them of
        the space."""
        for trial in self.missing_probes(probes):
            attrs = {
                "probe": trial.technique,
                "plan": trial.plan.to_json(),
                "score": trial.score.to_json(),
            }
            attrs |= {"budget": str(self._study.budget), "reason": trial.verdict, "stage": "probe"}
            self.optuna.add_trial(
                optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attrs)
            )

    def ask(
        self,
        given: Decisions | None = None,
        *,
        scale: Callable[[Decisions], Decisions] | None = None,
    ) -> tuple[Trial, Plan]:
        """The next trial and its plan: one that waits in the queue, else `given`, else the
        sampler's, moved by `scale`.

        The sampler is seeded by (seed, trials so far).
        """
        with _quiet():
            if given is not None and not self.waits():
                self.optuna.enqueue_trial(to_parameters(given))
            # What is missing of parameters that were queued under another budget is left whole
            if self.waits():
                untouched = Decisions.of_plan(self._variables, Plan())
                self.optuna.sampler = ScaledSampler(
                    optuna.samplers.RandomSampler(), self._variables, lambda _: untouched
                )
            else:
                seed, settings = zlib.crc32(self.draw().encode()), self._study.search
                sampler = SAMPLERS[settings.sampler](seed, settings.trials)
                self.optuna.sampler = (
                    ScaledSampler(sampler, self._variables, scale) if scale else sampler
                )
            trial = self.optuna.ask(dict(distributions(self._variables)))
            chosen = from_parameters(self._variables, trial.params).plan
            self._mark_begin(trial, chosen)
        return trial, chosen

    def promote(self, candidate: Candidate) -> Trial:
        """A trial that trains the plan of another, which was judged untrained; what waits in the
        queue is held back."""
        with _quiet():
            self._hold_back()
            self.optuna.enqueue_trial(
                to_parameters(self.decisions(candidate.number)),
                user_attrs={"promotes": candidate.number},
            )
            self.optuna.sampler = optuna.samplers.RandomSampler()
            trial = self.optuna.ask(dict(distributions(self._variables)))
            self._mark_begin(trial, candidate.plan)
        return trial

    def refill(self, candidate: Candidate, fuller: Decisions) -> tuple[Trial, Plan]:
        """A trial of a finalist with what it leaves of the budget given back."""
        with _quiet():
            self._hold_back()
            self.optuna.enqueue_trial(
                to_parameters(fuller), user_attrs={"refills": candidate.number}
            )
            return self.ask()

    def decisions(self, number: int) -> Decisions:
        """Those of a trial, as far as they are searched now; what it does not have is left
        whole."""
        asked = self.optuna.get_trials(deepcopy=False)[number].params
        return from_parameters(self._variables, asked)

    def _parameters(self, plan: Plan) -> dict[str, Any]:
        return to_parameters(Decisions.of_plan(self._variables, plan))

    def _mark_begin(self, trial: Trial, plan: Plan) -> None:
        trial.set_user_attr("plan", plan.to_json())
        trial.set_user_attr("budget", str(self._study.budget))

    def _hold_back(self) -> None:
        """Take what waits out of the queue; the next start queues it again."""
        for _ in range(len(self._waiting())):
            trial = self.optuna.ask()
            trial.set_user_attr("held_back", True)
            self.optuna.tell(trial, state=TrialState.FAIL)

    def _waiting(self) -> list[FrozenTrial]:
        return list(self.optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def draw(self) -> str:
        """What the next trial's random choices are seeded by: the search's seed and the trials so
        far."""
        number = sum(
            _has_ended(trial) or "again" in trial.user_attrs
            for trial in self.optuna.get_trials(deepcopy=False)
        )
        return f"{self._study.search.seed} {number}"

    def waits(self) -> bool:
        """Whether plans wait in the queue."""
        return bool(self._waiting())

    def tell(self, trial: Trial, candidate: Candidate, seconds: float) -> None:
        """Record a candidate: COMPLETE with what was really measured, or FAIL where its training
        broke down."""
        with _quiet():
            trial.set_user_attr("reason", candidate.reason)
            trial.set_user_attr("score", candidate.score.to_json())
            trial.set_user_attr("seconds", round(seconds, 3))
            # Last: what has a stage has ended
            trial.set_user_attr("stage", candidate.stage)
            if candidate.stage == "failed":
                self.optuna.tell(trial, state=TrialState.FAIL)
                return
            for quantity, value in self._violations(candidate.score, candidate.stage).items():
                trial.set_constraint(quantity, value)
            self.optuna.tell(
                trial, [candidate.score.objective(name) for name in self._study.search.objectives]
            )

    def candidates(self, dense: Score) -> list[Candidate]:
        """Every trial that ended by itself, judged against the study's budget."""
        for trial in self.optuna.get_trials(deepcopy=False):
            if trial.number not in self._seen and _has_ended(trial):
                self._seen[trial.number] = self._candidate(trial, dense)
        return [self._seen[number] for number in sorted(self._seen)]

    def count_finished(self) -> int:
        """How many trials count: they ended by themselves, and neither train nor refill the plan of
        another.

        Where plans are judged untrained, those of this budget alone: such plans lie at the edge of
        theirs. Where all are trained, those that were.
        """
        ended = [
            trial
            for trial in self.optuna.get_trials(deepcopy=False)
            if _has_ended(trial) and not _follows(trial)
        ]
        if self._study.search.finalists is None:
            return sum(trial.user_attrs["stage"] != "screened" for trial in ended)
        return sum(trial.user_attrs.get("budget") == str(self._study.budget) for trial in ended)

    def promotions(self) -> dict[int, int]:
        """For the number of every trial that was promoted, that of the one which trained its plan,
        or gave it up."""
        ended = (
            trial
            for trial in self.optuna.get_trials(deepcopy=False)
            if _has_ended(trial) and _promotes(trial)
        )
        return {trial.user_attrs["promotes"]: trial.number for trial in ended}

    def refills(self) -> dict[int, list[int]]:
        """For the number of every finalist that was given units back, those of the trials which
        judged it so."""
        fuller: dict[int, list[int]] = {}
        for trial in self.optuna.get_trials(deepcopy=False):
            if _has_ended(trial) and _refills(trial):
                fuller.setdefault(trial.user_attrs["refills"], []).append(trial.number)
        return fuller

    def count_numbered(self) -> int:
        """How many trials have a number that is not waiting to be tried, under whichever budget."""
        studies = (self.optuna, *self._others)
        return max(
            sum(trial.state != TrialState.WAITING for trial in one.get_trials(deepcopy=False))
            for one in studies
        )

    def numbers(self) -> set[int]:
        """Those of the trials that were begun under the study's budget."""
        trials, budget = self.optuna.get_trials(deepcopy=False), str(self._study.budget)
        return {trial.number for trial in trials if trial.user_attrs.get("budget") == budget}

    def count_ended(self) -> int:
        """How many trials have ended, under whichever budget."""
        studies = (self.optuna, *self._others)
        return max(
            sum(_has_ended(trial) for trial in study.get_trials(deepcopy=False))
            for study in studies
        )

    def trials(self) -> list[FrozenTrial]:
        """Optuna's own records, for trials.csv."""
        return list(self.optuna.get_trials(deepcopy=False))

    def _violations(self, score: Score, stage: str) -> dict[str, float]:
        """By limit; of a trial that was only screened by what is to be expected of it when
        trained."""
        assert self._dense is not None
        return self._study.feasibility(self._dense).violations(score.judged(stage))

    def _candidate(self, trial: FrozenTrial, dense: Score) -> Candidate:
        score, attrs = Score.from_json(trial.user_attrs["score"]).beside(dense), trial.user_attrs
        broken = self._study.feasibility(dense).reasons(score.judged(attrs["stage"]))
        feasible = not broken and attrs["stage"] in ("dense", "trained")
        reason = attrs["reason"] if attrs["stage"] == "failed" else "; ".join(broken) or None
        return Candidate(
            trial.number, Plan.from_json(attrs["plan"]), score, feasible, attrs["stage"], reason
        )

    def _queue_again(self) -> None:
        """Queue the plans of trials that did not end by themselves, each once."""
        queued = set(self.optuna.user_attrs.get("queued_again", ()))
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
            asked = trial.system_attrs.get("fixed_params") or trial.params
            if (
                asked
                and not _follows(trial)
                and not _has_ended(trial)
                and trial.number not in queued
            ):
                self.optuna.enqueue_trial(asked)
                queued.add(trial.number)
                self.optuna.set_user_attr("queued_again", sorted(queued))

    def _take_over(self, other: optuna.Study) -> None:
        """Add what trials `other` has more, judged anew; what it stopped untrained is tried again
        if it may fit."""
        queued = {
            *self.optuna.user_attrs.get("queued_again", ()),
            *other.user_attrs.get("queued_again", ()),
        }
        self.optuna.set_user_attr("queued_again", sorted(queued))
        for trial in other.get_trials(deepcopy=False)[_length(self.optuna) :]:
            ended = _has_ended(trial)
            state, attrs = trial.state, trial.user_attrs
            limits = (
                self._violations(Score.from_json(attrs["score"]), attrs["stage"]) if ended else {}
            )
            if state == TrialState.RUNNING or (not ended and state == TrialState.COMPLETE):
                state = TrialState.FAIL
            elif state == TrialState.COMPLETE and _may_fit(attrs["stage"], limits):
                kept = {key: attrs[key] for key in ("plan", "promotes", "refills") if key in attrs}
                state, attrs = TrialState.FAIL, kept | {"again": "stopped by an earlier budget"}
            complete = state == TrialState.COMPLETE
            asked = {
                key: value for key, value in trial.system_attrs.items() if key == "fixed_params"
            }
            self.optuna.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    values=trial.values if complete else None,
                    params=trial.params,
                    distributions=trial.distributions,
                    user_attrs=attrs,
                    system_attrs=asked,
                    constraints=(limits if complete else None) or None,
                )
            )


def _check_version(found: optuna.Study, run: Run, damage: str | None) -> None:
    # Its line may be a lost one
    version = found.user_attrs.get("version", None if damage is None else _VERSION)
    if _length(found) and version != _VERSION:
        raise InputError(
            f"{run.folder} was searched by another version of autoprune, whose plans and figures "
            "do not compare with "
            "this one's; start again with --fresh, which keeps the old folder"
        )


def _length(study: optuna.Study) -> int:
    """How many trials it has, none of them copied: of a thousand that takes seconds."""
    return len(study.get_trials(deepcopy=False))


def _has_ended(trial: FrozenTrial) -> bool:
    """Whether a trial has a result; one that was interrupted, is tried again, or has lost a part of
    it has none."""
    stage = trial.user_attrs.get("stage")
    return {"stage", "score", "plan", "reason"} <= set(trial.user_attrs) and (
        trial.state == TrialState.COMPLETE or (trial.state == TrialState.FAIL and stage == "failed")
    )


def _promotes(trial: FrozenTrial) -> bool:
    return "promotes" in trial.user_attrs


def _probes(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("stage") == "probe"


def _refills(trial: FrozenTrial) -> bool:
    return "refills" in trial.user_attrs


def _follows(trial: FrozenTrial) -> bool:
    """Whether a trial comes from another, which says when it is due."""
    return _promotes(trial) or _refills(trial)


def _may_fit(stage: str, limits: dict[str, float]) -> bool:
    """Whether an untrained trial keeps what is known of its cost."""
    return stage in ("cost", "latency") and all(
        value <= 0 for quantity, value in limits.items() if quantity != "metric_drop"
    )


class _quiet(warnings.catch_warnings):
    """No warnings about Optuna's experimental interfaces inside."""

    def __enter__(self) -> Any:
        recorded = super().__enter__()
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return recorded
