"""A small model, prepared once for the tests of a file."""

from __future__ import annotations

import pytest
from small_screening import screening
from small_search import quicker

from autoprune.searching.evaluating.preparation import Prepared, prepare


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    with pytest.MonkeyPatch.context() as patch:
        quicker(patch)
        return prepare(screening())
