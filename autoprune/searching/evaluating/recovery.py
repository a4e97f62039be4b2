"""Recovery: what a plan left of the quality is got back, by layers solved anew and by training; the
better is kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from autoprune.errors import InputError, TrainingError
from autoprune.plan import Plan
from autoprune.pruning.pruner import Pruned, Pruner, partly
from autoprune.pruning.reconstruction.reconstruct import Reference
from autoprune.pruning.surgery.shrink import Cut
from autoprune.score import Score, better
from autoprune.searching.callback import Listener
from autoprune.searching.evaluating.origin import fewer
from autoprune.searching.evaluating.preparation import draw_batches
from autoprune.study import Study
from autoprune.task import Inputs, Recipe
from autoprune.training.judging import judge
from autoprune.training.loop import recalibrate, train

__all__ = ["Recovered", "Recovery"]

# Of training data, that layers are reconstructed on; of a feature map some positions, because
# neighbouring ones say nearly the same
_IMAGES, _POSITIONS = 512, 20


@dataclass(frozen=True)
class Recovered:
    """The finished model of a plan, on the CPU and in eval mode, and its quality: metric, loss and
    `weights`."""

    model: nn.Module
    score: Score


@dataclass(frozen=True)
class Recovery:
    """How plans of one dense, trained model are recovered, as a study says."""

    study: Study
    pruner: Pruner
    inputs: Inputs
    listener: Listener

    @property
    def model(self) -> nn.Module:
        """The dense model, trained."""
        return self.pruner.model

    def untrained_model(self, plan: Plan, *, repair: bool = True) -> nn.Module:
        """The plan's model with its layers solved anew, or, where that is not to be, with its norms
        taken anew."""
        gradual = repair and self.reference is not None
        pruned = self.pruner.apply(plan, gradual=gradual)
        if gradual:
            pruned.fill(self._reconstruct)
        model = pruned.finish()
        if not gradual:
            recalibrate(model, self.study.task)
        return model.to("cpu").eval()

    def recover(self, plan: Plan, number: int = 0, shallower: Pruned | None = None) -> Recovered:
        """The better of the plan's model trained and as it is before, on validation data; see
        `score.better`.

        Training starts from the dense model cut and repaired, or from what the plan leaves of the
        trained `shallower` model where that is the better start (the families of ZipLM, Kurtic et
        al. 2023, arXiv:2302.04089). Raises TrainingError where training breaks down.
        """
        recipe, start, after = self.study.recovery, None, None
        try:
            start = self._judge(
                self.untrained_model(plan, repair=recipe.repair),
                "repaired" if self._repairs else "cut",
            )
        except TrainingError:  # its outputs are not finite: training may mend that
            if not recipe.epochs:
                raise
        deeper = None if shallower is None else self._inherit(plan, shallower)
        if deeper is not None and (
            start is None or better(deeper.score, start.score, self.study.task.metric.goal)
        ):
            start, after = deeper, shallower
            self.listener.note(
                f"trial {number} starts from the trained model of a looser budget, the better start"
            )
        if start is not None and not (recipe.epochs and self._trainable(plan)):
            return start
        done = self._judge(self.trained(plan, number, after), "trained")
        if start is None or better(done.score, start.score, self.study.task.metric.goal):
            return done
        name = self.study.task.metric.name
        first, last = (
            f"{name} {value.score.metric:.4g}, loss {value.score.loss:.4g}"
            for value in (start, done)
        )
        kept = (start.score.weights or "").replace("repaired", "reconstructed")
        self.listener.note(
            f"trial {number}: {first} before training, {last} after it; "
            f"it is kept as it was before, {kept}"
        )
        return start

    def _inherit(self, plan: Plan, shallower: Pruned) -> Recovered | None:
        """What the plan leaves of a trained model, untrained; None where it keeps what that has
        lost."""
        if not self.pruner.resolve(plan).follows(shallower.resolved):
            return None
        model = self.pruner.apply(plan, after=shallower).finish()
        try:
            recalibrate(model, self.study.task)
            return self._judge(model.to("cpu").eval(), "inherited")
        except TrainingError:
            return None

    @property
    def _repairs(self) -> bool:
        """Whether training starts from layers solved anew."""
        return self.study.recovery.repair and self.reference is not None

    def _judge(self, model: nn.Module, weights: str) -> Recovered:
        study = self.study
        quality = judge(model, study.task, study.target, "validation", study.recovery.device)
        return Recovered(
            model,
            Score(
                metric=quality.metric,
                metric_error=quality.error,
                loss=quality.loss,
                weights=weights,
            ),
        )

    def _trainable(self, plan: Plan) -> bool:
        """Whether there is something to train; a model of which nothing could be trained before
        raises in training."""
        if not _trainable(self.model):
            return True
        return _trainable(self.pruner.apply(plan).model)

    def trained(self, plan: Plan, number: int = 0, shallower: Pruned | None = None) -> nn.Module:
        """The plan's model trained, with its masks multiplied in and its batch-norm statistics
        anew.

        It is cut in iterations, where the recipe says so, or at once, with a note of what stands
        against them. With `shallower`, from what the plan leaves of that trained model.
        """
        recipe = self.study.recovery
        parts, epochs = recipe.iterations, recipe.epochs
        share, done, after = epochs // (parts + 1), 0, shallower
        whole = self.pruner.resolve(plan)
        for part in range(1, parts) if share else ():
            going = partly(plan, part / parts)
            made = self.pruner.apply(going, gradual=True)
            if not (made.lost and whole.follows(made.resolved)) or (
                after is not None and not made.resolved.follows(after.resolved)
            ):
                continue
            if after is not None:
                made = self.pruner.apply(going, gradual=True, after=after)
            self._train(made, replace(recipe, epochs=share), done, repaired=after is None)
            done, after = done + share, made
        if parts > 1 and not done:
            why = (
                "its units, blocks or gradual masks go in one piece"
                if share
                else f"{epochs} epochs do not part"
            )
            self.listener.note(f"trial {number} is cut at once, not in {parts} iterations: {why}")
        pruned = self.pruner.apply(plan, gradual=True, after=after)
        self._train(pruned, replace(recipe, epochs=epochs - done), done, repaired=after is None)
        model = pruned.finish()
        recalibrate(model, self.study.task)
        return model.to("cpu").eval()

    def _train(self, pruned: Pruned, recipe: Recipe, before: int, *, repaired: bool) -> None:
        """Train by `recipe`, after so many epochs `before`; what is cut out of dense `repaired`,
        where it says so."""
        epochs = self.study.recovery.epochs
        if self._repairs and repaired:
            pruned.fill(self._reconstruct, progress=0.0)
        pruned.masks.step(0.0)
        train(
            pruned.model,
            self.study.task,
            recipe,
            seed=self.study.search.seed + before,
            teacher=self.model,
            masks=pruned.masks,
            report=lambda share: self.listener.progress((before + share * recipe.epochs) / epochs),
        )

    def _reconstruct(self, model: nn.Module, cuts: Sequence[Cut]) -> nn.Module:
        """A repaired copy; what training would leave alone stays."""
        assert self.reference is not None
        frozen = {
            name for name, parameter in model.named_parameters() if not parameter.requires_grad
        }
        return self.reference.repair(model, cuts, frozen=frozen)

    @functools.cached_property
    def reference(self) -> Reference | None:
        """None, with a note, where there is too little to repair on: plans are judged with norms
        alone taken anew."""
        images = fewer(self.inputs, _IMAGES)
        positions = _POSITIONS * max(1, _IMAGES // images)
        try:
            return Reference(
                self.model, draw_batches(self.study), images=images, positions=positions
            )
        except InputError as error:
            self.listener.note(f"layers are not reconstructed after a cut: {error}")
            return None


def _trainable(model: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())
