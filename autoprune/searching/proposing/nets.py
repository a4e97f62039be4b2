"""Nets: plans that come to one net, untrained, are one; judging it twice tells nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

from autoprune.plan import Plan
from autoprune.pruning.pruner import Pruner

__all__ = ["Nets"]


class Nets:
    """The nets of some plans. Whether two plans that mask equal shares come to one is told by the
    masks themselves: on the same weights techniques that differ in training alone, or criteria that
    rank alike, do.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        # By what is cheap to tell of the net
        self._plans: dict[Hashable, list[Plan]] = {}
        self._masks: dict[Plan, bytes] = {}

    def add(self, plan: Plan) -> None:
        """Remember the net that a plan comes to."""
        if plan not in self:
            self._plans.setdefault(self._pruner.resolve(plan).shape_id, []).append(plan)

    def __contains__(self, plan: object) -> bool:
        assert isinstance(plan, Plan)
        alike = self._plans.get(self._pruner.resolve(plan).shape_id, [])
        if not alike:
            return False
        net = self._pruner.resolve(plan).net_id
        if any(self._pruner.resolve(other).net_id == net for other in alike):
            return True
        return any(self._mask_digest(other) == self._mask_digest(plan) for other in alike)

    def _mask_digest(self, plan: Plan) -> bytes:
        """A digest of the masks that are set on what the cut left."""
        if plan not in self._masks:
            pruned = self._pruner.apply(plan)
            digest = hashlib.sha256()
            for name, keep in sorted(pruned.masks.final().items()):
                digest.update(name.encode() + keep.cpu().numpy().tobytes())
            self._masks[plan] = digest.digest()
        return self._masks[plan]
