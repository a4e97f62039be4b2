"""Measured figures by kind and key: in memory, in the run, and in the run whose figures a
`recorded` target answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from autoprune.errors import InputError
from autoprune.measuring.prediction.predictor import Predictor
from autoprune.measuring.timing.latency import Latency
from autoprune.run import Run
from autoprune.target import Target

__all__ = ["Figures"]


class Figures:
    """What was measured is kept, and never measured twice; with a recorded target nothing is
    measured at all."""

    def __init__(self, target: Target, run: Run | None) -> None:
        """`run` keeps the figures; what `target.recorded` has of them is taken over."""
        self._run, self._memory = run, dict[tuple[str, str], Any]()
        self._source = Run(Path(target.recorded)) if target.recorded else None
        self._name = target.name

    @property
    def recorded(self) -> bool:
        """Whether every figure is another run's."""
        return self._source is not None

    def recall(self, kind: str, key: str) -> Any:
        """The figure that was kept, a JSON value, or None."""
        value = self._memory.get((kind, key))
        if value is None and self._run is not None:
            value = self._run.recall(kind, key)
        if (
            value is None
            and self._source is not None
            and (value := self._source.recall(kind, key)) is not None
        ):
            self.keep(kind, key, value)
        return value

    def keep(self, kind: str, key: str, value: Any) -> None:
        """Keep a JSON value."""
        self._memory[kind, key] = value
        if self._run is not None:
            self._run.cache(kind, key, value)

    def architecture(self, own: str, portable: str) -> str:
        """What keys of this model on this target begin with: `own`, or what the recorded run had
        for `portable`.

        Raises InputError where that run has measured nothing of this model.
        """
        if self._source is None:
            if self._run is not None:
                self._run.cache("architecture", portable, own)
            return own
        known = self.recall("architecture", portable)
        if known is None:
            raise self.missing(
                "anything of this model on this target; it repeats the study of that run"
            )
        return str(known)

    def missing(self, what: str) -> InputError:
        """The error for a figure that the recorded run does not have."""
        folder = None if self._source is None else self._source.folder
        return InputError(
            f"target {self._name} answers what {folder} has recorded, and that run has not "
            f"measured {what}"
        )

    def predictor(self, architecture: str) -> Predictor | None:
        """The predictor of the recorded run; None where it kept none."""
        for kind in ("profile", "profiled"):
            for key in (architecture, f"{architecture}-blocks"):
                if (kept := self.recall(kind, key)) is not None:
                    return Predictor.from_json(kept)
        return None

    def predict_latency(self, architecture: str, keep: Mapping[str, Tensor]) -> Latency:
        """A latency that the recorded run has not measured, by its predictor. Raises InputError
        where it has none."""
        predictor = self.predictor(architecture)
        if predictor is None:
            raise self.missing("the latency of this plan, nor a profile that would predict it")
        predicted = predictor.predict(dict(keep))
        ms, ratio = predicted.ms, predicted.ratio
        return Latency(
            ms,
            ms * predicted.low / ratio,
            ms * predicted.high / ratio,
            ratio,
            predicted.low,
            predicted.high,
            0,
            False,
        )
