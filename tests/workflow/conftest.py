"""Shared by the tests of studies."""

import pytest

from workflow.studies import common


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is about tables alone: turning figures into pictures takes most of the time."""
    monkeypatch.setattr(common, "to_png", lambda figure: b"")
