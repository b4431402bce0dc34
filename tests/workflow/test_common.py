"""Summaries take the cells that were asked for, never mix what was made differently, and judge alike."""

import contextlib
import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from refusals import refusal

from pelap.cli import main
from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths
from workflow.studies import common
from workflow.studies.common import CELLS, NAMED_CELLS, finished_cells
from workflow.studies.seeds.summarise import summarise


def cell(root: Path, name: str, loss: float = 1.0, **params: Any) -> RunPaths:
    """A finished cell whose stages noted what they were run with, if anything."""
    run = RunPaths(root / name)
    files.write_json(run.metrics, {"pelap": {"loss": loss}})
    noted = {"dataset": run.root.parent.name, "seed": int(name.rpartition("seed")[2]), **params}
    if params:
        files.write_text(run.stage_params / "train-pelap.yaml", json.dumps(noted))
        files.write_text(run.stage_params / "evaluate.yaml", json.dumps({"evaluate": {"num_images": 8}}))
    return run


def found(root: Path, *asked: str, where: str = CELLS) -> list[str]:
    runs = finished_cells(root, ["metrics"], "all_seeds", asked, where)
    return [str(run.root.relative_to(root)) for run in runs]


def test_cells_have_the_order_of_their_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("photos/seed10", "photos/seed2", "cifar10/seed0"):
        cell(tmp_path, name)
    for name in ("seed3", "seedling"):
        (tmp_path / "photos" / name).mkdir()
    assert found(tmp_path) == ["cifar10/seed0", "photos/seed2", "photos/seed10"]
    assert capsys.readouterr().out == "not finished: photos/seed3\n"
    asked = ["photos/seed10", "photos/seed2", "photos/seed2"]
    assert found(tmp_path, *asked) == ["photos/seed2", "photos/seed10"]


def test_what_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    cell(tmp_path, "photos/seed0")
    with pytest.raises(DataError, match=r"--cells: not finished in .*: cifar/seed0, photos/seed1"):
        found(tmp_path, "photos/seed0", "photos/seed1", "cifar/seed0")
    absolute = str(tmp_path / "photos/seed0")
    for name in ("photos", "seed0", "photos/seed", "text/photos/seed0", absolute, "../seed0"):
        with pytest.raises(DataError, match=f"--cells: {name} is no DATASET/seedN|not finished"):
            found(tmp_path, name)


def test_other_parameters_are_not_averaged(tmp_path: Path) -> None:
    for seed in (0, 1):
        cell(tmp_path, f"photos/seed{seed}", **{"lambda": 0.001, "train": {"epochs": 6}})
    cell(tmp_path, "photos/seed2", loss=7.0, **{"lambda": 0.02, "train": {"epochs": 6}})
    with pytest.raises(DataError, match=r"photos/seed2 than photos/seed0 .*\(lambda\).*--cells"):
        summarise(tmp_path)
    assert not (tmp_path / "summary.csv").exists()
    assert main(["compare", "--sweep", str(tmp_path), "--cells", "photos/seed0", "photos/seed1"]) == 0
    assert files.read_csv(tmp_path / "summary.csv")[["mean", "n"]].to_numpy().tolist() == [[1.0, 2.0]]


def test_other_parameters_are_found_wherever_they_are_written(tmp_path: Path) -> None:
    """`paper` keeps one file a run, in YAML; a stage that one cell has not run says nothing."""
    first, second = cell(tmp_path, "a/seed0"), cell(tmp_path, "a/seed1")
    first.params.write_text("seed: 0\ntrain:\n  epochs: 6\n")
    second.params.write_text("seed: 1\ntrain: {epochs: 6}\n")
    files.write_text(second.stage_params / "score.yaml", json.dumps({"score": 1}))
    assert len(found(tmp_path)) == 2
    second.params.write_text("seed: 1\ntrain: {epochs: 7}\n")
    with pytest.raises(DataError, match=r"\(train\)"):
        found(tmp_path)


