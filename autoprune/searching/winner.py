"""The winner: measured again in fresh processes, exported, verified; where that fails, the next in
rank."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace

from autoprune.errors import AutopruneError, BudgetError, ModelError
from autoprune.exporting.export import Finished, export
from autoprune.exporting.verify import verify_in_fresh_process
from autoprune.score import Candidate
from autoprune.searching import records
from autoprune.searching.failures import Failures
from autoprune.searching.selecting.finalists import settle
from autoprune.searching.selecting.infeasible import nearest_miss
from autoprune.searching.stages import ROUNDS, Stages

__all__ = ["Winner", "with_figures"]


class Winner:
    """Chooses the best of the trained plans. `measured_again` are those that did not keep the
    budget then."""

    def __init__(self, stages: Stages) -> None:
        """Nothing is measured yet."""
        self.session, self.stages, self.trials = stages.session, stages, stages.trials
        self.study, self.run, self.dense = stages.study, stages.session.run, stages.dense
        self.listener, self.measured_again = stages.listener, list[Candidate]()

    def choose_and_export(self, interrupted: bool) -> Candidate | None:
        """The best, exported; where that fails the next takes its place, and with none left the
        error is raised."""
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
            seen = with_figures(self.trials.candidates(), judged)
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
        count, judged = self.study.search.finalists, list[Candidate]()
        for extra in range(1, ROUNDS + 1):
            seen, told = {*out, *(candidate.number for candidate in judged)}, self.trials.told
            kept = records.with_models(self.run, self.trials.candidates())
            fresh = [candidate for candidate in kept if candidate.number not in seen]
            best, measured = settle(self.session, fresh)
            judged += measured
            if best is not None or interrupted or count is None or extra == ROUNDS:
                return best, judged
            self.stages.promote(count * (extra + 1))
            if self.trials.told == told:
                break
        return None, judged

    def _export(self, best: Candidate) -> Candidate:
        self.listener.on_step(
            0, "exporting and verifying the best, which takes about half a minute"
        )
        model = records.kept_model(self.run, best.number, self.session.prepared.model)
        done = Finished(
            best.plan, model, self.session.prepared.model, best.score, self.dense, best.number
        )
        score = export(self.study, done, self.run.best)
        verify_in_fresh_process(self.run.best, self.study.task)
        return replace(best, score=score)


def with_figures(candidates: Sequence[Candidate], measured: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, those that were measured again with the figures of then."""
    known = {candidate.number: candidate for candidate in measured}
    return [known.get(candidate.number, candidate) for candidate in candidates]
