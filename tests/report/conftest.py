from pathlib import Path

import pytest
from report_page import context, without_report
from synthetic_run import build_run, turn_to_sounds

from pelap.core.paths import RunPaths
from pelap.stages import report


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """A run with its report."""
    paths = build_run(tmp_path_factory.mktemp("made") / "run")
    report.run(context(paths))
    return paths


@pytest.fixture(scope="session")
def heard(made: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The same run, as if its models made sounds of prompts."""
    paths = without_report(made, tmp_path_factory.mktemp("heard") / "run")
    turn_to_sounds(paths)
    report.run(context(paths))
    return paths


@pytest.fixture
def paths(made: RunPaths, tmp_path: Path) -> RunPaths:
    return without_report(made, tmp_path / "run")


@pytest.fixture
def without_svg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn, but not written, which is most of a page's time."""
    monkeypatch.setattr("pelap.report.page.to_svg", lambda *_: "")
