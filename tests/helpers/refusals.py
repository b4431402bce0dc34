"""Commands that have to fail with one line."""

import pytest

from pelap.cli import main


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What the command says of its failure: a line of its own, and exit status 2."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pelap: error: ")
    assert said.count("\n") == 1
    return said.removeprefix("pelap: error: ")
