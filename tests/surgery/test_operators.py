"""Which operators are offered: all that can be replaced, and nothing that cannot."""

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.models.downsampling import Downsample2D
from tiny_networks import CASES, Case, InPlace, awake, dit, light, plain
from torch import nn

from pelap.core.device import NORMS_CRASH, ask_gradients_of_norms
from pelap.core.errors import ModelError
from pelap.profiling.cost import count_params
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import KEPT, KINDS, Init, Norm, Operator, find_operators, swapped_modules

DIFFUSERS = {"convolution", "linear", "normalisation", "activation"}
UNET = DIFFUSERS | {"residual_block", "downsampler", "upsampler"}
EXPECTED: dict[str, set[str]] = {
    "unet2d": UNET | {"attention"},
    "resnet_samplers": UNET,
    "conditional": UNET | {"attention", "transformer", "transformer_block", "feed_forward"},
    "dit": {"linear", "normalisation", "activation", "attention", "transformer_block", "feed_forward"},
    "light": DIFFUSERS | {"block"},
    "plain": DIFFUSERS | {"attention", "block"},
}
ENDS = {"conv_in", "conv_out", "pos_embed", "proj_out_1", "proj_out_2", "time_proj", "time_embedding"}
OPTIONS: list[tuple[Norm, Init]] = [
    ("identity", "least_squares"),
    ("affine", "least_squares"),
    ("affine", "parameter_free"),
]


class Searched(NamedTuple):
    name: str
    case: Case
    found: dict[tuple[Norm, Init], list[Operator]]


@cache
def search(name: str) -> Searched:
    case = CASES[name]()
    return Searched(name, case, {options: case.find(*options) for options in OPTIONS})


@pytest.fixture(params=CASES)
def searched(request: pytest.FixtureRequest) -> Searched:
    return search(request.param)


def offered(name: str, norm: Norm = "identity", init: Init = "least_squares") -> dict[str, Operator]:
    return by_name(search(name).found[norm, init])


def by_name(operators: list[Operator]) -> dict[str, Operator]:
    return {operator.name: operator for operator in operators}


def names_of(net: nn.Module, *shape: int, **options: Any) -> list[str]:
    return [operator.name for operator in find_operators(net, lambda: net(torch.randn(shape)), **options)]


def test_every_kind_is_found_and_ends_and_time_are_not_offered(searched: Searched) -> None:
    for operators in searched.found.values():
        assert {operator.kind for operator in operators} == EXPECTED[searched.name]
        places = [operator.name.split(".") for operator in operators]
        assert not [place for place in places if place[0] in ENDS]
        assert not [place for place in places if "emb" in place or "time_embedding" in place]


def test_kinds_that_are_listed_are_those_that_were_seen() -> None:
    assert set.union(*EXPECTED.values()) == set(KINDS.values())


def test_every_operator_offered_can_be_put_in(searched: Searched) -> None:
    """However it starts and however a norm is replaced: shapes as before, finite, and trainable."""
    case = searched.case
    expected = case.forward(2)()
    if NORMS_CRASH:
        ask_gradients_of_norms(case.network)
    seen = set()
    for (_, init), operators in searched.found.items():
        for weights in {init, "random"} - ({"random"} if init == "parameter_free" else set()):
            replacements = fit_replacements(case.network, operators, case.run(4), weights)
            for operator in operators:
                replacement = replacements[operator.name]
                trained = list(replacement.parameters())
                key = (operator.name, operator.replacement, weights if trained else "")
                if key in seen:
                    continue
                seen.add(key)
                with swapped_modules(case.network, {operator.name: replacement}):
                    made = case.forward(2)()
                    assert made.shape == expected.shape, key
                    assert made.isfinite().all(), key
                    made.square().sum().backward()
                gradients = [weight.grad for weight in trained]
                assert all(grad is not None and grad.isfinite().all() for grad in gradients), key
    assert torch.equal(case.forward(2)(), expected)


