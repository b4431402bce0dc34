"""Shared by all tests."""

import signal

import pytest
import torch


def pytest_configure() -> None:
    """What was started in the background may have been told to ignore Ctrl-C, and would tell its children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
