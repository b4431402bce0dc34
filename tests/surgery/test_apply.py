"""A pruned network computes what the dense one does without those operators, and holds nothing of them."""

import copy
import random
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from tiny_networks import CASES, TOKENS, WIDTH, Case, InPlace, awake, conditional
from torch import nn

from pelap.core.errors import PlanError
from pelap.profiling.cost import count_params
from pelap.surgery.apply import apply_plan, removed_operators
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import Operator, forward_hooks, is_inside
from pelap.surgery.plan import Plan, PlanEntry, complete_plan, plan_from_json
from pelap.surgery.replacements import Nearest, Replacement, input_of, output_size


class Cut(NamedTuple):
    """A network and a choice of its operators, fitted stand-ins and all."""

    case: Case
    operators: list[Operator]
    replacements: dict[str, Replacement]
    plan: Plan

    @property
    def names(self) -> list[str]:
        return [removal.operator for removal in self.plan.operators]


@cache
def cut(name: str) -> Cut:
    """About a third of what can go at once: of every replacement that there is, none inside another."""
    case = CASES[name]()
    operators = case.find("affine")
    shuffled = random.Random(1).sample(operators, len(operators))
    seen: set[str] = set()
    # Of every replacement one first, then chance.
    first = [o for o in shuffled if not (o.replacement.name in seen or seen.add(o.replacement.name))]
    chosen: list[Operator] = []
    for operator in first + shuffled:
        nested = [c for c in chosen if is_inside(c.name, operator.name) or is_inside(operator.name, c.name)]
        if not nested and operator not in chosen and len(chosen) < max(3, len(operators) // 5):
            chosen.append(operator)
    replacements = fit_replacements(case.network, chosen, case.run(4))
    plan = Plan(tuple(PlanEntry(o.name, o.kind, o.replacement) for o in chosen))
    return Cut(case, chosen, replacements, plan)


def skipped(network: nn.Module, replacements: dict[str, Replacement]) -> AbstractContextManager[None]:
    """Hooks that give the stand-in's value in the operator's stead."""

    def replace(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = input_of(replacements[name].argument, args, kwargs)
        y = replacements[name].replace(given, output_size(args, kwargs))
        return (y, *output[1:]) if isinstance(output, tuple) else y

    return forward_hooks({name: network.get_submodule(name) for name in replacements}, replace)


@pytest.fixture(params=CASES)
def pruning(request: pytest.FixtureRequest) -> Cut:
    return cut(request.param)


def test_choice_holds_every_replacement_that_there_is() -> None:
    names = {o.replacement.name for name in CASES for o in cut(name).operators}
    assert names >= {"identity", "residual", "affine", "projection", "avg_pool", "nearest"}
    assert all(len(cut(name).operators) >= 3 for name in CASES)


@torch.no_grad()
def test_pruned_network_equals_the_dense_one_with_its_operators_skipped(pruning: Cut) -> None:
    """With all at once, with each alone, and with none."""
    case, entries = pruning.case, pruning.plan.operators
    dense = case.forward(2)()
    for plan in (pruning.plan, *(Plan((entry,)) for entry in entries)):
        names = [entry.operator for entry in plan.operators]
        pruned = apply_plan(case.network, plan, pruning.replacements)
        with skipped(case.network, {name: pruning.replacements[name] for name in names}):
            expected = case.forward(2)()
        made = case.forward(2, pruned)()
        torch.testing.assert_close(made, expected, atol=1e-6 * float(expected.std()), rtol=1e-6)
        pools = len(names) == 1 and names[0].endswith(
            ".downsample"
        )  # without weights, as its replacement does
        assert torch.allclose(made, dense, atol=1e-4) == pools, names
    same = apply_plan(case.network, Plan(()))
    assert same is not case.network
    assert torch.equal(case.forward(2, same)(), dense)


def test_nothing_of_a_removed_operator_is_left(pruning: Cut) -> None:
    network = pruning.case.network
    pruned = apply_plan(network, pruning.plan, pruning.replacements)
    assert set(removed_operators(pruned)) == set(pruning.names)
    assert removed_operators(network) == []
    gone = sum(count_params(network.get_submodule(name)) for name in pruning.names)
    put_in = sum(count_params(pruning.replacements[name]) for name in pruning.names)
    assert count_params(pruned) == count_params(network) - gone + put_in
    before, after = network.state_dict(), pruned.state_dict()
    for name in pruning.names:
        inside = {key for key in after if is_inside(key, name)}
        assert inside == {f"{name}.{key}" for key in pruning.replacements[name].state_dict()}
        assert not inside & set(before)
    kept = {key for key in before if not any(is_inside(key, name) for name in pruning.names)}
    assert kept == {key for key in after if not any(is_inside(key, name) for name in pruning.names)}
    assert all(torch.equal(before[key], after[key]) for key in kept)


def test_dense_network_and_stand_ins_are_left_alone(pruning: Cut) -> None:
    network = pruning.case.network
    modules = {name: id(module) for name, module in network.named_modules()}
    owned = nn.ModuleList([network, *pruning.replacements.values()])
    before = copy.deepcopy(owned.state_dict())
    pruned = apply_plan(network, pruning.plan, pruning.replacements)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.add_(1)
    assert {name: id(module) for name, module in network.named_modules()} == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in owned.state_dict().items())


@torch.no_grad()
def test_weights_load_into_a_fresh_network_cut_by_the_same_plan(pruning: Cut) -> None:
    """The plan comes from its file; a saved model holds no more."""
    case = pruning.case
    pruned = apply_plan(case.network, pruning.plan, pruning.replacements)
    plan = plan_from_json(complete_plan(pruning.plan, case.network, pruning.operators).to_json(), "file")
    fresh = copy.deepcopy(case.network)
    for parameter in fresh.parameters():
        parameter.zero_()
    again = apply_plan(fresh, plan)
    assert again.state_dict().keys() == pruned.state_dict().keys()
    again.load_state_dict(pruned.state_dict())
    assert torch.equal(case.forward(2, again)(), case.forward(2, pruned)())


def test_kept_shortcut_has_its_weights_without_being_given_them() -> None:
    case = CASES["unet2d"]()
    name = "down_blocks.1.resnets.0"
    pruned = apply_plan(case.network, complete_plan(plan(name), case.network, case.find(only=[name])))
    before = case.network.get_submodule(f"{name}.conv_shortcut").state_dict()
    after = pruned.get_submodule(name).state_dict()
    assert all(torch.equal(*pair) for pair in zip(before.values(), after.values(), strict=True))


def plan(*names: Any) -> Plan:
    return plan_from_json({"operators": list(names)}, "test")


def test_bare_names_without_more_go_as_far_as_they_can() -> None:
    """The residual path where there is one, else nothing; what changes channels has to be completed."""
    case = CASES["unet2d"]()
    names = ["mid_block.attentions.0", "down_blocks.1.resnets.0", "up_blocks.1.resnets.1.norm2"]
    pruned = apply_plan(case.network, plan(*names))
    whole = complete_plan(plan(*names), case.network, case.find(only=names))
    with torch.no_grad():
        assert torch.equal(case.forward(2, pruned)(), case.forward(2, apply_plan(case.network, whole))())


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        (["nowhere"], "UNet2DModel has no operator 'nowhere'"),
        (["mid_block.resnets.7"], "no operator 'mid_block.resnets.7'"),
        (["mid_block.attentions.0", "mid_block.attentions.0.to_q"], "listed inside"),
        (["mid_block.attentions.0.to_q", "mid_block.attentions.0"], "listed inside"),
        (["mid_block.resnets.0", "mid_block.resnets.0"], "listed twice"),
        ([""], "empty name"),
        ([{"operator": "mid_block.resnets.0", "replacement": "projection"}], "needs in_channels"),
    ],
)
def test_plan_that_does_not_fit(operators: list[Any], message: str) -> None:
    network = CASES["unet2d"]().network
    with pytest.raises(PlanError, match=message):
        apply_plan(network, plan(*operators))
    assert removed_operators(network) == []


