"""The committed tables of the studies are what the committed cells give."""

import shutil
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest
from tiny import ROOT

from pelap.core import files
from workflow.studies.collapse.summarise import over_enough_seeds
from workflow.studies.paper.page import Part, over_parts, page

RESULTS = ROOT / "results"


def same(found: pd.DataFrame, file: Path) -> None:
    pd.testing.assert_frame_equal(found, files.read_csv(file), check_dtype=False, rtol=1e-9)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("study", "folder"), [("choosing", "choosing"), ("seeds", "pruning_study"), ("tasks", "tasks")]
)
def test_summaries_of_cells(study: str, folder: str, tmp_path: Path) -> None:
    shutil.copytree(RESULTS / folder, tmp_path / "root", ignore=shutil.ignore_patterns("*.png", "tasks.md"))
    tables = [file.name for file in (RESULTS / folder).glob("*.csv")]
    for name in tables:
        (tmp_path / "root" / name).unlink()
    import_module(f"workflow.studies.{study}.summarise").summarise(tmp_path / "root")
    for name in tables:
        same(files.read_csv(tmp_path / "root" / name), RESULTS / folder / name)
    if study == "tasks":
        written = (tmp_path / "root" / "tasks.md").read_text(encoding="utf-8")
        assert written == (RESULTS / folder / "tasks.md").read_text(encoding="utf-8")


def test_controls_over_seeds() -> None:
    root = RESULTS / "collapse_study"
    same(over_enough_seeds(files.read_csv(root / "cells.csv"))[0], root / "summary.csv")


def test_parts_of_the_paper_over_seeds() -> None:
    root = RESULTS / "paper-cpu"
    parts = [Part(**part) for part in files.read_json(root / "protocol.json")["parts"]]
    table = over_parts(files.read_csv(root / "cells.csv"), parts)
    same(table.replace("", None), root / "table.csv")
    text = (root / "table.md").read_text(encoding="utf-8").splitlines()
    shown = [line for line in text if line.startswith("|")]
    assert [line for line in page(table, parts, {}).splitlines() if line.startswith("|")] == shown