def test_operators_come_in_the_order_of_the_network_with_the_smallest_around_them_as_parent() -> None:
    operators = offered("conditional")
    modules = [name for name, _ in search("conditional").case.network.named_modules()]
    assert list(operators) == sorted(operators, key=modules.index)
    parents = {name: operator.parent for name, operator in operators.items()}
    outer = "mid_block.attentions.0"
    block = f"{outer}.transformer_blocks.0"
    assert parents[outer] is None
    assert parents[f"{outer}.norm"] == parents[block] == outer
    assert parents[f"{block}.attn1"] == parents[f"{block}.ff"] == block
    assert parents[f"{block}.attn1.to_q"] == f"{block}.attn1"
    assert parents[f"{block}.ff.net.0"] == f"{block}.ff"
    assert parents["conv_norm_out"] is None


def test_calls_and_shapes_are_those_of_the_pass() -> None:
    operators = offered("unet2d")
    activation = operators["down_blocks.1.resnets.0.nonlinearity"]
    assert activation.num_calls == 3  # twice on maps, of 8 and of 16 channels, once on the time's vector
    assert activation.input_shape == activation.output_shape == (3, 8, 4, 4)
    down = operators["down_blocks.0.downsamplers.0"]
    assert (down.num_calls, down.input_shape, down.output_shape) == (1, (3, 8, 8, 8), (3, 8, 4, 4))
    assert operators["up_blocks.1.resnets.0.conv1"].output_shape == (3, 8, 8, 8)
    assert operators["mid_block.attentions.0.to_q"].input_shape == (3, 16, 16)
    assert offered("conditional")["conv_norm_out"].input_shape == (6, 8, 7, 7)  # guidance doubles the rows


def test_time_inside_a_transformer_is_not_offered() -> None:
    names = set(offered("dit", "affine", "parameter_free"))
    # The network reads block 0's embedding of time and class by itself; those of other blocks nobody does.
    assert "transformer_blocks.0" not in names
    assert "transformer_blocks.1" in names
    everything = [name for name, _ in search("dit").case.network.named_modules()]
    assert "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1" in everything
    assert not [name for name in names if ".emb" in name]
    assert {"transformer_blocks.1.norm1.silu", "transformer_blocks.1.norm1.linear"} <= names


def test_rows_of_the_batch_are_known(searched: Searched) -> None:
    """All but two layers of the plain network, which see columns first, or all rows as one."""
    for operators in searched.found.values():
        apart = {operator.name for operator in operators if not operator.batched}
        assert apart == ({"columns", "flat"} if searched.name == "plain" else set())


def test_one_call_with_other_rows_is_enough() -> None:
    layer = nn.Sequential(nn.Linear(4, 4))
    x = torch.randn(2, 3, 4)
    (operator,) = find_operators(layer, lambda: layer(layer(x).flatten(0, 1)))
    assert (operator.num_calls, operator.input_shape, operator.batched) == (2, (2, 3, 4), False)


class ReLU(nn.Module):
    """Called an activation by its name, but halves whatever is wider than 4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., ::2] if x.shape[-1] > 4 else x


class Twice(nn.Module):
    """Modules called twice; only the first keeps the shape at both calls, and one is in no pass."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.halves_once = ReLU()
        self.unused = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.twice(self.halves_once(self.halves_once(self.twice(x))))


def test_a_module_called_twice_is_offered_if_every_call_can_be_replaced() -> None:
    assert names_of(Twice(), 1, 4, 8, 8) == ["twice"]


