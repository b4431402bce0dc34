"""A name from anywhere is a name: it leads to no other folder and no shell reads more into it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import expect_error, tiny_raw

from pelap.config.load import parse_params
from pelap.core import files
from pelap.core.errors import ConfigError
from pelap.core.names import is_made_name
from pelap.core.paths import RunPaths, read_students, run_models, scored_variant
from pelap.stages.prune import scored_with
from workflow.studies.common import finished_cells

HARMFUL = [
    "../x",
    "..",
    ".x",
    "/x",
    "a/b",
    "-x",
    "a b",
    "a;b",
    "$(x)",
    "`x`",
    "a'b",
    'a"b',
    "a\n",
    "",
    "x" * 201,
]
TABLES = ("variants", "prune.methods", "distill.students", "download.folders")


@pytest.mark.parametrize("name", HARMFUL)
def test_no_parameter_takes_it(name: str) -> None:
    raw = tiny_raw()
    raw["download"]["folders"] = {"mine": "somewhere"}
    for place in TABLES:
        *sections, table = place.split(".")
        changed = json.loads(json.dumps(raw))
        section = changed
        for each in sections:
            section = section[each]
        section[table][name] = next(iter(section[table].values()))
        with pytest.raises(ConfigError, match="should match pattern"):
            parse_params(changed, "params")
    for key in ("dataset", "score.variant"):
        with pytest.raises(ConfigError, match="should match pattern"):
            parse_params(raw, "params", overrides={key: name})


def _run(root: Path, name: str = "a") -> RunPaths:
    run = RunPaths(root / "run")
    score: dict[str, Any] = tiny_raw()["score"] | {"variant": name, "seed": 0}
    files.write_json(run.score_protocol, score)
    files.write_json(run.prune_result, {name: {"num_operators": 1}})
    files.write_json(run.distill_result, {f"distilled-{name}": {"start": "pruned", "plan": name}})
    return run


@pytest.mark.parametrize("name", HARMFUL)
def test_no_reader_of_results_takes_it(name: str, tmp_path: Path) -> None:
    run = _run(tmp_path, name)
    assert not is_made_name(name)
    expect_error(lambda: scored_variant(run), f"{run.score_protocol}: variant: ", "is no name")
    expect_error(lambda: scored_with(run.score_protocol), f"{run.score_protocol}: variant: ")
    expect_error(lambda: run_models(run, ["a", name]), str(run.score_protocol))
    files.write_json(run.score_protocol, {"variant": "a"})
    expect_error(lambda: run_models(run, ["a"]), f"{run.prune_result}: ", "is no name")
    expect_error(lambda: read_students(run), "is no name")
    files.write_json(run.metrics, {name: {"fd": 1.0}})
    expect_error(lambda: files.read_metrics(run.metrics), f"{run.metrics}: ", "is no name")


def test_names_of_results_are_names(tmp_path: Path) -> None:
    for name in ("pelap", "pruned-ld-pruner-12.5", "only-up_blocks.0.resnets.1.conv1", "cached-2"):
        assert is_made_name(name)
    assert list(run_models(_run(tmp_path), ["a"]).rows) == ["a", "pruned-a", "distilled-a"]


def test_a_cell_is_below_its_study(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "seed0" / "evaluate").mkdir(parents=True)
    (tmp_path / "seed0" / "evaluate" / "metrics.json").touch()
    cells = lambda: finished_cells(tmp_path / "study", ["metrics"], "all", ["../seed0"])  # noqa: E731
    expect_error(cells, "../seed0 is no DATASET/seedN")
