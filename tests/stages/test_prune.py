"""The prune stage on a run: a plan and a model for every amount, or a file's plan, and what judges them."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model, tiny_params
from torch import nn

from pelap.core import files
from pelap.core.errors import ConfigError, PlanError
from pelap.core.paths import RunPaths
from pelap.diffusion.reverse import model_denoiser
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.pipelines.pipeline_io import load_model, model_plan, save_model
from pelap.profiling.cost import count_params
from pelap.pruning.pruner import Pruner
from pelap.scoring import criteria, statistic
from pelap.stages import prune, score
from pelap.stages.shared import Context
from pelap.surgery.operators import is_inside
from pelap.surgery.plan import Plan, PlanEntry

NOTHING: dict[str, Any] = {"time_reduction": None, "num_params": None, "num_operators": None}
CRITERIA = ["random", "magnitude", "taylor", "output_error", "block_similarity"]


def context(root: Path, **target: Any) -> Context:
    params = tiny_params(prune=NOTHING | target, score__criteria=CRITERIA)
    return Context(params, RunPaths(root / "run"), root / "data", torch.device("cpu"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is scored."""
    root = tmp_path_factory.mktemp("scored")
    run = context(root, num_operators=1)
    save_model(tiny_model(), run.paths.train("invariant").model)
    score.run(run)
    return root


@pytest.mark.slow
def test_every_amount_has_a_plan_a_model_and_its_listing(scored: Path) -> None:
    run = context(scored, num_operators=[2, 5])
    prune.run(run)
    result, changes = files.read_json(run.paths.prune_result), files.read_csv(run.paths.changes)
    assert list(result) == ["2", "5"]
    for name in result:
        folder = run.paths.pruned_model(name)
        plan = files.read_json(run.paths.plan(name))
        assert len(plan["operators"]) == result[name]["num_operators"] == int(name)
        assert model_plan(folder).to_json() == plan
        model = load_model(folder)
        assert model.info.name == f"pruned-{name}"
        assert count_params(model.unet) == result[name]["params_after"]
        actions = changes.loc[changes["plan"].astype(str) == name, "action"].iloc[1:]
        assert (~actions.str.match("kept|gone")).sum() == int(name)
    assert result["5"]["params_after"] < result["2"]["params_after"]
    assert result["2"]["params_before"] == result["5"]["params_before"]


@pytest.mark.slow
def test_a_file_s_plan_is_called_like_the_file_and_what_cannot_be_done_leaves_the_last_result(
    scored: Path,
) -> None:
    run = context(scored, num_operators=[2])
    prune.run(run)
    before = load_model(run.paths.pruned_model("2")).unet.state_dict()
    mine, spaced = scored / "mine.json", scored / "my plan.json"
    for file in (mine, spaced):
        file.write_text(run.paths.plan("2").read_text())
    prune.run(run, mine)
    there = run.paths.prune_result.read_text()
    with pytest.raises(PlanError, match="out of reach"):
        prune.run(context(scored, num_operators=[2, 10_000]))
    with pytest.raises(ConfigError, match="called like its file"):
        prune.run(run, spaced)
    assert run.paths.prune_result.read_text() == there
    assert [path.name for path in run.paths.pruned_models.iterdir()] == ["mine"]
    after = load_model(run.paths.pruned_model("mine")).unet.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


# Ways to choose


def test_scores_have_a_column_for_every_criterion(scored: Path) -> None:
    run = context(scored, num_operators=1)
    table = files.read_csv(run.paths.scores)
    for name in CRITERIA:
        assert (table[name] >= 0).all(), name
        assert np.isfinite(table.loc[table["params"] > 0, name]).all(), name
        assert table[name].nunique() > 2, name
    network = load_model(run.paths.train("invariant").model).unet
    params = run.params.score
    denoiser = model_denoiser(tiny_model(), params.sampler, run.params.seed, params.num_seeds)
    operators = Pruner(denoiser, params, run.params.seed).operators
    for name, expected in (
        ("random", criteria.random(operators, run.params.seed)),
        ("magnitude", criteria.magnitude(network, operators)),
    ):
        found = dict(zip(table["operator"], table[name], strict=True))
        assert found == pytest.approx(expected)
    assert files.read_json(run.paths.score_protocol)["criteria"] == CRITERIA


@pytest.mark.slow
def test_every_way_to_choose_has_plans_of_its_own(scored: Path) -> None:
    ways = {
        "ours": {"criterion": "score", "selection": "lowest_first", "amounts": [2, 4]},
        "gradient": {"criterion": "taylor", "selection": "knapsack"},
    }
    run = context(scored, num_operators=3, methods=ways, single_operator_plans=2)
    prune.run(run)
    result, table = files.read_json(run.paths.prune_result), files.read_csv(run.paths.scores)
    singles = [name for name in result if name.startswith("only-")]
    assert list(result) == ["ours-2", "ours-4", "gradient-3", *singles]
    assert len(singles) == 2
    numbers = {"ours-2": 2, "ours-4": 4, "gradient-3": 3} | dict.fromkeys(singles, 1)
    assert {name: each["num_operators"] for name, each in result.items()} == numbers
    for name in result:
        assert load_model(run.paths.pruned_model(name)).info.name == f"pruned-{name}"
    of = table.set_index("operator")["score"]
    for name, each in result.items():
        own = of[[entry["operator"] for entry in files.read_json(run.paths.plan(name))["operators"]]]
        assert each["sum_of_scores"] == pytest.approx(own.sum())
        assert each["norm_of_scores"] == pytest.approx((own**2).sum() ** 0.5)
        assert each["joint_score"] > 0
    for name in singles:  # the same denoising as that of the table, but for the size of a batch
        assert result[name]["joint_score"] == pytest.approx(result[name]["sum_of_scores"], rel=1e-3, abs=1e-4)