class Picky(nn.Module):
    """Every activation here is called in a way that rules out that it is left out, but the last."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = TakesList()
        self.read = nn.Linear(4, 4)
        self.asserted = Widens()
        self.deepens = Deepens()
        self.indexed = nn.MultiheadAttention(4, 1, batch_first=True)
        self.shared = nn.Linear(4, 4)
        self.same = self.shared
        self.fine = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.listed([self.listed(x)]) + self.read(x) + self.read.weight.sum()
        for width in (4, 2):  # widened by two
            wide = self.asserted(x[..., :width])
            assert wide.shape[-1] == 2 * width
        assert self.deepens(self.deepens(x)[:, 0]).flatten(2).shape == x.shape
        weights = self.indexed(x, x, x)[1][..., :1]
        return self.fine(self.same(self.shared(x))) * weights


class TakesList(nn.SiLU):
    def forward(self, parts: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
        return super().forward(parts[0] if isinstance(parts, list) else parts)


class Deepens(nn.SiLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.dim() == 3 else x[:, None].expand(-1, 3, -1)


class Widens(nn.SiLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x], dim=-1)


@pytest.mark.parametrize("init", ["least_squares", "parameter_free"])
def test_what_the_network_cannot_do_without_is_not_offered(init: Init) -> None:
    assert names_of(Picky(), 2, 3, 4, init=init) == ["fine"]


def test_a_convolution_under_two_names_is_not_offered() -> None:
    """diffusers calls the second: putting something in the first place would change nothing."""
    net = nn.Sequential(Downsample2D(4, use_conv=True, name="conv"))
    assert hasattr(net[0], "Conv2d_0")
    assert names_of(net, 2, 4, 8, 8) == ["0"]


def test_own_choice_of_kinds_and_of_what_is_kept() -> None:
    case = plain()
    assert "own" in by_name(case.find())
    assert "own" not in by_name(case.find(kinds=KINDS))
    found = by_name(case.find(kinds={"OwnBlock": "block", "Linear": "matrix"}, keep=()))
    assert {name: operator.kind for name, operator in found.items()} == {"flat": "matrix", "own": "block"}
    assert "conv_out" in by_name(case.find(keep=(), init="parameter_free"))
    assert "twice" not in by_name(case.find(keep=[*KEPT, "twice"]))


def test_only_those_asked_for() -> None:
    case = search("unet2d").case
    only = ["mid_block.attentions.0.to_q", "conv_in", "nowhere"]
    (found,) = case.find(only=only)
    assert (found.name, found.parent) == ("mid_block.attentions.0.to_q", None)
    assert case.find(only=[]) == []


def test_network_without_operators_is_refused() -> None:
    with pytest.raises(ModelError, match="Sequential: has no operator that can be replaced"):
        names_of(nn.Sequential(nn.Flatten()), 2, 4)


def test_search_leaves_the_network_as_it_was() -> None:
    case = light()
    before = {name: id(module) for name, module in case.network.named_modules()}
    weights = {name: tensor.clone() for name, tensor in case.network.state_dict().items()}
    case.find("affine")
    assert {name: id(module) for name, module in case.network.named_modules()} == before
    assert not any(module._forward_hooks for module in case.network.modules())
    assert all(torch.equal(weights[name], tensor) for name, tensor in case.network.state_dict().items())


def test_half_the_precision_changes_nothing_of_what_is_offered() -> None:
    """A norm without weights, as a transformer has, does not say of which type its scale must be."""
    case = dit()
    expected = list(offered("dit", "affine").values())
    case.network.to(torch.bfloat16)
    half = Case(case.network, lambda net, x, t, items: case.predict(net, x.bfloat16(), t, items), case.shape)
    assert half.find("affine") == expected
    replacements = fit_replacements(case.network, expected, half.forward(4), "least_squares")
    for operator in expected:
        with swapped_modules(case.network, {operator.name: replacements[operator.name]}):
            assert half.forward(2)().dtype == torch.bfloat16, operator.name


def test_activations_do_not_write_over_what_is_read_without_the_operator_before_them() -> None:
    net = awake(InPlace())
    x = torch.randn(2, 4, 3, 3)
    expected, given = net(x), net.conv_in(x)
    (operator,) = find_operators(net, lambda: net(x), only=["conv"])
    assert torch.equal(net(x), expected)
    replacements = fit_replacements(net, [operator], lambda: None)
    with swapped_modules(net, replacements):
        torch.testing.assert_close(net(x), given + given.relu())


def test_cheaper_is_what_has_fewer_parameters() -> None:
    """A 1x1 convolution in place of one would be the same thing with other weights."""
    case = search("unet2d").case
    fitted, free = offered("unet2d"), offered("unet2d", "affine", "parameter_free")
    one_by_one = "down_blocks.1.resnets.0.conv_shortcut"
    assert case.network.get_submodule(one_by_one).kernel_size == (1, 1)
    assert one_by_one not in fitted
    assert free[one_by_one].replacement.name == "channel_pool"
    replacements = fit_replacements(case.network, list(fitted.values()), lambda: None, "random")
    for name, operator in fitted.items():
        if operator.replacement.name != "residual":
            assert count_params(replacements[name]) <= count_params(case.network.get_submodule(name)), name
