"""One plan -> Candidate: the cheapest check first, stop at the first broken limit, train what is left."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from autoprune.errors import InputError, TrainingError
from autoprune.plan import Plan
from autoprune.pruning.importance import Importance
from autoprune.pruning.pruned import Pruned, apply, follows, partly
from autoprune.pruning.repair import Reference
from autoprune.pruning.shrink import copy_tensors
from autoprune.score import NEED_A_RUN, Candidate, Score
from autoprune.searching.listener import Listener
from autoprune.searching.preparation import Prepared, drawn
from autoprune.study import Study
from autoprune.task import Recipe, Task
from autoprune.training.batches import sampled
from autoprune.training.judging import judge
from autoprune.training.loop import Quality, evaluate, recalibrate, train
from autoprune.training.schedule import polynomial

__all__ = ["PROCESSES", "Evaluated", "Evaluator", "decided"]

PROCESSES, _MORE = 5, 15  # fresh ones, that the latency of finalists is measured in

_IMAGES, _POSITIONS = 512, 20  # of training data, that layers are repaired on
_JUDGED = 1000  # inputs of training and of validation data, that untrained plans are judged on
_LARGE = 3 * 64 * 64  # elements of an input: of larger ones fewer are taken, with more positions
_FEWEST = 64


def decided(measured: Callable[[int], Score], broken: Callable[[Score], list[str]]) -> Score:
    """What is measured in fresh processes; in more of them where the first leave open whether the budget is kept."""
    score = measured(PROCESSES)
    return measured(_MORE) if broken(score) and not broken(score.expected()) else score


@dataclass(frozen=True)
class Evaluated:
    """A candidate, and its trained model where it went all the way."""

    candidate: Candidate
    model: nn.Module | None = None


@dataclass(frozen=True)
class Evaluator:
    """What every evaluation needs: the study, the prepared and trained dense model with its score, importance."""

    study: Study
    prepared: Prepared
    dense: Score
    importance: Importance
    listener: Listener

    def __call__(self, plan: Plan, number: int) -> Evaluated:
        """Judge a plan. A training that breaks down is a failed candidate, not an error."""
        study, listener = self.study, self.listener
        pruned = apply(self.prepared.model, self.prepared.coupling, plan, self.importance, polynomial)
        listener.started(number, "counting")
        score = self.prepared.costs.score(pruned)
        if set(NEED_A_RUN) & set(study.search.objectives) or not self._broken(score):
            listener.started(number, f"measuring on {study.target.name}")
            score = self._measured(pruned, score)
        if reasons := self._broken(score):
            stage = "latency" if score.latency_ms is not None else "cost"
            return self._untrained(plan, number, pruned, score, stage, "; ".join(reasons))
        listener.started(number, f"training {study.recovery.epochs} epochs")
        try:
            # else all that could be trained is gone
            if _trainable(pruned.model) or not _trainable(self.prepared.model):
                pruned = self._recovered(plan, pruned)
            model = self.finish(pruned)
            quality = judge(model, study.task, study.target, "validation", study.recovery.device)
        except TrainingError as error:
            return Evaluated(Candidate(number, plan, score, False, "failed", str(error)))
        nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
        score = score.updated(metric=quality.metric, loss=quality.loss, nonzero_params=nonzero)
        score = self.prepared.costs.stored(model, pruned, score)
        return replace(self.known(plan, number, score), model=model)

    def _recovered(self, plan: Plan, pruned: Pruned) -> Pruned:
        """What is `pruned` by a plan, trained: cut in iterations, where units go and epochs are enough, or at once."""
        study, model, coupling = self.study, self.prepared.model, self.prepared.coupling
        parts, epochs = study.recovery.iterations, study.recovery.epochs
        each, done, after = epochs // (parts + 1), 0, None
        for part in range(1, parts) if each else ():
            made = apply(model, coupling, partly(plan, part / parts), self.importance)
            if not follows(pruned, made) or (after is not None and not follows(made, after)):
                continue
            if after is not None:
                made = apply(model, coupling, partly(plan, part / parts), self.importance, after=after)
            self._train(made, replace(study.recovery, epochs=each), done)
            done, after = done + each, made
        if after is not None:
            pruned = apply(model, coupling, plan, self.importance, polynomial, after=after)
        self._train(pruned, replace(study.recovery, epochs=epochs - done), done)
        return pruned

    def _train(self, pruned: Pruned, recipe: Recipe, before: int) -> None:
        """Train by `recipe`, after so many epochs `before`; at first from repaired layers, where it says so."""
        epochs = self.study.recovery.epochs
        if recipe.repair and not before:
            self._repair(pruned, final=not recipe.epochs)
        train(
            pruned.model,
            self.study.task,
            recipe,
            seed=self.study.search.seed + before,
            teacher=self.prepared.model,
            masks=pruned.masks,
            report=lambda share: self.listener.progress((before + share * recipe.epochs) / epochs),
        )

    def _repair(self, pruned: Pruned, *, final: bool) -> None:
        """Solve the layers anew, in place; with the `final` masks set before, where no training will set them."""
        if final:
            pruned.masks.step(1.0)
        if (solved := self._solved(pruned)) is not None:
            copy_tensors(pruned.model, solved)

    def _solved(self, pruned: Pruned) -> nn.Module | None:
        """A repaired copy, None where nothing can be repaired; what training would leave alone stays."""
        if self._reference is None:
            return None
        frozen = {name for name, parameter in pruned.model.named_parameters() if not parameter.requires_grad}
        return self._reference.repair(pruned.model, pruned.cuts, frozen=frozen)

    def _measured(self, pruned: Pruned, score: Score) -> Score:
        """With the latency; a finalist's, which was chosen by a brief look at it, from fresh processes."""
        latency = functools.partial(self.prepared.costs.latency, pruned, score)
        if self.study.search.finalists is None:
            return latency()
        return decided(lambda processes: latency(processes=processes), self._broken)

    def finalist(self, plan: Plan, number: int) -> Score:
        """What a plan costs, as it is before it is trained: what is limited in fresh processes."""
        pruned = apply(self.prepared.model, self.prepared.coupling, plan, self.importance)
        score = self.prepared.costs.score(pruned)
        if not any(limit.quantity in NEED_A_RUN for limit in self.study.budget.limits):
            return score
        self.listener.started(number, f"measuring on {self.study.target.name}")
        return self._measured(pruned, score)

    def screen(self, plan: Plan, number: int) -> Evaluated:
        """Judge a plan without training it: its costs, a first look at its latency, and its quality when repaired.

        Among plans of equal latency the quality after a least-squares repair ranks as training does, for a second each.
        The loss is the mean over training and validation data, each at its best temperature: it tells plans apart that
        a metric does not, and a confidence that the repair has put off does not count.
        """
        listener = self.listener
        pruned = apply(self.prepared.model, self.prepared.coupling, plan, self.importance)
        listener.started(number, f"measuring on {self.study.target.name}")
        score = self.prepared.costs.latency(pruned, self.prepared.costs.score(pruned), brief=True)
        listener.started(number, "judging it untrained")
        try:
            quality = self._repaired(pruned)
        except TrainingError as error:
            return Evaluated(Candidate(number, plan, score, False, "failed", str(error)))
        score = score.updated(metric=quality.metric, loss=quality.loss)
        broken = self._broken(score.judged("screened"))
        return Evaluated(Candidate(number, plan, score, False, "screened", "; ".join(broken) or None))

    def untrained(self, plan: Plan) -> Quality:
        """The quality of a plan's model when repaired; of the empty plan that of the dense model on the same inputs."""
        return self._repaired(apply(self.prepared.model, self.prepared.coupling, plan, self.importance))

    def _repaired(self, pruned: Pruned) -> Quality:
        model = pruned.finish()
        if (solved := self._solved(pruned)) is not None:
            model = solved
        else:
            recalibrate(model, self.study.task)
        device = self.study.recovery.device
        seen, unseen = (evaluate(model, task, "validation", device, tempered=True) for task in self._samples)
        return Quality(unseen.metric, (seen.loss + unseen.loss) / 2)

    @functools.cached_property
    def _reference(self) -> Reference | None:
        """None, with a note, where there is too little to repair on: plans are judged with norms alone taken anew."""
        images = self._fewer(_IMAGES)
        positions = _POSITIONS * max(1, _IMAGES // images)
        try:
            return Reference(self.prepared.model, drawn(self.study), images=images, positions=positions)
        except InputError as error:
            self.listener.note(f"layers are not repaired after a cut: {error}")
            return None

    def _fewer(self, count: int) -> int:
        """So many inputs, or fewer large ones."""
        size = sum(tensor.numel() for tensor in self.prepared.inputs.rows(1).tensors())
        return max(_FEWEST, min(count, count * _LARGE // max(1, size)))

    @functools.cached_property
    def _samples(self) -> tuple[Task, Task]:
        """The task with a part of its training data to be judged on, and with a part of its validation data."""
        task = self.study.task
        parts = (sampled(data, self._fewer(_JUDGED)) for data in (task.data.train, task.data.validation))
        seen, unseen = (replace(task, data=replace(task.data, validation=part)) for part in parts)
        return seen, unseen

    def known(self, plan: Plan, number: int, score: Score) -> Evaluated:
        """A plan that is trained, with the score that it came to; where that was before, its model was kept then."""
        broken = self._broken(score)
        return Evaluated(Candidate(number, plan, score, not broken, "trained", "; ".join(broken) or None))

    def finish(self, pruned: Pruned) -> nn.Module:
        """The trained model with its masks multiplied in and its batch-norm statistics anew."""
        model = pruned.finish()
        recalibrate(model, self.study.task)
        return model.to("cpu").eval()

    def _untrained(self, plan: Plan, number: int, pruned: Pruned, score: Score, stage: str, reason: str) -> Evaluated:
        """A plan outside the budget, with the quality it really has untrained: samplers see completed trials only.

        In fp32, whatever the target's dtype: it only tells samplers which way is better.
        """
        self.listener.started(number, "judging it untrained")
        try:
            quality = evaluate(
                self.finish(pruned),
                self.study.task,
                "validation",
                self.study.recovery.device,
            )
        except TrainingError as error:
            return Evaluated(Candidate(number, plan, score, False, "failed", f"{reason}; {error}"))
        return Evaluated(
            Candidate(number, plan, score.updated(metric=quality.metric, loss=quality.loss), False, stage, reason)
        )

    def _broken(self, score: Score) -> list[str]:
        return self.study.budget.broken(score, self.dense, self.study.task.metric.goal)

    def baseline(self) -> Evaluated:
        """Trial 0: the dense model itself."""
        broken = self._broken(self.dense)
        candidate = Candidate(
            0, Plan(), self.dense.updated(test_metric=None), not broken, "dense", "; ".join(broken) or None
        )
        return Evaluated(candidate, copy.deepcopy(self.prepared.model))


def _trainable(model: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())
