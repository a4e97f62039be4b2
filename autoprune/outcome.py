"""What a search from Python found: its front, and the models on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from autoprune.errors import ModelError
from autoprune.plan import Plan
from autoprune.score import Candidate, Score
from autoprune.searching import commands, records
from autoprune.searching.search import Result
from autoprune.study import Study

__all__ = ["Best", "SearchResult"]


@dataclass(frozen=True)
class Best:
    """The chosen candidate: its trial, plan and score, and its model."""

    candidate: Candidate
    model: nn.Module

    @property
    def plan(self) -> Plan:
        """What was done to each group."""
        return self.candidate.plan

    @property
    def score(self) -> Score:
        """Every figure of it."""
        return self.candidate.score


@dataclass(frozen=True)
class SearchResult:
    """What `search` found. `front` is Pareto-optimal in the study's objectives, `best` the best
    inside the budget."""

    study: Study
    result: Result
    dense_model: nn.Module

    def __str__(self) -> str:
        """One line for dense and for each candidate of the front."""
        chosen = None if self.result.best is None else self.result.best.number
        lines = [f"search {self.study.name!r}: {self.study.budget}; {self.run}"]
        for candidate in self.front:
            score = candidate.score
            ratio = (
                ""
                if score.latency.ratio is None
                else f", latency {score.latency.ratio:.1%} of dense"
            )
            mark = (
                " best"
                if candidate.number == chosen
                else ""
                if candidate.feasible
                else " over budget"
            )
            quality = f"{self.study.task.metric.name} {score.metric:.4g}"
            lines.append(
                f"  trial {candidate.number}{mark}: {quality}{ratio}, {score.params} parameters, "
                f"{score.flops} FLOPs"
            )
        return "\n".join(lines)

    __repr__ = __str__

    @property
    def dense(self) -> Score:
        """Score of the dense model."""
        return self.result.dense

    @property
    def front(self) -> list[Candidate]:
        """The Pareto front, dense model included."""
        return self.result.front

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.result.run.folder

    @property
    def best(self) -> Best:
        """The best inside the budget, with its model.

        Raises ModelError where the search was interrupted before there was one.
        """
        if self.result.best is None:
            raise ModelError(
                "the search was interrupted before a plan met the budget; call it again to go on"
            )
        return Best(self.result.best, self.model(self.result.best.number))

    def model(self, trial: int) -> nn.Module:
        """The trained model of a trial on the front."""
        return records.kept_model(self.result.run, trial, self.dense_model)

    def export(self, out: str | Path, trial: int | None = None) -> Path:
        """Write the best, or another trial of the front, to a folder in every format of the study,
        and verify it."""
        number = self.best.candidate.number if trial is None else trial
        commands.export_from(self.study, self.result.run, Path(out), number)
        return Path(out)
