"""What a plan costs on the target, without training it: its graph is cut out of the dense one,
measured beside it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.budget import Budget
from autoprune.measuring import measure, quantization, resources
from autoprune.measuring.onnx_slicing.graphs import Graphs
from autoprune.measuring.sparse_kernels import lower
from autoprune.measuring.timing.latency import Latency
from autoprune.measuring.timing.subprocesses import machine
from autoprune.pruning.coupling.coupling import Coupling
from autoprune.pruning.masks import Masks
from autoprune.pruning.pruner import Pruned
from autoprune.pruning.surgery.shrink import replace_tensors
from autoprune.quantities import is_resource
from autoprune.run import Run
from autoprune.score import Score, resources_of
from autoprune.searching.evaluating.figures import Figures
from autoprune.searching.evaluating.on_request import asked_quantities, compress_score
from autoprune.study import Study
from autoprune.target import Target
from autoprune.task import Inputs

__all__ = ["Costs"]


# At most, for one latency: it ends as soon as the ratio is known to 1 %, which a busy machine
# delays
_SECONDS = 1.5
_BRIEF = 0.3  # the same for a first look
# Fresh ones, and seconds in each, that the dense milliseconds are measured in
_PROCESSES, _CALIBRATED = 5, 0.6


class Costs:
    """Measures plans for one dense model on the study's target; figures are kept in the run, none
    is taken twice.

    The dense model's milliseconds are measured once, in fresh processes; a plan's are its ratio to
    dense of these. Costs do not depend on the values of the weights, only on what was cut and what
    is zero: the dense model may be trained after this was made. `note` says where graphs cannot be
    sliced and are exported anew instead; `leaves_out`: whether a plan without some blocks takes no
    export.
    """

    def __init__(
        self,
        study: Study,
        model: nn.Module,
        coupling: Coupling,
        inputs: Inputs,
        run: Run | None = None,
    ) -> None:
        self.target, self.inputs = study.target, inputs.rows(study.target.batch)
        self.figures = Figures(study.target, run)
        runtime = plugins.load("runtime", study.target.runtime, (study.folder,))()
        self._runtime, self._converted = runtime, (b"", b"")
        self._asked = asked_quantities(study)
        limited = {limit.quantity for limit in study.budget.limits if not limit.target}
        self._sizes = bool({"size", "size_compressed"} & {*limited, *study.search.objectives})
        self._graphs = (
            Graphs(model, coupling, inputs.rows(2), study.target.batch)
            if runtime.artefact == "onnx"
            else None
        )
        self.note = self._graphs.note if self._graphs else None
        self.leaves_out = self._graphs.leaves_out if self._graphs else True
        self.dense: Any = (
            self._in_dtype(self._graphs.dense)
            if self._graphs
            else replace_tensors(model, lambda _, tensor: tensor.clone())
        )
        shapes = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
        code = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in study.task.sources]
        where = replace(study.target, recorded="").to_json()
        own = [repr(model), code, shapes, where, runtime.version(), machine(), self._shapes()]
        self.architecture = self.figures.architecture(
            _digest(own), _digest([repr(model), code, shapes, where, self._shapes()])
        )
        self._further = {
            target.name: Costs(_on(study, target), model, coupling, inputs, run)
            for target in study.further
        }

    def score(self, pruned: Pruned, *, sized: bool = True) -> Score:
        """FLOPs of a call, parameters, nonzero ones at the final ratio, size of the file that
        ships; no latency.

        The nonzero count alone depends on the weights' values, and is counted anew. Where it is not
        `sized`, there is no file either, and nothing is kept: that is for plans which are only
        thought of.
        """
        zeros = pruned.masks.final()
        key = self._key(pruned, zeros)
        kept = self.figures.recall("costs", key)
        if kept is None:
            size = measure.size_bytes(self.artefact_of(pruned, zeros)) if sized else None
            size = size + self._graphs.apart(pruned) if size is not None and self._graphs else size
            kept = (
                measure.costs(pruned.model, self.inputs)
                .evolve(nonzero_params=None, size_bytes=size)
                .to_json()
            )
            if sized:
                self.figures.keep("costs", key, kept)
        if sized and "size_compressed" in self._asked and kept.get("size_compressed_bytes") is None:
            kept = compress_score(
                self.artefact_of(pruned, zeros), None, Score.from_json(kept), self._asked
            ).to_json()
            self.figures.keep("costs", key, kept)
        nonzero = sum(
            int(torch.count_nonzero(parameter * zeros[name] if name in zeros else parameter))
            for name, parameter in pruned.model.named_parameters()
        )
        return Score.from_json(kept).evolve(nonzero_params=nonzero)

    def latency(
        self, pruned: Pruned, score: Score, *, brief: bool = False, processes: int = 0
    ) -> Score:
        """`score` with the latency, interleaved with dense; in less time where it is `brief`.

        In so many fresh `processes`, or 0: in this one. Peak memory and energy too, where the study
        asks for them. What is the dense model itself has its figures: measured against itself it
        would come to 100.7 %.
        """
        zeros = pruned.masks.final()
        key = self._key(pruned, zeros)
        score = self._timed_by(pruned, zeros, key, score, brief=brief, processes=processes)
        score = self._resources(pruned, zeros, key, score)
        elsewhere = {
            name: costs.latency(pruned, costs.score(pruned), brief=brief, processes=processes)
            for name, costs in self._further.items()
        }
        return score.evolve(elsewhere=elsewhere)

    def _timed_by(
        self,
        pruned: Pruned,
        zeros: Mapping[str, Tensor],
        key: str,
        score: Score,
        *,
        brief: bool,
        processes: int,
    ) -> Score:
        if _whole(pruned):
            return score.evolve(latency=score.latency.of_dense()).beside(self.dense_score)
        kind = "brief" if brief else f"latency{processes or ''}"
        kept = self.figures.recall(kind, key) or (
            self.figures.recall("latency", key) if brief else None
        )
        if kept is None:
            if self.figures.recorded:
                return self._predict_latency(pruned, score)
            seconds = _BRIEF if brief else _SECONDS
            kept = self._measure(pruned, zeros, processes=processes, seconds=seconds).to_json()
            self.figures.keep(kind, key, kept)
        return self._with(Latency(**kept), score)

    def _with(self, found: Latency, score: Score) -> Score:
        return measure.with_latency(score, found, self.target.batch).beside(self.dense_score)

    def _predict_latency(self, pruned: Pruned, score: Score) -> Score:
        """Of a plan that the recorded run has not measured; the score says so."""
        score = self._with(
            self.figures.predict_latency(self.architecture, pruned.resolved.kept), score
        )
        said = f"latency was predicted: {self.target.recorded} has not measured this plan"
        return score.evolve(unavailable=tuple(dict.fromkeys((*score.unavailable, said))))

    @functools.cached_property
    def dense_score(self) -> Score:
        """The dense model's latency, at a ratio of 1 exactly, with the interval of its milliseconds
        over processes."""
        kept = self.figures.recall("dense", self.architecture)
        if kept is None:
            if self.figures.recorded:
                raise self.figures.missing("the dense model")
            inputs, target = self.inputs, self.target
            timed = measure.time_artefact(
                self.dense, None, inputs, target, processes=_PROCESSES, budget_s=_CALIBRATED
            )
            kept = timed.to_json()
            self.figures.keep("dense", self.architecture, kept)
        score = measure.with_latency(Score(), Latency(**kept), self.target.batch)
        return score.evolve(latency=score.latency.of_dense())

    def on(self, target: str) -> Costs:
        """The costs on a further target; "" is the study's own."""
        return self._further[target] if target else self

    @property
    def lowers(self) -> bool:
        """Whether layers with zeros run on sparse kernels: then it matters where the zeros lie."""
        return lower.lowers(self.target)

    def time_plan(self, pruned: Pruned) -> Latency:
        """A first look at the latency of what is not worth keeping. Raises InputError where nothing
        is measured."""
        if self.figures.recorded:
            raise self.figures.missing("a profile of the target")
        return self._measure(pruned, pruned.masks.final(), seconds=_BRIEF)

    def with_stored_size(self, model: nn.Module, pruned: Pruned, score: Score) -> Score:
        """`score` with the size of the file of this model, trained now, and what it compresses to,
        where asked for.

        Exported as it will ship: a limit on its size is verified on that file, to the byte.
        """
        finished, zeros = _as_pruned(model, pruned)
        if self._graphs is not None and self._sizes:
            shipped = measure.artefact(model, self.inputs.rows(2), self.target)
            score = score.evolve(size_bytes=measure.size_bytes(shipped))
            return compress_score(shipped, None, score, self._asked)
        return compress_score(self.artefact_of(finished, zeros), model, score, self._asked)

    def _resources(
        self,
        pruned: Pruned,
        zeros: Mapping[str, Tensor],
        key: str,
        score: Score,
        *,
        final: bool = False,
    ) -> Score:
        """With what a call needs beside time, as far as it is asked for; `final`: of a trained
        model, measured again."""
        kind, anew = (
            "final-resources" if final else "resources",
            final and not self.figures.recorded,
        )
        kept = {} if anew else dict(self.figures.recall(kind, key) or {})
        known = resources_of({"resources": kept, **kept})
        missing = [name for name in self._asked if is_resource(name) and name not in known]
        if self.figures.recorded and (unknown := sorted(missing)):
            raise self.figures.missing(f"the {' and '.join(unknown)} of this plan")
        if (
            new := resources.measure_resources(
                self._time_artefact(pruned, zeros), self.inputs, self.target, missing
            )
            if missing
            else {}
        ):
            known |= new
            self.figures.keep(kind, key, known)
        return score.evolve(resources={**score.resources, **known})

    def of_finished(self, model: nn.Module, pruned: Pruned, score: Score, processes: int) -> Score:
        """As `latency`, of a model that is trained and whose masks are done: its zeros are the
        masks.

        Measured anew each time, and recorded: a recorded target answers the last figure.
        """
        if _whole(pruned):
            return self.with_stored_size(model, pruned, self.latency(pruned, score))
        finished, zeros = _as_pruned(model, pruned)
        key, kind = self._key(finished, zeros), f"final{processes}"
        if not self.figures.recorded:
            self.figures.keep(
                kind, key, self._measure(finished, zeros, processes=processes).to_json()
            )
        kept = self.figures.recall(kind, key)
        score = (
            self._predict_latency(finished, score)
            if kept is None
            else self._with(Latency(**kept), score)
        )
        score = self._resources(
            finished, zeros, key, self.with_stored_size(model, pruned, score), final=True
        )
        elsewhere = {
            name: costs.of_finished(
                model, pruned, score.on(name).fill_from(costs.score(finished)), processes
            )
            for name, costs in self._further.items()
        }
        return score.evolve(elsewhere=elsewhere)

    def _measure(
        self,
        pruned: Pruned,
        zeros: Mapping[str, Tensor],
        *,
        processes: int = 0,
        seconds: float = _SECONDS,
    ) -> Latency:
        return measure.time_artefact(
            self._time_artefact(pruned, zeros),
            self.dense,
            self.inputs,
            self.target,
            processes=processes,
            budget_s=seconds,
        )

    def _time_artefact(self, pruned: Pruned, zeros: Mapping[str, Tensor]) -> Any:
        """The artefact as the target runs it: on `eager_sparse`, layers with zeros on their fastest
        kernels."""
        artefact = self.artefact_of(pruned, zeros)
        if not zeros or not self.lowers:
            return artefact
        return lower.lower(artefact, self.inputs, self.target, _Decisions(self)).model

    def artefact_of(self, pruned: Pruned, zeros: Mapping[str, Tensor]) -> Any:
        """What the target runs of a pruned model, `zeros` set: an ONNX file, or the module."""
        if self._graphs is None:
            return replace_tensors(
                pruned.model,
                lambda name, tensor: (
                    tensor * zeros[name].to(tensor) if name in zeros else tensor.clone()
                ),
            )
        content = self._graphs.cut(pruned, zeros)
        return (
            measure.artefact(pruned.model, self.inputs, self.target)
            if content is None
            else self._in_dtype(content)
        )

    def _in_dtype(self, content: bytes) -> bytes:
        """The graph in the target's dtype; the last one is kept, because several figures are taken
        of the same."""
        if self._converted[0] != content:
            fitted = quantization.fit_to_dtype(content, self._runtime, self.target, [self.inputs])
            self._converted = (content, fitted)
        return self._converted[1]

    def _key(self, pruned: Pruned, zeros: Mapping[str, Tensor]) -> str:
        shapes = {
            name: list(parameter.shape) for name, parameter in pruned.model.named_parameters()
        }
        masks: dict[str, Any] = {name: int(keep.sum()) for name, keep in zeros.items()}
        # There the latency depends on where zeros lie
        if self.lowers:
            masks = {name: [count, *lower.patterns(zeros[name])] for name, count in masks.items()}
        return _digest([self.architecture, shapes, masks])

    def _shapes(self) -> list[list[int]]:
        return [list(tensor.shape) for tensor in self.inputs.tensors()]


