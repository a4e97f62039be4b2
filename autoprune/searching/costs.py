"""What a plan costs on the target, without training it: its graph is cut out of the dense one, measured beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import plugins
from autoprune.measuring import lowering, measure, precision, resources
from autoprune.measuring.graphs import Graphs
from autoprune.measuring.latency import Latency
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.masks import Masks
from autoprune.pruning.pruned import Pruned
from autoprune.pruning.shrink import replace_tensors
from autoprune.run import Run
from autoprune.score import Score
from autoprune.searching.asked import asked, compressed
from autoprune.study import Study
from autoprune.target import Budget, Target
from autoprune.task import Inputs

__all__ = ["Costs"]


_SECONDS = 1.5  # at most, for one latency: it ends as soon as the ratio is known to 1 %, which a busy machine delays
_BRIEF = 0.3  # the same for a first look


class Costs:
    """Measures plans for one dense model on the study's target; figures are kept in the run, none is taken twice.

    Costs do not depend on the values of the weights, only on what was cut and what is zero: the dense model may be
    trained after this was made. `note` says where graphs cannot be sliced and are exported anew instead; `leaves_out`:
    whether a plan without some blocks takes no export.
    """

    def __init__(
        self, study: Study, model: nn.Module, coupling: Coupling, inputs: Inputs, run: Run | None = None
    ) -> None:
        self.target, self.inputs, self._run = study.target, inputs.rows(study.target.batch), run
        runtime = plugins.load("runtime", study.target.runtime, (study.folder,))()
        self._runtime, self._converted = runtime, (b"", b"")
        self._asked = asked(study)
        self._graphs = (
            Graphs(model, coupling, inputs.rows(2), study.target.batch) if runtime.artefact == "onnx" else None
        )
        self.note = self._graphs.note if self._graphs else None
        self.leaves_out = self._graphs.leaves_out if self._graphs else True
        self.dense: Any = (
            self._shipped(self._graphs.dense)
            if self._graphs
            else replace_tensors(model, lambda _, tensor: tensor.clone())
        )
        shapes = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
        code = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in study.task.sources]
        self.architecture = _digest(
            [repr(model), code, shapes, study.target.to_json(), runtime.version(), _machine(), self._shapes()]
        )
        self._memory: dict[str, Any] = {}
        self._further = {
            target.name: Costs(_on(study, target), model, coupling, inputs, run) for target in study.further
        }

    def score(self, pruned: Pruned, *, sized: bool = True) -> Score:
        """FLOPs, parameters, nonzero parameters at the final ratio, size of the file that the target runs; no latency.

        The nonzero count alone depends on the weights' values, and is counted anew. Where it is not `sized`, there is
        no file either, and nothing is kept: that is for plans which are only thought of.
        """
        zeros = pruned.masks.final()
        key = self._key(pruned, zeros)
        kept = self._recall("costs", key)
        if kept is None:
            size = measure.size_bytes(self._artefact(pruned, zeros)) if sized else None
            kept = measure.costs(pruned.model, self.inputs).updated(nonzero_params=None, size_bytes=size).to_json()
            if sized:
                self._keep("costs", key, kept)
        if sized and "size_compressed" in self._asked and kept.get("size_compressed_bytes") is None:
            kept = compressed(self._artefact(pruned, zeros), None, Score.from_json(kept), self._asked).to_json()
            self._keep("costs", key, kept)
        nonzero = sum(
            int(torch.count_nonzero(parameter * zeros[name] if name in zeros else parameter))
            for name, parameter in pruned.model.named_parameters()
        )
        return Score.from_json(kept).updated(nonzero_params=nonzero)

    def latency(self, pruned: Pruned, score: Score, *, brief: bool = False, processes: int = 0) -> Score:
        """`score` with the latency, interleaved with dense; in less time where it is `brief`.

        In so many fresh `processes`, or 0: in this one. Peak memory and energy too, where the study asks for them.
        """
        zeros = pruned.masks.final()
        key, kind = self._key(pruned, zeros), "brief" if brief else f"latency{processes or ''}"
        kept = self._recall(kind, key) or (self._recall("latency", key) if brief else None)
        if kept is None:
            seconds = _BRIEF if brief else _SECONDS
            kept = self._measured(pruned, zeros, processes=processes, seconds=seconds).to_json()
            self._keep(kind, key, kept)
        score = measure.with_latency(score, Latency(**kept), self.target.batch)
        score = self._resources(pruned, zeros, key, score, anew=False)
        elsewhere = {
            name: costs.latency(pruned, costs.score(pruned), brief=brief, processes=processes)
            for name, costs in self._further.items()
        }
        return score.updated(elsewhere=elsewhere)

    def on(self, target: str) -> Costs:
        """The costs on a further target; "" is the study's own."""
        return self._further[target] if target else self

    def timed(self, pruned: Pruned) -> Latency:
        """A first look at the latency of what is not worth keeping."""
        return self._measured(pruned, pruned.masks.final(), seconds=_BRIEF)

    def stored(self, model: nn.Module, pruned: Pruned, score: Score) -> Score:
        """`score` with what the file of this model, trained now, compresses to, where the study asks for that."""
        finished, zeros = _finished(model, pruned)
        return compressed(self._artefact(finished, zeros), model, score, self._asked)

    def _resources(self, pruned: Pruned, zeros: Mapping[str, Tensor], key: str, score: Score, *, anew: bool) -> Score:
        found = {} if anew else dict(self._recall("resources", key) or {})
        missing = [name for name in self._asked if score.updated(**found).figure(name) is None or anew]
        if new := resources.measured(self._timed(pruned, zeros), self.inputs, self.target, missing) if missing else {}:
            found |= new
            if not anew:
                self._keep("resources", key, found)
        return score.updated(**found)

    def of_finished(self, model: nn.Module, pruned: Pruned, score: Score, processes: int) -> Score:
        """As `latency`, of a model that is trained and whose masks are done: its zeros are the masks."""
        finished, zeros = _finished(model, pruned)
        found = self._measured(finished, zeros, processes=processes)
        score = self.stored(model, pruned, measure.with_latency(score, found, self.target.batch))
        score = self._resources(finished, zeros, "", score, anew=True)
        elsewhere = {
            name: costs.of_finished(model, pruned, score.on(name).completed(costs.score(finished)), processes)
            for name, costs in self._further.items()
        }
        return score.updated(elsewhere=elsewhere)

    def _measured(
        self, pruned: Pruned, zeros: Mapping[str, Tensor], *, processes: int = 0, seconds: float = _SECONDS
    ) -> Latency:
        return measure.timed(
            self._timed(pruned, zeros), self.dense, self.inputs, self.target, processes=processes, budget_s=seconds
        )

    def _timed(self, pruned: Pruned, zeros: Mapping[str, Tensor]) -> Any:
        """The artefact as the target runs it: on torch's eager runtime, layers with zeros on their fastest kernels."""
        artefact = self._artefact(pruned, zeros)
        if self._graphs is not None or not zeros or not lowering.lowers(self.target):
            return artefact
        return lowering.lower(artefact, self.inputs, self.target, _Decisions(self)).model

    def _artefact(self, pruned: Pruned, zeros: Mapping[str, Tensor]) -> Any:
        if self._graphs is None:
            return replace_tensors(
                pruned.model, lambda name, tensor: tensor * zeros[name].to(tensor) if name in zeros else tensor.clone()
            )
        content = self._graphs.cut(pruned, zeros)
        return measure.artefact(pruned.model, self.inputs, self.target) if content is None else self._shipped(content)

    def _shipped(self, content: bytes) -> bytes:
        """The graph in the target's dtype; the last one is kept, because several figures are taken of the same."""
        if self._converted[0] != content:
            fitted = precision.fitted(content, self._runtime, self.target, [self.inputs])
            self._converted = (content, fitted)
        return self._converted[1]

    def _key(self, pruned: Pruned, zeros: Mapping[str, Tensor]) -> str:
        shapes = {name: list(parameter.shape) for name, parameter in pruned.model.named_parameters()}
        masks: dict[str, Any] = {name: int(keep.sum()) for name, keep in zeros.items()}
        if self._graphs is None and lowering.lowers(self.target):  # there the latency depends on where zeros lie
            masks = {name: [count, *lowering.patterns(zeros[name])] for name, count in masks.items()}
        return _digest([self.architecture, shapes, masks])

    def _shapes(self) -> list[list[int]]:
        return [list(tensor.shape) for tensor in self.inputs.tensors()]

    def _recall(self, kind: str, key: str) -> Any:
        found = self._memory.get(kind + key)
        return found if found is not None or self._run is None else self._run.cached(kind, key)

    def _keep(self, kind: str, key: str, value: Any) -> None:
        self._memory[kind + key] = value
        if self._run is not None:
            self._run.cache(kind, key, value)


@dataclass(frozen=True)
class _Decisions:
    """What was measured of single layers, kept as all figures are: a search does not time a layer again and again."""

    costs: Costs

    def get(self, key: str, /) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.costs._recall("lowering", self._full(key))
        return found

    def __setitem__(self, key: str, value: dict[str, Any], /) -> None:
        self.costs._keep("lowering", self._full(key), value)

    def _full(self, key: str) -> str:
        return _digest([key, _machine(), torch.__version__])


def _finished(model: nn.Module, pruned: Pruned) -> tuple[Pruned, dict[str, Tensor]]:
    """A trained model whose masks are done, as what was pruned to it, and where its parameters are not zero."""
    zeros = {
        name: parameter.detach() != 0 for name, parameter in model.named_parameters() if bool((parameter == 0).any())
    }
    return Pruned(model, Masks(model), pruned.cuts, pruned.removed), zeros


def _on(study: Study, target: Target) -> Study:
    """A study as if a further target were its own, with the limits that hold there."""
    limits = (replace(limit, target="") for limit in study.budget.limits if limit.target == target.name)
    return replace(study, target=target, budget=Budget(tuple(limits)), further=())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _machine() -> str:
    import platform

    return f"{platform.node()} {platform.machine()} {platform.processor()}"