def test_scale_of_a_norm_without_weights_is_of_the_networks_type() -> None:
    case = CASES["dit"]()
    (operator,) = case.find("affine", only=["norm_out"])
    case.network.to(torch.float64)
    removal = PlanEntry(operator.name, operator.kind, operator.replacement)
    pruned = apply_plan(case.network, Plan((removal,)))
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.float64}


def test_activations_of_a_pruned_network_do_not_write_over_what_is_still_read() -> None:
    network = awake(InPlace())
    pruned = apply_plan(network, plan("conv"))
    x = torch.randn(2, 4, 3, 3)
    given = network.conv_in(x)
    torch.testing.assert_close(pruned(x), given + given.relu())
    assert network.activation.inplace


class Repeated(nn.Module):
    """What a network of diffusers does with an upsampler: it is told what size its input once had."""

    def __init__(self) -> None:
        super().__init__()
        self.replacement = Replacement("x", [Nearest(2)])

    def forward(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.replacement(x, like.shape[2:])
        return y


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_a_size_is_what_a_tracer_says_it_is() -> None:
    def inputs(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(2, 3, (height + 1) // 2, (width + 1) // 2), torch.randn(2, 3, height, width)

    sides = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(Repeated(), inputs(9, 7), dynamic_shapes=(sides, sides)).module()
    traced = torch.jit.trace(Repeated(), inputs(9, 7))
    for height, width in ((9, 7), (11, 13), (10, 14)):
        given = inputs(height, width)
        assert torch.equal(exported(*given), Repeated()(*given))
        assert torch.equal(traced(*given), Repeated()(*given))


@pytest.mark.slow
@torch.no_grad()
def test_a_pruned_network_is_exported_as_the_dense_one_is_at_odd_sizes() -> None:
    case = conditional()
    names = ["up_blocks.0.upsamplers.0", "down_blocks.0.downsamplers.0", "mid_block.resnets.0"]
    plan = complete_plan(plan_from_json({"operators": names}, "test"), case.network, case.find(only=names))

    def given(height: int, width: int) -> tuple[torch.Tensor, ...]:
        return torch.randn(2, 4, height, width), torch.tensor(3), torch.randn(2, TOKENS, WIDTH)

    sides = ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}, None, None)
    for network in (case.network, apply_plan(case.network, plan)):
        exported = torch.export.export(network, given(9, 7), dynamic_shapes=sides).module()
        for inputs in (given(9, 7), given(11, 9)):  # the dense one's code binds it to sizes alike
            torch.testing.assert_close(exported(*inputs).sample, network(*inputs).sample)
