"""The stages of a search: plans judged without fine-tuning, then the best of them trained; or all
trained."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.score import Candidate
from autoprune.searching import records
from autoprune.searching.evaluating.probes import Probe
from autoprune.searching.optuna_study.journal import Journal
from autoprune.searching.proposing.screening import Screening
from autoprune.searching.selecting.finalists import rank_finalists
from autoprune.searching.selecting.promotion import next_promotion
from autoprune.searching.session import Session
from autoprune.searching.time_limit import TimeLimit
from autoprune.searching.trials import Trials

__all__ = ["ROUNDS", "Stages"]

# Plans are judged beyond the trials asked for, while none keeps the budget: a few more are cheap
# beside a search that ends with nothing
_MORE = 10
# Times the finalists that are trained, at most, while none keeps the budget
ROUNDS = 3
# Plans, at most, in which a finalist gets back what it leaves of the budget: each is measured in
# fresh processes, and what they still leave soon is less than the noise
_REFILLS = 3
# Times the finalists that are promoted in one start, at most: of some latency or training is too
# bad
_TRIED = 10


class Stages:
    """Judges and trains the plans of a session's journal."""

    def __init__(self, session: Session, journal: Journal, time: TimeLimit) -> None:
        """Of kept models the damaged ones are named and left out."""
        self.session, self.journal, self.time = session, journal, time
        self.study, self.dense, self.listener = session.study, session.dense, session.listener
        self.trials = Trials(session, journal)
        self.screening = Screening(session, self._late_to_judge, self.trials.of_other_budgets)
        self._tried = 0  # plans promoted since
        if lost := records.damaged_models(session.run, self.trials.candidates()):
            listed = ", ".join(map(str, lost))
            self.listener.note(
                f"damaged since they were kept, and left out: the models of the trials {listed}"
            )

    def queue(self, probes: Sequence[Probe] = (), *, judging: bool = True) -> None:
        """What was interrupted, and the first plans where any are to be judged."""
        self.journal.start(self.screening.proposals if judging else None, self.dense, probes)

    def run(self) -> None:
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
                child = self.screening.neighbour(candidates, self.journal.decisions, draw)
                trial, plan = self.journal.ask(child, scale=self.screening.scale_sample(draw))
            self.trials.run_one(trial, plan, self.trials.screen)

    def promote(self, count: int) -> None:
        """Train the best `count` of those judged untrained; more, while none keeps the budget.

        At most three times the finalists are trained. With the time over, none beyond the finalists
        is tried.
        """
        finalists = self.study.search.finalists
        assert finalists is not None  # else every plan is trained, none promoted
        most, count = finalists * ROUNDS, min(count, finalists * ROUNDS)
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
            if self.time.over() and (trained or self._tried >= finalists):
                self.listener.note(
                    "the time limit is reached before all of the best plans were trained"
                )
                return
            if self._tried >= finalists * _TRIED:
                self.listener.note(f"{self._tried} of the best plans were tried; no more are")
                return
            if self._refill(chosen):
                continue
            self._tried += 1
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
        given = self.journal.decisions(finalist.number)
        # It has what is no longer searched
        if given.plan != finalist.plan:
            return False
        score = self.session.evaluator.finalist(finalist.plan, finalist.number)
        self.screening.learn(self.trials.candidates())
        fuller = self.screening.refill(given, score, self.journal.draw())
        if fuller is None:
            return False
        self.trials.run_one(*self.journal.refill(finalist, fuller), self.trials.screen)
        return True

    def _late_to_judge(self) -> bool:
        """Whether what is left of the time limit is for training."""
        return self.time.over_for_judging(
            self.session.prepared.training_s(self.study), self.study.search.finalists or 0
        )
