"""Grids of cells: what the configuration may say, and what a cell is made of."""

from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

from pelap.config.yaml import read_yaml
from pelap.core import files
from pelap.core.errors import ConfigError
from workflow import grid

CONFIG = read_yaml(ROOT / "workflow" / "config.yaml")


@pytest.fixture(autouse=True)
def in_the_projects_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "keys: Additional properties are not allowed ('seed' was unexpected)"),
        ({"seeds": []}, "seeds: []"),
        ({"datasets": ["nope"]}, "params.yaml: dataset: 'nope' is unknown"),
        ({"study_datasets": ["nope"]}, "presets/collapse_study.yaml: dataset: 'nope' is unknown"),
        ({"study_params": "nope.yaml"}, "nope.yaml: no such file"),
        ({"tasks": {"own": {"params": "params.yaml"}}}, "tasks.own: 'dataset' is a required property"),
        ({"tasks": {"A/b": {"params": "params.yaml", "dataset": "photos"}}}, "'A/b' is not a 'name'"),
        ({"tasks": {"own": {"params": "nope.yaml", "dataset": "photos"}}}, "nope.yaml: no such file"),
        ({"datasets": ["photos\n"]}, "datasets.0: 'photos\\n' is not a 'name'"),
        ({"seeds": ["1\n"]}, "seeds.0: '1\\n' is not a 'seed'"),
        ({"studies": {"a.b": {"params": "params.yaml", "datasets": ["photos"], "seeds": [0]}}}, "a 'module'"),
        ({"paper": "nope.yaml"}, "nope.yaml: no such file"),
    ],
)
def test_a_wrong_grid_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid.grids(CONFIG | changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_cells_of_all_grids() -> None:
    found = grid.grids(CONFIG | {"seeds": ["4"], "datasets": ["photos", "svhn"]})  # --config gives strings
    assert found["sweep"].cells() == ["photos/seed4", "svhn/seed4"]
    assert {name for name in found if "/" in name} == {f"tasks/{name}" for name in CONFIG["tasks"]} | {
        "paper/cifar10"
    }
    paper = {"grid": "paper/cifar10", "dataset": "ablation", "seed": "3"}
    cell = grid.cell_of(found, paper)
    assert (cell.raw["dataset"], cell.raw["seed"], cell.paths.root) == (
        "cifar10",
        3,
        Path("results/paper/cifar10/ablation/seed3"),
    )
    packed = grid.cell_of(found, {"grid": "paper/cifar10", "dataset": "cifar10", "place": "shared"})
    assert packed.data == cell.data == Path("data/paper/cifar10/shared")
    assert "evaluate" not in cell.raw
    photos = {"grid": "sweep", "dataset": "photos", "seed": "4"}
    place = {"grid": "sweep", "dataset": "photos", "place": "seed4"}
    assert grid.cell_of(found, photos).data == grid.cell_of(found, place).data == Path("data/sweep/seed4")
    assert grid.cell_of(found, place).raw["seed"] == 4


def test_a_key_is_written_when_it_changes_and_only_then(tmp_path: Path) -> None:
    file = tmp_path / "a.key"
    grid.written(file, {"code": "1", "pictures": "2"})
    first = file.stat().st_mtime_ns
    grid.written(file, {"code": "1", "pictures": None})  # not to be seen from here
    assert file.stat().st_mtime_ns == first
    grid.written(file, {"code": "3", "pictures": None})
    assert files.read_mapping(file) == {"code": "3", "pictures": "2"}


@pytest.mark.parametrize(("threads", "cores", "share"), [(2, None, 2), (1, 10**6, 1)])
def test_a_job_has_its_share_of_the_processors(threads: int, cores: int | None, share: int) -> None:
    assert grid.torch_threads(threads, cores) == share
