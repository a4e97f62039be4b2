"""Listener: who is told how a search goes."""

from __future__ import annotations

from typing import Protocol

from autoprune.score import Candidate

__all__ = ["CLOSING_S", "FRESH_S", "Listener", "Quiet"]

FRESH_S = 12.0  # about what a plan takes in five fresh processes
# About what follows the last trial: the best measured again, exported, verified in a fresh process
CLOSING_S = 30.0


class Listener(Protocol):
    """Told of every step of a search."""

    def on_plan(self, seconds: float | None, trials: int) -> None:
        """Before the first trial: how long the whole may take."""

    def on_step(self, trial: int, what: str) -> None:
        """A piece of work begins."""

    def progress(self, share: float) -> None:
        """How much of that piece is done, in [0, 1]."""

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        """A trial ended; the best inside the budget so far."""

    def note(self, text: str) -> None:
        """Something worth reading."""


class Quiet:
    """A listener that hears nothing."""

    def on_plan(self, seconds: float | None, trials: int) -> None:
        """Nothing."""

    def on_step(self, trial: int, what: str) -> None:
        """Nothing."""

    def progress(self, share: float) -> None:
        """Nothing."""

    def on_trial(self, candidate: Candidate, best: Candidate | None) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
