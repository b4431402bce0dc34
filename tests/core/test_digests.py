"""A folder of results knows its files: a table that is another, shorter or absent is refused."""

import codecs
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import VARIANTS, build_run
from tiny import expect_error

from pelap.core import files
from pelap.core.digests import demand_unchanged, result_dir, write_digests
from pelap.core.errors import ModelError
from pelap.core.paths import DIGESTS
from pelap.report.data import read_run
from pelap.stages.report import show
from workflow.studies.common import finished_cells

TABLE = pd.DataFrame({"step": [0, 1, 2], "loss": [0.5, 0.25, 0.125]})
OTHERS: dict[str, Callable[[Path], object]] = {
    "cut at a line": lambda path: path.write_text(path.read_text()[: path.read_text().rindex("2,")]),
    "another value": lambda path: path.write_text(path.read_text().replace("0.25", "0.26")),
    "absent": lambda path: path.unlink(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with result_dir(tmp_path / "results") as partial:
        files.write_csv(partial / "history.csv", TABLE)
        files.write_csv(partial / "plans" / "a.csv", TABLE)
        files.write_json(partial / "metrics.json", {"a": 1})
        files.write_text(partial / "samples" / "a.png", "a picture")
        files.write_text(partial / "model" / "config.json", "{}")
        write_digests(partial / "model")
    return tmp_path / "results"


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("file", ["history.csv", "plans/a.csv"])
def test_another_file_is_refused(name: str, file: str, folder: Path) -> None:
    demand_unchanged(folder)
    OTHERS[name](folder / file)
    expect_error(
        lambda: demand_unchanged(folder),
        str(folder / file),
        "missing" if name == "absent" else "left here",
        str(folder / DIGESTS),
    )
    with pytest.raises(ModelError):
        demand_unchanged(folder, ModelError)
    (folder / DIGESTS).unlink()  # as version 0.1 left it, or who changed the table deleted it
    demand_unchanged(folder)


def test_pictures_models_and_ends_of_lines_are_left_alone(folder: Path) -> None:
    assert set(files.read_mapping(folder / DIGESTS)) == {"history.csv", "plans/a.csv", "metrics.json"}
    assert set(files.read_mapping(folder / "model" / DIGESTS)) == {"config.json"}
    (folder / "samples" / "a.png").unlink()
    (folder / "model" / "config.json").write_text('{"a": 1}')
    for file in ("history.csv", "metrics.json"):
        (folder / file).write_bytes((folder / file).read_bytes().replace(b"\n", b"\r\n"))
    demand_unchanged(folder)
    expect_error(lambda: demand_unchanged(folder / "model"), "config.json")


def test_what_else_lies_there_is_not_looked_at_and_links_are_followed(folder: Path) -> None:
    os.mkfifo(folder / "notes.csv")  # to read it would never end
    (folder / ".#metrics.json").symlink_to("user@host.1:2")  # as an editor leaves it
    (folder / "zero.json").symlink_to("/dev/zero")
    (folder / "plans").rename(folder.parent / "elsewhere")
    (folder / "plans").symlink_to(folder.parent / "elsewhere")
    (folder / "history.csv").write_bytes(codecs.BOM_UTF8 + (folder / "history.csv").read_bytes())
    demand_unchanged(folder)


def test_the_folder_may_be_named_by_any_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "here").mkdir()
    monkeypatch.chdir(folder.parent / "here")
    demand_unchanged(Path("..") / folder.name)
    (folder / "metrics.json").unlink()
    expect_error(lambda: demand_unchanged(Path("..") / folder.name), "metrics.json: is missing")


@pytest.mark.parametrize("name", ["../x.csv", "/etc/passwd", "a/../../x", "a\0b"])
def test_digests_name_files_below(name: str, folder: Path) -> None:
    files.write_json(folder / DIGESTS, {name: "0" * 64})
    expect_error(lambda: demand_unchanged(folder), str(folder / DIGESTS), "no file below")


@pytest.mark.parametrize(
    "file",
    [
        *("train/pelap/history.csv", "train/invariant/validation.csv", "collapse/epochs.csv"),
        *("score/protocol.json", "prune/changes.csv", "prune/result.json", "distill/history.csv"),
        *("evaluate/budget.csv", "evaluate/metrics.json"),
    ],
)
def test_the_report_refuses_it(file: str, tmp_path: Path) -> None:
    run = build_run(tmp_path)
    for made in {(tmp_path / file).parent, run.evaluate}:
        write_digests(made, (".csv", ".json"))
    read_run("photos", 0, VARIANTS, run)
    digests = files.read_mapping((tmp_path / file).parent / DIGESTS)
    files.write_json((tmp_path / file).parent / DIGESTS, digests | {Path(file).name: "0" * 64})
    expect_error(lambda: read_run("photos", 0, VARIANTS, run), str(tmp_path / file))
    if file.startswith("evaluate"):
        expect_error(lambda: show(run), str(tmp_path / file))


def test_summaries_refuse_it(tmp_path: Path) -> None:
    run = build_run(tmp_path / "photos" / "seed0")
    shutil.copytree(run.root, tmp_path / "photos" / "seed1")
    expect_error(
        lambda: finished_cells(tmp_path, ["metrics"], "all_seeds", None), "seed1", "is of seed 0", "seed0"
    )
    shutil.rmtree(tmp_path / "photos" / "seed1")
    write_digests(run.evaluate, (".json",))
    assert finished_cells(tmp_path, ["metrics"], "all_seeds", None) == [run]
    files.write_json(run.metrics, {"pelap": {"number": 1}})
    expect_error(lambda: finished_cells(tmp_path, ["metrics"], "all_seeds", None), str(run.metrics))