def test_cells_are_compared_with_whatever_is_known_of_the_others(tmp_path: Path) -> None:
    cell(tmp_path, "a/seed0")  # says nothing
    cell(tmp_path, "a/seed1", **{"lambda": 1})
    cell(tmp_path, "a/seed2", **{"lambda": 2, "train": 1})
    cell(tmp_path, "a/seed3", **{"lambda": 1})
    with pytest.raises(DataError, match=r": a/seed2 than a/seed1 \(lambda, train\); name"):
        found(tmp_path)
    assert len(found(tmp_path, "a/seed0", "a/seed1", "a/seed3")) == 3
    params = RunPaths(tmp_path / "a/seed3").stage_params
    (params / "train-pelap.yaml").rename(params / "train-other.yaml")
    with pytest.raises(DataError, match=r": a/seed3 than a/seed1 \(trained variants\); name"):
        found(tmp_path, "a/seed0", "a/seed1", "a/seed3")
    for seed in (1, 3):  # a variant that is no longer asked for may be left over
        file = RunPaths(tmp_path / f"a/seed{seed}").stage_params / "evaluate.yaml"
        files.write_text(file, json.dumps({"variants": {"pelap": {}}}))
    assert len(found(tmp_path, "a/seed1", "a/seed3")) == 2


def test_cells_of_other_code_or_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, code in enumerate("aab"):
        run = cell(tmp_path, f"photos/seed{seed}", **{"lambda": 1})
        files.write_json(
            run.stage_params / "train-pelap.key", {"code": code, "seed": str(seed), "lambda": "x"}
        )
    assert len(found(tmp_path)) == 3
    said = "made of other code or files, and taken together: photos/seed2 than photos/seed0 (code)\n"
    assert capsys.readouterr().out == said


def test_each_data_set_and_task_may_have_its_own(tmp_path: Path) -> None:
    cell(tmp_path, "text/photos/seed0", train=1)
    cell(tmp_path, "text/cifar/seed0", train=2)
    cell(tmp_path, "image/photos/seed0", train=3)
    assert len(found(tmp_path, where=NAMED_CELLS)) == 3
    cell(tmp_path, "image/photos/seed1", train=4)
    with pytest.raises(DataError, match="image/photos/seed1 than image/photos/seed0"):
        found(tmp_path, where=NAMED_CELLS)


@pytest.mark.parametrize("command", ["compare", "study", "choosing", "tasks"])
def test_all_summaries_take_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    option = "--sweep" if command == "compare" else "--root"
    none = refusal(capsys, command, option, tmp_path / "none")
    assert "DATASET/seedN here; run `snakemake" in none
    asked = "text/photos/seed7" if command == "tasks" else "photos/seed7"
    assert "not finished" in refusal(capsys, command, option, tmp_path, "--cells", asked)


@pytest.mark.usefixtures("undrawn")
def test_a_study_is_a_command_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell(tmp_path, "photos/seed0")
    for asked in ("photos/seed0", "photos/seed7"):
        monkeypatch.setattr(sys, "argv", ["seeds", "--root", str(tmp_path), "--cells", asked])
        with contextlib.suppress(SystemExit):
            runpy.run_module("workflow.studies.seeds", run_name="__main__")
    out, err = capsys.readouterr()
    assert out == f"1 cells summarised in {tmp_path / 'summary.csv'}\n"
    assert err.startswith("pelap: error: --cells: not finished in ")


def test_what_some_seeds_lack_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("photos", seed, "dense", "fd", 1.0) for seed in range(3)]
    rows += [
        ("photos", 0, "small", "fd", 1.0),
        ("photos", 1, "small", "fd", math.nan),
        ("cats", 7, "small", "fd", 1.0),
    ]
    common.say_incomplete(pd.DataFrame(rows, columns=common.LONG), ["dataset", "model"])
    assert capsys.readouterr().out == "photos small: nothing at seed 1, 2 of fd\n"
