"""One thread for every test: small models are faster so, and figures repeat."""

import signal

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# a background job; the tests' own processes must hear Ctrl-C
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--promise", action="append", help="run only the tests marked with this promise"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell the report which promises a test shows (scripts/promises.py); keep those that were asked for."""
    for item in items:
        item.user_properties += [
            ("promise", name) for mark in item.iter_markers("promise") for name in mark.args
        ]
    if wanted := config.getoption("--promise"):
        items[:] = [
            item for item in items if {name for _, name in item.user_properties} & set(wanted)
        ]
