"""Operators, scores, plans and surgery."""

from typing import Any

import pandas as pd
import pytest
import torch
from tiny import LIGHT, tiny_model
from torch import nn

from pelap.diffusion import sample_latents
from pelap.errors import PlanError
from pelap.measure.cost import count_params
from pelap.models.ldm import LatentDiffusion
from pelap.params import SamplerParams
from pelap.pruning.operators import Operator, find_operators
from pelap.pruning.plan import Plan, Removal, make_plan, plan_from_json, plan_of
from pelap.pruning.score import distances, score_operators
from pelap.pruning.surgery import apply_plan, removed_operators


def _operators(model: LatentDiffusion) -> list[Operator]:
    return find_operators(model.unet, lambda: model.unet(torch.randn(3, *model.latent_shape), 500))


def _denoiser(model: LatentDiffusion) -> Any:
    sampler = SamplerParams(kind="ddim", steps=4)
    return lambda x: sample_latents(model.unet, model.info.diffusion, sampler, x)


def _plan(*names: str) -> Plan:
    return plan_from_json({"operators": list(names)}, "test")


@pytest.mark.parametrize("options", [{}, LIGHT])
def test_every_operator_offered_can_be_left_out(options: dict[str, Any]) -> None:
    model = tiny_model(**options)
    x = torch.randn(2, *model.latent_shape)
    for operator in _operators(model):
        pruned = apply_plan(model.unet, Plan((Removal(operator.name, operator.kind, operator.replacement),)))
        assert pruned(x, 3).sample.shape == x.shape
        pruned(x, 3).sample.sum().backward()


def test_every_kind_is_found_and_ends_and_time_are_never_offered() -> None:
    operators = {operator.name: operator for operator in _operators(tiny_model())}
    kinds = {"convolution", "linear", "normalisation", "activation", "attention", "residual_block"}
    assert {operator.kind for operator in operators.values()} == kinds
    assert not [n for n in operators if n.startswith(("conv_in", "conv_out", "time_"))]
    attention = operators["mid_block.attentions.0"]
    assert (attention.kind, attention.replacement, attention.parent) == ("attention", "residual", None)
    assert operators["mid_block.attentions.0.to_q"].parent == "mid_block.attentions.0"


def test_operators_that_change_shape_are_not_offered() -> None:
    names = {operator.name for operator in _operators(tiny_model())}
    assert "down_blocks.1.resnets.0" not in names  # 8 to 16 channels
    assert "down_blocks.0.downsamplers.0.conv" not in names  # half the side
    assert "down_blocks.1.resnets.0.conv2" in names


class ReLU(nn.Module):
    """Called an activation by its name, but halves whatever is wider than 4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., ::2] if x.shape[-1] > 4 else x


class Net(nn.Module):
    """Modules called twice; only the first keeps the shape at both calls."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.halves_once = ReLU()
        self.unused = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.halves_once(self.halves_once(self.twice(x))))


def test_a_module_called_twice_is_offered_if_every_call_keeps_its_shape() -> None:
    net = Net()
    names = [operator.name for operator in find_operators(net, lambda: net(torch.randn(1, 4, 8, 8)))]
    assert names == ["twice"]


def test_distances_are_the_definition() -> None:
    original, modified = torch.randn(6, 4, 2, 2), torch.randn(6, 4, 2, 2)
    avg, std = distances(original, modified)
    expected = (original.mean(0) - modified.mean(0)).square().sum().sqrt()
    assert avg == pytest.approx(float(expected))
    expected = (original.std(0) - modified.std(0)).square().sum().sqrt()
    assert std == pytest.approx(float(expected))
    shifted = distances(original, original + 1)
    assert shifted == pytest.approx((4.0, 0.0), abs=1e-5)  # sqrt(16 elements) x 1, and no change of spread


@pytest.mark.parametrize("options", [{}, LIGHT])
def test_batched_scores_equal_the_plain_loop(options: dict[str, Any]) -> None:
    model = tiny_model(**options)
    operators, denoise = _operators(model), _denoiser(model)
    noise = torch.randn(4, *model.latent_shape)
    batched = score_operators(model.unet, denoise, operators, noise, candidates_per_batch=5)
    original = denoise(noise)
    tolerance = 1e-5 * float(original.std()) * original[0].numel() ** 0.5
    for row in batched.itertuples():
        plan = _plan(row.operator)
        modified = model.unet
        model.unet = apply_plan(model.unet, plan)
        avg, std = distances(original, denoise(noise))
        model.unet = modified
        assert row.avg_dist == pytest.approx(avg, abs=tolerance)
        assert row.std_dist == pytest.approx(std, abs=tolerance)
        assert row.score == row.avg_dist + row.std_dist
    assert list(batched["score"]) == sorted(batched["score"])


def test_an_operator_that_does_nothing_scores_zero_and_hooks_are_gone() -> None:
    model = tiny_model()
    name = "mid_block.attentions.0"
    attention = model.unet.get_submodule(name)
    nn.init.zeros_(attention.to_out[0].weight)
    nn.init.zeros_(attention.to_out[0].bias)
    operators = [operator for operator in _operators(model) if operator.name == name]
    scores = score_operators(model.unet, _denoiser(model), operators, torch.randn(4, 4, 4, 4), 3)
    assert scores["score"].item() == pytest.approx(0, abs=1e-5)
    assert not any(module._forward_hooks for module in model.unet.modules())