@dataclass(frozen=True)
class _Decisions:
    """What was measured of single layers, kept as all figures are: a search does not time a layer
    again and again."""

    costs: Costs

    def get(self, key: str, /) -> dict[str, Any] | None:
        kept: dict[str, Any] | None = self.costs.figures.recall("lowering", self._full(key))
        return kept

    def __setitem__(self, key: str, value: dict[str, Any], /) -> None:
        self.costs.figures.keep("lowering", self._full(key), value)

    def _full(self, key: str) -> str:
        return _digest([key, machine(), torch.__version__])


def _as_pruned(model: nn.Module, pruned: Pruned) -> tuple[Pruned, dict[str, Tensor]]:
    """A trained model whose masks are done, as what was pruned to it, and where its parameters are
    not zero."""
    zeros = {
        name: parameter.detach() != 0
        for name, parameter in model.named_parameters()
        if bool((parameter == 0).any())
    }
    return replace(pruned, model=model, masks=Masks(model)), zeros


def _whole(pruned: Pruned) -> bool:
    """Whether a plan has left the dense model as it was."""
    cut = any(not bool(cut.keep.all()) for cut in pruned.cuts)
    return not (cut or pruned.removed or pruned.masks.final())


def _on(study: Study, target: Target) -> Study:
    """A study as if a further target were its own, with the limits that hold there."""
    limits = (
        replace(limit, target="") for limit in study.budget.limits if limit.target == target.name
    )
    target = replace(target, recorded=study.target.recorded)
    return replace(study, target=target, budget=Budget(tuple(limits)), further=())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
