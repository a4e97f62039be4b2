"""What the user should know of a search before anything is trained: how long it takes, what it
replaces, what looks wrong."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.run import Run
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating import baseline
from autoprune.searching.evaluating.preparation import Prepared
from autoprune.searching.evaluating.probes import Probe
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.time_limit import TimeLimit
from autoprune.study import Study

__all__ = ["announce", "warnings_of"]


def announce(
    study: Study,
    run: Run,
    prepared: Prepared,
    journal: Journal,
    time: TimeLimit,
    probes: Sequence[Probe],
    listener: Listener,
    *,
    judging: bool = True,
) -> None:
    """Tell how many plans are left to judge and to train, what that takes, and what it goes on
    with. Without `judging` none is judged."""
    if journal.damage is not None:
        listener.note(journal.damage)
    settings, done = study.search, journal.count_ended()
    trained = baseline.has_baseline(study, run)
    counted = done if settings.finalists is None else journal.count_finished()
    left = max(0, settings.trials - counted) if judging else 0
    missing, finalists = len(journal.missing_probes(probes)), settings.finalists or 0
    shortfall = time.shortfall(prepared.baseline_s(study, trained), prepared.training_s(study))
    if shortfall is not None:
        listener.note(shortfall)
    if left and finalists:
        beside = f"; {missing} techniques were measured alone" if missing else ""
        listener.note(
            f"{left} plans are evaluated without fine-tuning, the best {finalists} are "
            f"trained{beside}"
        )
    whole = journal.count_numbered() + missing + left + finalists
    listener.on_plan(prepared.seconds(study, left, trained), whole)
    if done:
        listener.note(f"going on with {run.folder}: {done} trials are done{_replacement(run)}")


def _replacement(run: Run) -> str:
    """What of an earlier search this one may replace, and where its own results go."""
    if run.part:
        return f"; what this budget comes to goes to {run.results}, the rest stays as it is"
    replaced = f"; {run.best} is replaced where a better plan is found"
    return replaced if run.best.exists() else ""


def warnings_of(study: Study, prepared: Prepared) -> list[str]:
    """What may be wrong with a study, or is left out of its figures."""
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
