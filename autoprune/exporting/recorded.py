"""What an artefact says about itself, read when it is first asked for."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import plugins, quantities
from autoprune.budget import Budget, Limit
from autoprune.errors import InputError
from autoprune.exporting import artefact, lowered
from autoprune.exporting.load import search_folders
from autoprune.files import read_mapping
from autoprune.formats.onnx import Onnx
from autoprune.formats.safetensors import Safetensors
from autoprune.measuring import measure
from autoprune.measuring.runtime_module import Deployed
from autoprune.measuring.timing import subprocesses
from autoprune.pruning.surgery.architecture import Architecture
from autoprune.score import Score
from autoprune.target import Target
from autoprune.task import Inputs, Task
from autoprune.training import tasks

__all__ = ["NotHere", "Recorded", "Skipped"]


class Skipped(Exception):
    """A check cannot be made: it needs model or data of a study made in Python."""


class NotHere(Exception):
    """The study is the recorded one but cannot be built on this machine; its cause is the
    InputError that says why."""


@dataclass
class Recorded:
    """The records of an artefact, its modules and the task behind it; a broken file raises
    something at every use."""

    folder: Path
    given: Task | None = None
    _artefacts: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @cached_property
    def study(self) -> dict[str, Any]:
        """The resolved study."""
        return read_mapping(self.folder / artefact.STUDY)

    @cached_property
    def record(self) -> dict[str, Any]:
        """score.json."""
        return read_mapping(self.folder / artefact.SCORE)

    @cached_property
    def score(self) -> Score:
        """The score of the exported model."""
        return Score.from_json(self.record)

    @cached_property
    def dense_score(self) -> Score:
        """The score of the dense model."""
        return Score.from_json(self.record["dense"])

    @cached_property
    def target(self) -> Target:
        """Where the score was measured."""
        return Target(**self.record["target"])

    @cached_property
    def further(self) -> list[Target]:
        """Targets beside it that the budget has limits on."""
        return [Target(**target) for target in self.record.get("further", [])]

    @cached_property
    def budget(self) -> Budget:
        """The budget the model was chosen for."""
        quantities.find(self.record["budget"], self.folders)
        return Budget.parse(self.record["budget"])

    @property
    def foreign(self) -> str | None:
        """Why figures of time do not compare with those measured here, or None."""
        if self.record.get("version", 1) < 2:
            return "the record is of a version that did not say on which machine it was measured"
        measured, here = self.record["machine"], subprocesses.machine()
        return (
            None
            if measured == here
            else f"it was measured on another machine ({measured}); this is {here}"
        )

    def on(self, name: str) -> Target:
        """The target of that name; "" is the study's own."""
        return (
            next(target for target in self.further if target.name == name) if name else self.target
        )

    def limits(self, name: str, *quantities: str) -> list[Limit]:
        """Those of the budget on some quantities that hold on a target."""
        return [
            limit
            for limit in self.budget.limits
            if limit.quantity in quantities and limit.target == name
        ]

    def artefacts(self, name: str = "") -> tuple[Any, Any]:
        """What the target's runtime takes of this model and of the dense one; no weight's value
        matters to latency."""
        if name not in self._artefacts:
            target = self.on(name)
            batch = self.reference[0].rows(target.batch)
            own: Any = self.runs_file if self.runs == "onnx" else self.lowered
            candidate = measure.artefact(self.model, batch, target) if name else own
            self._artefacts[name] = candidate, measure.artefact(self.dense, batch, target)
        return self._artefacts[name]

    @cached_property
    def architecture(self) -> Architecture:
        """Shapes of the cut tensors, and what else the cut model has of its own."""
        return artefact.read_plan(self.folder)[1]

    @cached_property
    def reference(self) -> tuple[Inputs, list[Tensor]]:
        """Inputs, and the outputs recorded before anything was exported."""
        return artefact.read_reference(self.folder / artefact.REFERENCE)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where the study's own modules are looked for."""
        return search_folders(self.folder, self.study)

    @cached_property
    def task(self) -> Task:
        """The task that was given, or the one of the study. Raises Skipped or NotHere where there
        is none."""
        if self.given is not None:
            return self.given
        # Those of the artefact are what is checked
        section = {**self.study["task"], "weights": None}
        if section["model"] == "python":
            raise Skipped(
                "not checked: model and data of this study were given in Python, and are only there"
            )
        try:
            return tasks.build(section, self.folders, tasks.recipe(section["training"]))
        except InputError as problem:
            if self.record["files"][artefact.STUDY] == artefact.digest(
                self.folder / artefact.STUDY
            ):
                raise NotHere from problem
            raise

    @cached_property
    def dense(self) -> nn.Module:
        """The dense module; its weights are those of the factory, unless the module itself was
        given."""
        given = self.task.given
        with torch.random.fork_rng(devices=[]):
            return (self.task.build() if given is None else copy.deepcopy(given)).cpu().eval()

    def template(self) -> nn.Module:
        """A module of the recorded architecture whose weights are not loaded."""
        return self.architecture.build(self.dense).cpu().eval()

    @cached_property
    def model(self) -> nn.Module:
        """The module of the recorded architecture and weights."""
        model = self.template()
        Safetensors.fill(model, self.folder / artefact.WEIGHTS)
        return model

    @cached_property
    def lowered(self) -> nn.Module:
        """`model` as the target's runtime runs it: on sparse kernels where the artefact records
        some."""
        return lowered.apply_lowering(self.folder, self.model)

    @cached_property
    def formats(self) -> dict[str, str]:
        """Name of every format -> its file; where the record is broken, the bundled ones whose file
        is there."""
        try:
            return {
                str(name): Path(str(filename)).name
                for name, filename in self.record["formats"].items()
            }
        except (ValueError, KeyError, AttributeError):
            bundled = {
                name: plugins.load("format", name)().filename for name in plugins.names("format")
            }
            return {
                name: filename
                for name, filename in bundled.items()
                if (self.folder / filename).exists()
            }

    @cached_property
    def runs_file(self) -> Path:
        """The file that the target runs: of the format, or converted from it to the target's dtype.

        Raises ModelError where it names other files, or operators of another library.
        """
        of_format = self.formats[self.runs]
        path = self.folder / Path(str(self.record.get("runs") or of_format)).name
        if self.runs == "onnx":
            Onnx.content(path)
        return path

    @cached_property
    def deployed(self) -> Deployed:
        """What the target's runtime gives, as a module."""
        return Deployed(
            self.runs_file if self.runs == "onnx" else self.model, self.model, self.target
        )

    @property
    def runs(self) -> str:
        """Name of the format whose file the target runs."""
        return artefact.runs(self.target.runtime, self.folders)
