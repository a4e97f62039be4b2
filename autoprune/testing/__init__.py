"""The laws of plug-ins, to hold one of your own to them, and a runtime whose latency is known.

`check_technique(Pairs())` in a test of yours runs every law that the bundled techniques are held
to, and raises AssertionError with what was broken.
"""

from __future__ import annotations

from autoprune.testing.criteria import check_criterion
from autoprune.testing.fake_runtime import FakeRuntime
from autoprune.testing.formats import check_format
from autoprune.testing.quantities import check_quantity
from autoprune.testing.runtimes import check_runtime
from autoprune.testing.techniques import check_technique

__all__ = [
    "FakeRuntime",
    "check_criterion",
    "check_format",
    "check_quantity",
    "check_runtime",
    "check_technique",
]
