"""The laws of `plugins.Quantity`, for every bundled quantity."""

from __future__ import annotations

import pytest

from autoprune import plugins
from autoprune.testing import check_quantity


@pytest.mark.parametrize("name", plugins.names("quantity"))
def test_laws(name: str) -> None:
    check_quantity(name)