# The bench


@pytest.fixture
def pruner(scored: Path) -> Pruner:
    run = context(scored, num_operators=1)
    params, seed = run.params.score, run.params.seed
    model = load_model(run.paths.train("invariant").model)
    denoiser = model_denoiser(model, params.sampler, seed, params.num_seeds)
    return Pruner(denoiser, params, seed)


@pytest.fixture
def scores(scored: Path) -> pd.DataFrame:
    return files.read_csv(context(scored, num_operators=1).paths.scores)


def least(scores: pd.DataFrame, num: int) -> Plan:
    """A plan of the least important blocks, none inside another."""
    names: list[str] = []
    for name in scores["operator"]:
        if not any(is_inside(name, other) or is_inside(other, name) for other in names):
            names.append(name)
    return Plan(tuple(PlanEntry(name) for name in names[-num:]))


def test_the_joint_score_is_that_of_the_network_without_the_plans_operators(
    pruner: Pruner, scores: pd.DataFrame
) -> None:
    prepared, start, params = pruner.prepare(least(scores, 3)), pruner.noise, pruner.params
    (dense,) = pruner.denoiser.networks
    cut = dense.with_unet(pruner.cut(prepared), "cut", 0.0)  # type: ignore[operator]
    denoiser = model_denoiser(cut, params.sampler, pruner.seed, params.num_seeds)
    with torch.no_grad():
        without = denoiser.denoise(start, range(len(start)))
        original = pruner.denoiser.denoise(start, range(len(start)))
    expected = statistic.change_of(original, without).score(params.formula)
    assert expected > 0
    assert pruner.joint_score(prepared) == pytest.approx(expected, rel=1e-3)
    assert pruner.joint_score(pruner.prepare(Plan(()))) == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_scores_of_the_rest_are_what_one_more_adds_to_the_joint_score(
    pruner: Pruner, scores: pd.DataFrame
) -> None:
    plan = least(scores, 2)
    gone = [removal.operator for removal in plan.operators]
    table = pruner.score_rest([*scores["operator"]], plan).set_index("operator")
    left = [
        name
        for name in scores["operator"]
        if name not in gone and not any(is_inside(name, other) for other in gone)
    ]
    assert set(table.index) == set(left)
    before = pruner.joint_score(pruner.prepare(plan))
    beside = [name for name in left if not any(is_inside(other, name) for other in gone)]
    for name in (beside[0], beside[len(beside) // 2], beside[-1]):
        after = pruner.joint_score(pruner.prepare(Plan((*plan.operators, PlanEntry(name)))))
        assert table.loc[name, "score"] == pytest.approx(after - before, rel=1e-2, abs=1e-4)
    assert (table["latency_share"] > 0).any()


def states(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """All of a network that a visitor could change."""
    for name, module in network.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        yield name, (type(module), module.training, *hooks)
    for name, tensor in network.state_dict().items():
        yield name, tensor.double().sum().item()


@pytest.mark.slow
def test_the_network_is_left_as_it_was(
    pruner: Pruner, scores: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = least(scores, 2)
    before = list(states(pruner.denoiser.network))
    pruner.score_rest([*scores["operator"]], plan)
    pruner.saved(plan)
    assert list(states(pruner.denoiser.network)) == before

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("stopped on the way")

    def stopped(act: Callable[[], object]) -> None:
        with pytest.raises(RuntimeError, match="stopped on the way"):
            act()
        assert list(states(pruner.denoiser.network)) == before

    prepared = pruner.prepare(plan)
    with monkeypatch.context() as patch:
        patch.setattr(pruner, "costs", fails)
        stopped(lambda: pruner.score_rest([*scores["operator"]], plan))
    pruner.denoiser = dataclasses.replace(pruner.denoiser, denoise=fails)
    stopped(lambda: pruner.joint_score(prepared))


def leaning_on_norms() -> LatentDiffusion:
    """A model whose convolutions overflow where no norm stands between them."""
    model = tiny_model()
    with torch.no_grad():
        for name, weight in model.unet.named_parameters():
            if name.endswith(("conv1.weight", "conv2.weight")):
                weight.mul_(1e13)
    return model


@pytest.mark.slow
def test_a_plan_that_breaks_the_network_is_refused_and_nothing_written(tmp_path: Path) -> None:
    run = context(tmp_path, num_operators=1)
    save_model(leaning_on_norms(), run.paths.train("invariant").model)
    score.run(run)
    scores = files.read_csv(run.paths.scores)
    assert np.isfinite(scores["score"]).sum() > 3
    norms = scores.loc[scores["kind"] == "normalisation", "operator"].to_list()
    plan = tmp_path / "norms.json"
    files.write_json(plan, {"operators": norms})
    refused = f"plan norms: without its {len(norms)} operators latents are not finite"
    with pytest.raises(PlanError, match=refused) as e:
        prune.run(run, plan)
    assert "\n" not in str(e.value)
    assert not run.paths.prune_result.exists()
    assert not run.paths.pruned_models.exists()


def test_operators_that_break_the_latents_alone_are_named(pruner: Pruner, scores: pd.DataFrame) -> None:
    name = scores["operator"].iloc[-1]
    scores.loc[scores["operator"] == name, "score"] = np.inf
    pruner.joint_score = lambda prepared: np.inf  # type: ignore[method-assign]
    with pytest.raises(PlanError, match=f"leave out {name}$"):
        pruner.apply(Plan((PlanEntry(name),)), scores)
