"""Session: a run at work. It is complete when it exists: locked, the model prepared, the dense
baseline established, plans evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from autoprune.pruning.pruner import Pruner
from autoprune.run import Run
from autoprune.score import Score
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating import baseline
from autoprune.searching.evaluating.evaluator import Evaluator
from autoprune.searching.evaluating.preparation import Prepared, prepare
from autoprune.searching.stall import watch
from autoprune.study import Study

__all__ = ["Session", "hold", "open_session"]


@dataclass(frozen=True)
class Session:
    """The run of a study, and what evaluates its plans beside the dense model."""

    run: Run
    evaluator: Evaluator

    @classmethod
    def begin(cls, study: Study, run: Run, prepared: Prepared, listener: Listener) -> Session:
        """Train the dense model, or load it from the run. Needs the run's lock; raises what
        `baseline.establish` raises."""
        dense = baseline.establish(study, prepared, run, listener)
        return cls(run, Evaluator(study, prepared, dense, prepared.pruner(study), listener))

    @property
    def study(self) -> Study:
        """What is searched."""
        return self.evaluator.study

    @property
    def prepared(self) -> Prepared:
        """The dense model, its groups and the decisions about them."""
        return self.evaluator.prepared

    @property
    def dense(self) -> Score:
        """The dense model's score."""
        return self.evaluator.dense

    @property
    def pruner(self) -> Pruner:
        """What makes models of plans."""
        return self.evaluator.pruner

    @property
    def listener(self) -> Listener:
        """Who is told."""
        return self.evaluator.listener

    @property
    def cache_key(self) -> str:
        """Of what depends on the task and on the seed of its training alone."""
        return f"{self.study.task.digest()}-{self.study.search.seed}"


@contextmanager
def hold(study: Study, run: Run, listener: Listener | None) -> Iterator[Listener]:
    """Hold the run alone, swept of what a killed process left, and watch that every step ends.

    Gives the listener to tell. Raises InputError where another process holds it.
    """
    with watch(study, listener) as listener, run.lock():
        run.sweep()
        yield listener


@contextmanager
def open_session(study: Study, run: Run, listener: Listener | None) -> Iterator[Session]:
    """A session from nothing to the end: hold, prepare, begin."""
    with hold(study, run, listener) as listener:
        yield Session.begin(study, run, prepare(study, run, listener), listener)
