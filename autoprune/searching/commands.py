"""Besides the search: a dry run, one given plan, and another answer from a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autoprune import plugins
from autoprune.budget import Budget
from autoprune.errors import BudgetError, InputError, TrainingError
from autoprune.exporting.export import Finished, copy_artefact, export, refuse_foreign
from autoprune.exporting.verify import verify_in_fresh_process
from autoprune.files import read_mapping
from autoprune.group import Group
from autoprune.plan import Plan
from autoprune.run import Run
from autoprune.score import Candidate, Score, pareto_front
from autoprune.searching import records
from autoprune.searching.announcement import warnings_of
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating.evaluator import PROCESSES
from autoprune.searching.evaluating.preparation import out_of_reach, prepare
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.proposing.budget_scaling import BudgetScaling
from autoprune.searching.proposing.sensitivity import RATIOS, Sensitivity, sensitivities
from autoprune.searching.search import Result, train_best
from autoprune.searching.selecting.answers import Answer, answers
from autoprune.searching.selecting.finalists import settle
from autoprune.searching.selecting.infeasible import nearest_miss, needless
from autoprune.searching.session import Session, hold, open_session
from autoprune.searching.stall import watch
from autoprune.searching.winner import with_figures
from autoprune.space import Variable
from autoprune.study import Study
from autoprune.task import Recipe
from autoprune.training.judging import judge
from autoprune.training.loop import Quality

__all__ = [
    "Checked",
    "Map",
    "answerable",
    "apply_plan",
    "check",
    "export_from",
    "export_trained",
    "sensitivity",
]


@dataclass(frozen=True)
class Checked:
    """What a dry run tells: groups, decisions, dense and lowest cost, estimated time, and what is
    wrong."""

    groups: tuple[Group, ...]
    variables: list[Variable]
    dense: Score
    lowest: Score
    seconds: float | None
    warnings: list[str]
    unreachable: str | None
    needless: str | None = None
    origin: str = ""  # of the dense model's weights, and whether it is trained first
    # By the study's key: `training` where it is used
    recipes: Mapping[str, Recipe] = field(default_factory=dict)


@dataclass(frozen=True)
class Map:
    """What each decision costs when it alone is taken; `dense` is the dense model on the same
    inputs."""

    dense: Quality
    metric: str
    rows: list[Sensitivity]


def sensitivity(
    study: Study, run: Run, ratios: Sequence[float] = RATIOS, listener: Listener | None = None
) -> Map:
    """Every technique of every decision at some ratios, judged untrained; what `run` has is not
    judged again."""
    with open_session(study, run, listener) as session:
        scaling = BudgetScaling.of(session, own=True)
        session.listener.on_step(0, "evaluating single decisions")
        rows = sensitivities(session, scaling, ratios=ratios)
        dense = session.evaluator.judge_untrained(Plan())
        return Map(dense, study.task.metric.name, rows)


def check(study: Study) -> Checked:
    """Everything that can be known without training. Raises ModelError, StudyError."""
    with watch(study, None) as listener:
        prepared = prepare(study, None, listener)
    broken = out_of_reach(study, prepared)
    unreachable = f"even the most-pruned plan has {'; '.join(broken)}" if broken else None
    return Checked(
        prepared.coupling.groups,
        prepared.variables,
        prepared.dense,
        prepared.smallest,
        prepared.seconds(study),
        warnings_of(study, prepared),
        unreachable,
        needless(study, prepared.dense),
        prepared.origin,
        ({} if prepared.trained else {"training": study.task.training})
        | {"recovery": study.recovery},
    )


def apply_plan(study: Study, plan: Plan, out: Path, listener: Listener | None = None) -> Result:
    """Prune by `plan`, train, export to `out` and verify; no search. The dense model is kept beside
    it, in `.NAME.run`.

    A plan outside the study's budget is exported all the same, the listener told. Raises PlanError
    for one that does not fit, TrainingError where its training breaks down.
    """
    # An unknown one is refused before anything is trained
    for choice in {choice for _, choice in plan}:
        plugins.create("technique", choice.technique, (study.folder,))
        plugins.create("criterion", choice.criterion, (study.folder,))
    run = Run(out.parent / f".{out.name}.run")
    loose = replace(study, budget=Budget())
    with hold(study, run, listener) as listener:
        prepared = prepare(study, run, listener)
        prepared.pruner(study).check(plan)
        listener.on_plan(None, 1)
        session = Session.begin(loose, run, prepared, listener)
        dense, evaluator = session.dense, session.evaluator
        done = evaluator(plan, 1) if len(plan) else evaluator.baseline()
        if done.model is None:
            raise TrainingError(f"training this plan broke down: {done.candidate.reason}")
        candidate = done.candidate
        pruned = prepared.cut_by_magnitude(plan)
        score = prepared.costs.of_finished(done.model, pruned, candidate.score, PROCESSES)
        if study.task.data.test is not None:
            tested = judge(done.model, study.task, study.target, "test", study.recovery.device)
            score = score.evolve(test_metric=tested.metric)
        broken = study.feasibility(dense).reasons(score)
        if broken:
            listener.note(f"this plan is outside the study's budget: {'; '.join(broken)}")
        budget = study.budget if not broken else Budget()
        score = export(
            study, Finished(plan, done.model, prepared.model, score, dense), out, budget=budget
        )
        verify_in_fresh_process(out, study.task)
    candidate = replace(candidate, score=score, feasible=not broken)
    return Result(Run(out), dense, [candidate], candidate, prepared.coupling.groups)


def answerable(study: Study, run: Run) -> list[Answer]:
    """The budgets that a run can answer now; neither model nor target is touched."""
    with run.lock():
        dense = Score.from_json(read_mapping(run.dense / "score.json"))
        return answers(study, dense, records.answering(run, Journal.read(study, run, dense)))


def export_trained(study: Study, run: Run, out: Path, listener: Listener | None = None) -> Result:
    """Train the best judged plan for `study.budget`, as a trial of `run`, and put the best that
    keeps it to `out` too.

    Raises what `train_best` raises, and InputError where `out` holds something else than an
    artefact.
    """
    refuse_foreign(out)
    result = train_best(study, run, listener)
    copy_artefact(run.best, out)
    return replace(result, run=Run(out))


def export_from(
    study: Study, run: Run, out: Path, trial: int | None = None, listener: Listener | None = None
) -> Result:
    """Export a trial of a finished run, or the best under `study.budget`, which need not be the
    run's; verified.

    Raises InputError for a trial without a model, BudgetError that says what is reachable where the
    front has none.
    """
    with open_session(study, run, listener) as session:
        prepared, dense, listener = session.prepared, session.dense, session.listener
        candidates = Journal.read(study, run, dense)
        front = pareto_front(candidates, study.search.objectives, study.task.metric.goal)
        kept = records.with_models(run, candidates)
        if trial is None:
            winner, judged = settle(session, kept)
            if winner is None:
                seen = with_figures(records.answering(run, candidates), judged)
                raise BudgetError(nearest_miss(study, dense, seen, run.folder))
            best = winner
        else:
            best = _asked_for(session, kept, trial)
        model = records.kept_model(run, best.number, prepared.model)
        done = Finished(best.plan, model, prepared.model, best.score, dense, best.number)
        kept_budget = trial is None or study.feasibility(dense).fits(best.score)
        budget = study.budget if kept_budget else Budget()
        listener.on_step(0, "exporting")
        score = export(study, done, out, budget=budget)
        listener.on_step(0, "verifying in a fresh process")
        verify_in_fresh_process(out, study.task)
    return Result(Run(out), dense, front, replace(best, score=score), prepared.coupling.groups)


def _asked_for(session: Session, kept: list[Candidate], number: int) -> Candidate:
    study, prepared, run = session.study, session.prepared, session.run
    asked = next((candidate for candidate in kept if candidate.number == number), None)
    if asked is None:
        raise InputError(
            f"trial {number} has no model in {run.folder}; kept are the trials that came onto the "
            "front: "
            f"{', '.join(str(candidate.number) for candidate in kept)}"
        )
    model = records.kept_model(run, number, prepared.model)
    score = prepared.costs.of_finished(
        model, prepared.cut_by_magnitude(asked.plan), asked.score, PROCESSES
    )
    if study.task.data.test is not None:
        tested = judge(model, study.task, study.target, "test", study.recovery.device)
        score = score.evolve(test_metric=tested.metric)
    return replace(asked, score=score)
