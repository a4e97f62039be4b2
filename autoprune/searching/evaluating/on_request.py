"""What a study asks for beside counts, size and latency: it costs time, so only what is asked for
is measured."""

from __future__ import annotations

from typing import Any

from torch import nn

from autoprune.errors import StudyError
from autoprune.measuring import resources
from autoprune.quantities import measured_apart
from autoprune.score import Score
from autoprune.study import Study

__all__ = ["asked_quantities", "compress_score"]


def asked_quantities(study: Study) -> tuple[str, ...]:
    """The quantities that are limited or an objective, and else not measured.

    Raises StudyError, with the key, for one that cannot be measured on this machine.
    """
    limited = {limit.quantity for limit in study.budget.limits}
    asked = dict.fromkeys((*sorted(limited), *study.search.objectives))
    wanted = tuple(name for name in asked if measured_apart(name))
    for name in wanted:
        if (reason := resources.unavailable(name, study.target)) is not None:
            key = f"budget.{name}" if name in limited else "search.objectives"
            raise StudyError(
                f"{name} cannot be measured for target {study.target.name!r}: {reason}", key=key
            )
    return wanted


def compress_score(
    artefact: bytes | nn.Module, model: nn.Module | None, score: Score, wanted: Any
) -> Score:
    """`score` with what the file compresses to, where that is wanted; with the values of `model`,
    where it is given."""
    if "size_compressed" not in wanted:
        return score
    return score.evolve(
        size_compressed_bytes=resources.compressed_bytes(resources.stored_file(artefact, model))
    )