SCORES = pd.DataFrame(
    [
        ("a.norm", 0.1, 10, 0.02),
        ("b", 0.2, 500, 0.10),
        ("a", 0.3, 100, 0.30),
        ("a.conv", 0.4, 90, 0.20),
        ("c", 0.5, 300, 0.15),
    ],
    columns=["operator", "score", "params", "latency_share"],
).assign(kind="block", replacement="identity")


def test_plan_takes_the_lowest_scores_until_the_target_and_lists_no_nested_operator() -> None:
    def names(target: str, amount: float) -> list[str]:
        return [removal.operator for removal in make_plan(SCORES, target, amount).operators]

    assert names("time_reduction", 0.1) == ["a.norm", "b"]
    assert names("time_reduction", 0.25) == ["b", "a"]  # a.norm lies in a, its time counts once
    assert names("time_reduction", 0.41) == ["b", "a", "c"]  # a.conv lies in a
    assert names("num_params", 510) == ["a.norm", "b"]
    assert names("num_operators", 1) == ["a.norm"]
    plan = make_plan(SCORES.sample(frac=1, random_state=0), "time_reduction", 0.25)
    assert plan.time_reduction == pytest.approx(0.40)
    assert plan.num_params == 600


def test_plan_out_of_reach_says_how_far_it_gets() -> None:
    with pytest.raises(PlanError, match=r"0\.6 is out of reach.*0\.55"):
        make_plan(SCORES, "time_reduction", 0.6)


def _changed(**values: object) -> pd.DataFrame:
    """The scores with the first row's values replaced."""
    table = SCORES.astype(object)
    for column, value in values.items():
        table.loc[0, column] = value
    return table


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (_changed(score=float("nan")), "row 1"),
        (_changed(score="abc"), "row 1"),
        (_changed(params=float("nan")), "row 1"),
        (_changed(operator="b"), "row 2"),
        (_changed(operator=None), "row 1"),
        (SCORES.iloc[:0], "no row"),
        (SCORES.drop(columns="score"), "no column score"),
        (SCORES.drop(columns="latency_share"), "no column latency_share"),
    ],
)
def test_table_that_is_none_of_scores(scores: pd.DataFrame, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(scores, "time_reduction", 0.1)


def test_parameters_can_be_the_target_without_times() -> None:
    plan = make_plan(SCORES.drop(columns="latency_share"), "num_params", 510)
    assert [removal.operator for removal in plan.operators] == ["a.norm", "b"]


def test_plan_of_somebody_else_gets_its_totals_from_the_scores() -> None:
    plan = plan_of(SCORES, ["b", "c"])
    assert (plan.num_params, plan.time_reduction) == (800, pytest.approx(0.25))
    assert plan.operators[0].kind == "block"
    for names, message in (
        ([], "no operator"),
        (["conv_in"], "'conv_in' is not among"),
        (["b", "b"], "twice"),
    ):
        with pytest.raises(PlanError, match=message):
            plan_of(SCORES, names)


def test_plan_survives_json() -> None:
    plan = make_plan(SCORES, "num_params", 510)
    assert plan_from_json(plan.to_json(), "file") == plan


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"operators": "a"},
        {"operators": [3]},
        {"operators": [{"name": "a"}]},
        {"operators": [{"operator": "a", "replacement": ["x"]}]},
        {"operators": [], "target": [1]},
        {"operators": [], "time_reduction": None},
    ],
)
def test_not_a_plan(value: object) -> None:
    with pytest.raises(PlanError, match="file"):
        plan_from_json(value, "file")


def test_surgery_removes_modules_and_leaves_the_original_alone() -> None:
    unet = tiny_model().unet
    name = "mid_block.attentions.0"
    before = count_params(unet)
    pruned = apply_plan(unet, _plan(name))
    assert count_params(pruned) == before - count_params(unet.get_submodule(name))
    assert count_params(unet) == before
    assert not [key for key in pruned.state_dict() if key.startswith(name)]
    assert removed_operators(pruned) == [name]
    assert removed_operators(unet) == []


def test_pruned_network_equals_the_dense_one_with_its_operators_skipped() -> None:
    model = tiny_model()
    names = ["mid_block.attentions.0", "down_blocks.0.resnets.0", "up_blocks.1.resnets.1.norm2"]
    x = torch.randn(2, 4, 4, 4)
    handles = [
        model.unet.get_submodule(name).register_forward_hook(lambda module, args, output: args[0])
        for name in names
    ]
    expected = model.unet(x, 3).sample
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(apply_plan(model.unet, _plan(*names))(x, 3).sample, expected)
    assert torch.equal(apply_plan(model.unet, _plan())(x, 3).sample, model.unet(x, 3).sample)


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        (["nowhere"], "no operator 'nowhere'"),
        (["mid_block.attentions.0", "mid_block.attentions.0.to_q"], "listed inside"),
        (["mid_block.attentions.0.to_q", "mid_block.attentions.0"], "listed inside"),
        (["mid_block.resnets.0", "mid_block.resnets.0"], "listed twice"),
        ([""], "empty name"),
        ([{"operator": "mid_block", "replacement": "magic"}], "unknown replacement 'magic'"),
    ],
)
def test_plan_that_does_not_fit(operators: list[Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        apply_plan(tiny_model().unet, plan_from_json({"operators": operators}, "test"))
