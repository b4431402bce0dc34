"""The prune stage on a run: a plan and a model for every amount, or the plan of a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model, tiny_params

from pelap import io
from pelap.errors import ConfigError, PlanError
from pelap.loading import load_model, model_plan, save_model
from pelap.measure.cost import count_params
from pelap.paths import RunPaths
from pelap.stages import prune, score
from pelap.stages.context import Context

NOTHING: dict[str, Any] = {"time_reduction": None, "num_params": None, "num_operators": None}


def context(root: Path, **target: Any) -> Context:
    params = tiny_params(prune=NOTHING | target)
    return Context(params, RunPaths(root / "run"), root / "data", torch.device("cpu"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is scored."""
    root = tmp_path_factory.mktemp("scored")
    run = context(root, num_operators=1)
    save_model(tiny_model(), run.paths.train("invariant").model)
    score.run(run)
    return root


def test_every_amount_has_a_plan_a_model_and_its_listing(scored: Path) -> None:
    run = context(scored, num_operators=[2, 5])
    prune.run(run)
    result, changes = io.read_json(run.paths.prune_result), io.read_csv(run.paths.changes)
    assert list(result) == ["2", "5"]
    for name in result:
        folder = run.paths.pruned_model(name)
        plan = io.read_json(run.paths.plan(name))
        assert len(plan["operators"]) == result[name]["num_operators"] == int(name)
        assert model_plan(folder).to_json() == plan
        model = load_model(folder)
        assert model.info.name == f"pruned-{name}"
        assert count_params(model.unet) == result[name]["params_after"]
        actions = changes.loc[changes["plan"].astype(str) == name, "action"].iloc[1:]
        assert (~actions.str.match("kept|gone")).sum() == int(name)
    assert result["5"]["params_after"] < result["2"]["params_after"]
    assert result["2"]["params_before"] == result["5"]["params_before"]


def test_a_file_s_plan_is_called_like_the_file(scored: Path) -> None:
    run = context(scored, num_operators=[2])
    prune.run(run)
    mine = scored / "mine.json"
    mine.write_text(run.paths.plan("2").read_text())
    before = load_model(run.paths.pruned_model("2")).unet.state_dict()
    prune.run(run, mine)
    assert [path.name for path in run.paths.pruned_models.iterdir()] == ["mine"]
    after = load_model(run.paths.pruned_model("mine")).unet.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_cannot_be_done_is_told_and_leaves_the_last_result(scored: Path) -> None:
    run = context(scored, num_operators=[2])
    prune.run(run)
    there = run.paths.prune_result.read_text()
    with pytest.raises(PlanError, match="out of reach"):
        prune.run(context(scored, num_operators=[2, 10_000]))
    spaced = scored / "my plan.json"
    spaced.write_text(run.paths.plan("2").read_text())
    with pytest.raises(ConfigError, match="called like its file"):
        prune.run(run, spaced)
    assert run.paths.prune_result.read_text() == there
    assert run.paths.pruned_model("2").is_dir()
