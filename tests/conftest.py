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


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a background job; the tests' own processes must hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
