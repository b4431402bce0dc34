"""What stands where an operator was, one test for each row of the table, and how it starts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.normalization import RMSNorm
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from tiny_networks import CASES, OwnBlock, awake, light
from torch import nn
from torch.nn import functional as F

from pelap.core.errors import PlanError
from pelap.models.light_unet import LightBlock
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import KINDS, Init, Norm, Operator, find_operators, is_inside
from pelap.surgery.replacements import (
    ChannelPool,
    Nearest,
    Projection,
    Replacement,
    ReplacementSpec,
    ScaleShift,
    build_replacement,
    replacement_from_json,
)

OWN = {"OwnBlock": "block", "ResnetBlock": "block", "ConvTranspose2d": "convolution"}


class Narrow(nn.GroupNorm):
    """A group norm by another name, as networks have for one in half precision."""


class Alone(nn.Module):
    """A network of one operator, called with some arguments."""

    def __init__(self, operator: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.operator = awake(operator)
        self.args, self.kwargs = args, kwargs

    def forward(self) -> Any:
        return self.operator(*self.args, **self.kwargs)

    @property
    def given(self) -> torch.Tensor:
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def find(self, norm: Norm = "identity", init: Init = "least_squares") -> Operator:
        (operator,) = find_operators(self, self, norm, init, kinds=KINDS | OWN, only=["operator"])
        return operator

    def replacement(
        self, norm: Norm = "identity", init: Init = "least_squares", seed: int = 0
    ) -> Replacement:
        return fit_replacements(self, [self.find(norm, init)], self, init, seed)["operator"]

    @torch.no_grad()
    def replaced(self, norm: Norm = "identity", init: Init = "least_squares") -> Any:
        """What the replacement gives for the same arguments."""
        return self.replacement(norm, init)(*self.args, **self.kwargs)


def steps(replacement: Replacement, kind: type[nn.Module]) -> list[Any]:
    return [step for step in replacement.steps if isinstance(step, kind)]


@torch.no_grad()
def zero(*layers: Any) -> None:
    for layer in layers:
        for weight in layer.parameters():
            weight.zero_()


# identity: the input where the shape is kept


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (lambda: nn.SiLU(), (2, 4, 3, 3)),
        (lambda: nn.Conv2d(4, 4, 3, padding=1), (2, 4, 5, 5)),
        (lambda: nn.Linear(4, 4), (2, 7, 4)),
        (lambda: nn.GroupNorm(2, 4), (2, 4, 3, 3)),
        (lambda: Attention(8, heads=2, dim_head=4), (2, 5, 8)),
        (lambda: Upsample2D(4, interpolate=False, use_conv=True), (2, 4, 3, 3)),
    ],
    ids=["activation", "convolution", "linear", "norm", "attention", "upsampler_that_does_not"],
)
def test_identity_gives_the_input(operator: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    net = Alone(operator(), torch.randn(shape))
    assert net.find().replacement == ReplacementSpec("identity")
    assert net.replaced() is net.given


def test_identity_of_a_layer_that_gives_more_is_a_tuple_of_the_same_length() -> None:
    x = torch.randn(2, 5, 8)
    net = Alone(nn.MultiheadAttention(8, 2, batch_first=True), query=x, key=x, value=x)
    assert net.find().replacement == ReplacementSpec("identity", num_outputs=2)
    assert net.replaced() == (x, None)


# affine: of a norm, for each channel


@pytest.mark.parametrize(
    ("norm", "shape", "axis"),
    [
        (lambda: nn.GroupNorm(2, 4), (2, 4, 3, 5), 1),
        (lambda: nn.GroupNorm(2, 4), (2, 4, 7), 1),
        (lambda: Narrow(2, 4), (2, 4, 3, 5), 1),
        (lambda: nn.BatchNorm2d(4), (2, 4, 3, 5), 1),
        (lambda: nn.LayerNorm(4), (2, 7, 4), 2),
        (lambda: nn.LayerNorm(4), (2, 3, 7, 4), 3),
        (lambda: RMSNorm(4, eps=1e-6), (2, 7, 4), 2),
    ],
    ids=["maps", "sequence", "subclass", "batch_norm", "tokens", "tokens_in_rows", "rms"],
)
def test_scale_and_shift_of_each_channel(
    norm: Callable[[], nn.Module], shape: tuple[int, ...], axis: int
) -> None:
    net = Alone(norm(), torch.randn(shape))
    spec = net.find("affine").replacement
    assert spec == ReplacementSpec("affine", 4, channels_last=axis > 1)
    replacement = build_replacement(spec, net.operator)
    torch.testing.assert_close(replacement(net.given), net.given)  # 1 and 0 at first
    (step,) = steps(replacement, ScaleShift)
    with torch.no_grad():
        step.scale.copy_(torch.arange(4.0))
        step.shift.copy_(torch.arange(4.0) - 2)
    for channel in range(4):
        expected = channel * net.given.select(axis, channel) + channel - 2
        torch.testing.assert_close(replacement(net.given).select(axis, channel), expected)
    assert net.find("affine", "parameter_free").replacement == ReplacementSpec("identity")


# residual: the path around a block's body


def attention() -> tuple[nn.Module, list[nn.Module], dict[str, Any]]:
    module = Attention(
        8, heads=2, dim_head=4, norm_num_groups=4, residual_connection=True, rescale_output_factor=1.5
    )
    return module, [module.to_out[0]], {"hidden_states": torch.randn(2, 8, 3, 3)}


def resnet(kind: type[nn.Module] = ResnetBlock2D, **options: Any) -> Any:
    sizes = {"in_channels": 4, "out_channels": 4, "temb_channels": 6, "groups": 2}
    module: Any = kind(**(sizes | options))
    inputs = {"input_tensor": torch.randn(2, 4, 4, 4), "temb": torch.randn(2, 6)}
    return module, [module.conv2], inputs


def transformer_block() -> tuple[nn.Module, list[nn.Module], dict[str, Any]]:
    module = BasicTransformerBlock(8, 2, 4, cross_attention_dim=6)
    inputs = {"hidden_states": torch.randn(2, 5, 8), "encoder_hidden_states": torch.randn(2, 3, 6)}
    return module, [module.attn1.to_out[0], module.attn2.to_out[0], module.ff.net[2]], inputs


def transformer() -> tuple[nn.Module, list[nn.Module], dict[str, Any]]:
    module = Transformer2DModel(2, 4, 8, norm_num_groups=4, cross_attention_dim=6)
    inputs = {"hidden_states": torch.randn(2, 8, 3, 3), "encoder_hidden_states": torch.randn(2, 3, 6)}
    return module, [module.proj_out], inputs | {"return_dict": False}


RESIDUAL: dict[str, tuple[Callable[[], Any], int]] = {
    "attention": (attention, 0),
    "resnet": (resnet, 0),
    "resnet_shortcut": (lambda: resnet(out_channels=6, output_scale_factor=1.3), 2),
    "resnet_same_channels_shortcut": (lambda: resnet(use_in_shortcut=True), 2),
    "resnet_down": (lambda: resnet(down=True, output_scale_factor=0.7), 0),
    "resnet_down_shortcut": (lambda: resnet(down=True, out_channels=6), 2),
    "resnet_up": (lambda: resnet(up=True), 0),
    "resnet_up_shortcut": (lambda: resnet(up=True, out_channels=2), 2),
    "resnet_conditional_norm": (
        lambda: resnet(ResnetBlockCondNorm2D, time_embedding_norm="ada_group", out_channels=6, groups_out=2),
        2,
    ),
    "transformer_block": (transformer_block, 0),
    "transformer": (transformer, 0),
}


@pytest.mark.parametrize(("build", "num_tensors"), RESIDUAL.values(), ids=RESIDUAL)
@pytest.mark.parametrize("init", ["least_squares", "random", "parameter_free"])
def test_residual_is_the_block_without_its_body(
    build: Callable[[], Any], num_tensors: int, init: Init
) -> None:
    """What is left is what the block gives when the last layers of its body give nothing."""
    module, last, inputs = build()
    net = Alone(module, **inputs)
    operator = net.find(init=init)
    assert operator.replacement.name == "residual"
    replacement = net.replacement(init=init)
    before = net()
    zero(*last)
    expected, made = net(), replacement(**inputs)
    if isinstance(expected, tuple):
        assert isinstance(made, tuple)
        assert len(made) == len(expected) == 1 == operator.replacement.num_outputs
        expected, made, before = expected[0], made[0], before[0]
    torch.testing.assert_close(made, expected)
    assert not torch.allclose(made, before, atol=0.1)
    assert len(replacement.state_dict()) == num_tensors


def test_shortcut_convolution_stays_as_a_copy() -> None:
    module, _, inputs = resnet(out_channels=6)
    zero(*steps(Alone(module, **inputs).replacement(), nn.Conv2d))
    assert module.conv_shortcut.weight.abs().sum() > 0


class ResnetBlock(nn.Module):
    """Somebody else's block that starts like diffusers' name but has none of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: Alone(ResnetBlock(), torch.randn(2, 4, 3, 3)), "projection"),
        # The path around these is no module.
        (lambda: fir(down=True, out_channels=6), "avg_pool+projection"),
        (lambda: fir(up=True), "nearest"),
    ],
)
def test_block_without_a_known_residual_is_replaced_by_shape(build: Callable[[], Alone], name: str) -> None:
    assert build().find().replacement.name == name


def fir(**options: Any) -> Alone:
    module, _, inputs = resnet(kernel="fir", **options)
    return Alone(module, **inputs)


# projection: other channels


PROJECTED: dict[str, Callable[[], Alone]] = {
    "convolution": lambda: Alone(nn.Conv2d(4, 6, 3, padding=1), torch.randn(20, 4, 5, 5)),
    "geglu": lambda: Alone(GEGLU(4, 6), torch.randn(20, 5, 4)),
    "light_block": lambda: Alone(LightBlock(4, 6, 3, 2), torch.randn(20, 4, 5, 5), torch.randn(20, 3)),
    "own_block": lambda: Alone(OwnBlock(3), torch.randn(20, 4, 3)),
}


@pytest.mark.parametrize("build", PROJECTED.values(), ids=PROJECTED)
def test_projection_changes_channels(build: Callable[[], Alone]) -> None:
    net = build()
    operator = net.find()
    is_map = net.given.ndim == 4
    given, made = (shape[1 if is_map else -1] for shape in (operator.input_shape, operator.output_shape))
    assert operator.replacement == ReplacementSpec("projection", given, made, channels_last=not is_map)
    replacement = net.replacement()
    (step,) = steps(replacement, Projection)
    y = replacement(*net.args)
    assert y.shape == operator.output_shape
    # Each place by itself: a change at one place is a change there alone.
    x = net.given.clone()
    x[0, ..., 0, 0] += 1.0
    x[0, ..., 0, :] += 1.0 if not is_map else 0.0
    changed = (replacement(x) - y).abs().sum(1 if is_map else -1) > 1e-6
    assert changed.sum() == 1
    assert changed.flatten()[0]
    assert isinstance(step.linear, nn.Conv2d if is_map else nn.Linear)
    # Without parameters channels are regrouped.
    free = net.find(init="parameter_free").replacement
    assert free == dataclasses.replace(operator.replacement, name="channel_pool")
    assert net.replacement(init="parameter_free")(*net.args).shape == operator.output_shape


def test_regrouped_channels_are_means_of_neighbours_or_repeated() -> None:
    x = torch.tensor([1.0, 3.0, 5.0, 9.0]).view(1, 1, 4)
    assert ChannelPool(2, channels_last=True)(x).flatten().tolist() == [2, 7]
    assert ChannelPool(8, channels_last=True)(x).flatten().tolist() == [1, 1, 3, 3, 5, 5, 9, 9]
    assert ChannelPool(4, channels_last=True)(x).flatten().tolist() == [1, 3, 5, 9]
    maps = torch.randn(2, 4, 3, 5)
    expected = maps.unflatten(1, (2, 2)).mean(2)
    torch.testing.assert_close(ChannelPool(2, channels_last=False)(maps), expected)
    torch.testing.assert_close(ChannelPool(2, True)(maps.movedim(1, -1)), expected.movedim(1, -1))


# avg_pool and nearest: another resolution


@pytest.mark.parametrize(
    ("operator", "sides", "spec"),
    [
        (lambda: Downsample2D(4, use_conv=True), (8, 6), ReplacementSpec("avg_pool", factor=2)),
        (lambda: Downsample2D(4, use_conv=True), (7, 5), ReplacementSpec("avg_pool", factor=2)),
        (lambda: Downsample2D(4), (8, 6), ReplacementSpec("avg_pool", factor=2)),
        (lambda: Downsample2D(4, use_conv=True, padding=0), (5, 5), ReplacementSpec("avg_pool", factor=3)),
        (
            lambda: Downsample2D(4, use_conv=True, out_channels=6),
            (7, 5),
            ReplacementSpec("avg_pool+projection", 4, 6, 2),
        ),
        (
            lambda: nn.Conv2d(4, 2, 5, stride=4, padding=2),
            (8, 8),
            ReplacementSpec("avg_pool+projection", 4, 2, 4),
        ),
    ],
    ids=["even", "odd", "no_weights", "padded_one_side", "odd_channels", "by_four"],
)
def test_lower_resolution_is_pooled(
    operator: Callable[[], nn.Module], sides: tuple[int, int], spec: ReplacementSpec
) -> None:
    net = Alone(operator(), torch.randn(2, 4, *sides))
    assert net.find().replacement == spec
    replacement = net.replacement()
    expected = pooled(net.given, spec.factor)
    if spec.out_channels:
        (projection,) = steps(replacement, Projection)
        expected = projection(expected)
    torch.testing.assert_close(replacement(net.given), expected)
    assert expected.shape == net().shape
    free = net.find(init="parameter_free").replacement
    assert free.name == spec.name.replace("projection", "channel_pool")


def pooled(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Means over squares; of what there is of them at the edges."""
    cells = [[cell.mean((2, 3)) for cell in row.split(factor, dim=3)] for row in x.split(factor, dim=2)]
    return torch.stack([torch.stack(row, -1) for row in cells], -2)


TOLD = [{}, {"output_size": (7, 5)}, {"output_size": torch.Size((7, 5))}]


@pytest.mark.parametrize("told", TOLD, ids=["twice", "tuple", "size"])
@pytest.mark.parametrize("out_channels", [4, 6])
def test_higher_resolution_is_repeated(told: dict[str, Any], out_channels: int) -> None:
    operator = Upsample2D(4, use_conv=True, out_channels=out_channels)
    x = torch.randn(2, 4, 4, 3)
    net = Alone(operator, x, **told)
    expected = ReplacementSpec("nearest", factor=2)
    if out_channels != 4:
        expected = ReplacementSpec("projection+nearest", 4, out_channels, 2)
    assert net.find().replacement == expected
    replacement = net.replacement()
    small = x if out_channels == 4 else steps(replacement, Projection)[0](x)
    repeated = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    if told:
        repeated = repeated[:, :, :7, :5]
    made = net.replaced()
    torch.testing.assert_close(made, repeated)
    assert made.shape == net().shape
    assert replacement(x, *told.values()).shape == made.shape  # by position, as diffusers' blocks do


@pytest.mark.parametrize(
    ("operator", "shape", "expected"),
    [
        (
            nn.ConvTranspose2d(4, 2, 4, stride=4),
            (2, 4, 2, 2),
            ReplacementSpec("channel_pool+nearest", 4, 2, 4),
        ),
        # Of a grid it is the last dimension that a linear layer changes.
        (nn.Linear(4, 6), (2, 4, 3, 4), ReplacementSpec("channel_pool", 4, 6, channels_last=True)),
    ],
)
def test_axes_and_factor_are_the_layers_own(
    operator: nn.Module, shape: tuple[int, ...], expected: ReplacementSpec
) -> None:
    assert Alone(operator, torch.randn(shape)).find(init="parameter_free").replacement == expected


@pytest.mark.parametrize(
    ("operator", "shape"),
    [
        (nn.Linear(4, 6), (2, 5, 4)),
        (nn.Conv2d(4, 6, 1), (2, 4, 5, 5)),
        (nn.Conv2d(4, 4, 2, stride=2), (2, 4, 9, 9)),  # no squares of one side are four in nine
        (nn.Conv2d(4, 4, (1, 2), stride=(1, 2)), (2, 4, 8, 8)),  # one side alone is halved
        (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 5)),
        (nn.Conv1d(4, 4, 3, padding=1, stride=2), (2, 4, 8)),
    ],
    ids=["linear", "1x1", "nine_to_four", "one_side", "sequence", "shorter_sequence"],
)
def test_what_nothing_cheaper_can_replace(operator: nn.Module, shape: tuple[int, ...]) -> None:
    net = Alone(operator, torch.randn(shape))
    assert find_operators(net, net, only=["operator"]) == []


# As data; that it survives JSON is seen with plans


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"replacement": "magic"}, "unknown replacement 'magic'; use one of identity"),
        ({"replacement": "avg_pool+magic"}, "unknown replacement 'magic'"),
        ({"replacement": "avg_pool+"}, "unknown replacement ''"),
        ({"replacement": "avg_pool", "factor": "2"}, "factor is '2'"),
        ({"replacement": "avg_pool", "factor": 2.0}, "factor is 2.0"),
        ({"replacement": "projection", "in_channels": True}, "in_channels is True"),
        ({"replacement": "projection", "channels_last": 1}, "channels_last is 1"),
        ({"replacement": "identity", "num_outputs": None}, "num_outputs is None"),
    ],
)
def test_replacement_that_is_none(value: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        replacement_from_json(value, "plan: 'a'")
    assert str(caught.value).startswith("plan: 'a'")


@pytest.mark.parametrize(
    ("replacement", "missing"),
    [
        (ReplacementSpec("projection", out_channels=4), "in_channels"),
        (ReplacementSpec("projection", 4), "out_channels"),
        (ReplacementSpec("channel_pool", 4), "out_channels"),
        (ReplacementSpec("affine"), "in_channels"),
        (ReplacementSpec("avg_pool"), "factor"),
        (ReplacementSpec("projection+nearest", 4, 6), "factor"),
        (ReplacementSpec("nearest", factor=-2), "factor"),
    ],
)
def test_number_that_is_missing_is_named(replacement: ReplacementSpec, missing: str) -> None:
    with pytest.raises(PlanError, match=f"a.b: .* needs {missing}"):
        build_replacement(replacement, nn.SiLU(), "a.b")


# Fits


def set_kernel(conv: Any, value: torch.Tensor) -> None:
    with torch.no_grad():
        conv.weight.copy_(value)


@torch.no_grad()
def look_at_the_centre(conv: Any) -> None:
    """Of a 3x3 kernel."""
    conv.weight *= F.pad(torch.ones(1, 1), (1, 1, 1, 1))


def linear_block() -> Alone:
    """Two layers with nothing between them."""
    net = Alone(OwnBlock(3), torch.randn(9, 4, 3))
    first: Any = net.operator.first
    set_kernel(first, first.weight * 1e-4)  # where tanh is a line
    torch.nn.init.zeros_(first.bias)
    return net


def pooling_conv() -> Alone:
    net = Alone(nn.Conv2d(4, 6, 2, stride=2), torch.randn(4, 4, 6, 6))
    set_kernel(net.operator, torch.randn(6, 4, 1, 1).expand(6, 4, 2, 2) / 4)
    return net


def repeating(**told: Any) -> Alone:
    net = Alone(Upsample2D(4, use_conv=True, out_channels=6), torch.randn(4, 4, 4, 4), **told)
    look_at_the_centre(net.operator.conv)
    return net


def group_norm() -> Alone:
    """Pictures that hold the same values in other places have the same statistics."""
    picture = torch.randn(4, 25)
    shuffled = [picture[:, torch.randperm(25)] for _ in range(3)]
    return Alone(nn.GroupNorm(2, 4), torch.stack(shuffled).view(3, 4, 5, 5))


def layer_norm() -> Alone:
    """Tokens of one mean and spread."""
    tokens = torch.randn(3, 9, 4)
    alike = (tokens - tokens.mean(-1, keepdim=True)) / tokens.std(-1, keepdim=True)
    return Alone(nn.LayerNorm(4), 2 * alike + 1)


EXACT: dict[str, Callable[[], Alone]] = {
    "linear_block": linear_block,
    "pooling": pooling_conv,
    "repeating": repeating,
    "repeating_by_three": lambda: repeating(output_size=(9, 10)),
    "group_norm": group_norm,
    "sequence_norm": lambda: Alone(nn.GroupNorm(2, 4), group_norm().given.flatten(2)),
    "layer_norm": layer_norm,
}


@pytest.mark.parametrize("build", EXACT.values(), ids=EXACT)
def test_fit_finds_an_operator_that_is_linear(build: Callable[[], Alone]) -> None:
    net = build()
    with torch.no_grad():
        expected = net()
        made = net.replaced("affine")
    assert float((made - expected).abs().max()) < 1e-4 * float(expected.std())
    assert not torch.allclose(net.replaced("affine", "random"), expected, rtol=0.1, atol=0.1)


FITTED: dict[str, Callable[[], Alone]] = PROJECTED | {
    "downsampler": lambda: Alone(Downsample2D(4, use_conv=True, out_channels=6), torch.randn(4, 4, 7, 7)),
    "upsampler": lambda: Alone(
        Upsample2D(4, use_conv=True, out_channels=6), torch.randn(4, 4, 4, 4), output_size=(7, 7)
    ),
    "norm": lambda: Alone(nn.GroupNorm(2, 4), torch.randn(3, 4, 3, 3) * torch.rand(3, 1, 1, 1)),
    "layer_norm": lambda: Alone(nn.LayerNorm(4), torch.randn(3, 9, 4) * torch.rand(3, 9, 1) + 1),
}


def trained(replacement: Replacement) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias, or scale and shift."""
    weight, bias = replacement.parameters()
    return weight, bias


@pytest.mark.parametrize("build", FITTED.values(), ids=FITTED)
def test_fit_is_what_numpy_finds(build: Callable[[], Alone]) -> None:
    net = build()
    replacement = net.replacement("affine")
    with torch.no_grad():
        x, y = net.given, net()
    if steps(replacement, nn.AvgPool2d):
        x = pooled(x, 2)
    if steps(replacement, Nearest):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, : y.shape[2], : y.shape[3]]
    axis = 1 if x.ndim == 4 else -1
    rows, targets = (np.asarray(t.movedim(axis, -1).flatten(0, -2).double()) for t in (x, y))
    ones = np.ones((len(rows), 1))
    weight, bias = (tensor.detach().double().numpy() for tensor in trained(replacement))
    if steps(replacement, Projection):
        expected = np.linalg.lstsq(np.hstack([rows, ones]), targets, rcond=None)[0]
        np.testing.assert_allclose(weight.reshape(len(weight), -1), expected[:-1].T, atol=1e-5)
        np.testing.assert_allclose(bias, expected[-1], atol=1e-5)
    else:
        for channel in range(rows.shape[1]):
            design = np.hstack([rows[:, channel : channel + 1], ones])
            expected = np.linalg.lstsq(design, targets[:, channel], rcond=None)[0]
            np.testing.assert_allclose([weight[channel], bias[channel]], expected, atol=1e-5)


class Pyramid(nn.Module):
    """Calls one block on maps of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.operator = ResnetBlock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.operator(F.avg_pool2d(x, 2))
        return self.operator(x) + F.interpolate(low, scale_factor=2.0)


def test_calls_and_batches_add_up_to_one_fit() -> None:
    net = awake(Pyramid())
    x = torch.randn(6, 4, 4, 4)
    (operator,) = find_operators(net, lambda: net(x), kinds=OWN)
    assert operator.num_calls == 2

    def in_batches() -> None:
        for part in x.split([1, 2, 3]):
            net(part)

    fitted = fit_replacements(net, [operator], in_batches)["operator"]
    pixels = [t.movedim(1, -1).flatten(0, -2) for t in (x, F.avg_pool2d(x, 2))]
    with torch.no_grad():
        made = [net.operator(t).movedim(1, -1).flatten(0, -2) for t in (x, F.avg_pool2d(x, 2))]
    design = np.hstack([torch.cat(pixels).double().numpy(), np.ones((6 * 20, 1))])
    expected = np.linalg.lstsq(design, torch.cat(made).double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(trained(fitted)[0].detach().flatten(1).numpy(), expected[:-1].T, atol=1e-5)


DEFICIENT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum_of_others": lambda x: torch.cat([x[:, :3], x[:, :3].sum(1, keepdim=True)], 1),
    "dead_channels": lambda x: x * torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1),
    "constant_channel": lambda x: torch.cat([x[:, :3], torch.full_like(x[:, :1], 3.0)], 1),
    "fewer_places_than_channels": lambda x: x[:1, :, :1, :2],
    "nothing_at_all": lambda x: x * 0,
}


@pytest.mark.parametrize("change", DEFICIENT.values(), ids=DEFICIENT)
@pytest.mark.parametrize("norm", [False, True], ids=["projection", "affine"])
def test_activations_that_do_not_fill_the_space_do_not_blow_up(
    change: Callable[[torch.Tensor], torch.Tensor], norm: bool
) -> None:
    x = change(torch.randn(8, 4, 5, 5))
    net = Alone(nn.GroupNorm(2, 4) if norm else nn.Conv2d(4, 6, 3, padding=1), x)
    replacement = net.replacement("affine")
    for tensor in trained(replacement):
        assert tensor.isfinite().all()
        assert tensor.abs().max() < 10
    with torch.no_grad():
        y = net()
        error, spread = replacement(x) - y, y - y.mean((0, 2, 3), keepdim=True)
    assert error.square().sum() <= spread.square().sum() + 1e-6


def test_activations_that_are_not_finite_leave_the_stand_in_as_it_is() -> None:
    """The score's own check then says that the model is at fault."""
    net = Alone(nn.GroupNorm(4, 4), torch.full((2, 4, 3, 3), torch.nan))
    scale, shift = trained(net.replacement("affine"))
    assert (scale.tolist(), shift.tolist()) == ([1.0] * 4, [0.0] * 4)


def test_fit_runs_the_model_once_and_only_where_something_is_to_be_fitted() -> None:
    case = light()
    calls: list[int] = []

    def run() -> None:
        calls.append(1)
        case.forward()()

    operators = case.find()
    fit_replacements(case.network, operators, run)
    assert len(calls) == 1
    fit_replacements(case.network, operators, run, "random")
    fit_replacements(case.network, case.find(init="parameter_free"), run, "parameter_free")
    same_shape = [operator for operator in operators if operator.replacement.name == "identity"]
    fit_replacements(case.network, same_shape, run)
    assert len(calls) == 1

    def broken_off() -> None:
        case.forward()()
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        fit_replacements(case.network, operators, broken_off)
    assert not any(module._forward_hooks for module in case.network.modules())


# Other starts


def test_random_start_is_named_by_seed_and_operator() -> None:
    case = light()
    operators = [o for o in case.find("affine") if o.replacement.name in ("projection", "affine")]
    first, again, other = (
        fit_replacements(case.network, operators, lambda: None, "random", seed) for seed in (0, 0, 1)
    )
    # As when a plan takes this operator alone: what was scored is what is put in.
    (last,) = fit_replacements(case.network, operators[-1:], lambda: None, "random", 0).values()
    for operator in operators:
        weights = [trained(replacements[operator.name])[0] for replacements in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
    assert torch.equal(trained(last)[0], trained(first[operators[-1].name])[0])
    alike = ["block_in.norm2", "block_up.norm2"]
    scales = [trained(first[name])[0] for name in alike]
    assert scales[0].shape == scales[1].shape
    assert not torch.equal(*scales)


def test_random_start_keeps_the_variance() -> None:
    net = Alone(nn.Conv2d(64, 48, 3, padding=1), torch.randn(4, 64, 6, 6))
    replacement = net.replacement(init="random")
    assert replacement(net.given).std().item() == pytest.approx(1, rel=0.1)
    assert trained(replacement)[1].abs().max() == 0


@pytest.mark.parametrize("name", ["unet2d", "plain"])
def test_parameter_free_has_no_parameters_but_those_of_kept_shortcuts(name: str) -> None:
    case = CASES[name]()
    operators = case.find("affine", "parameter_free")
    replacements = fit_replacements(case.network, operators, lambda: None, "parameter_free")
    weights = dict(case.network.named_parameters())
    for operator in operators:
        parameters = list(replacements[operator.name].parameters())
        if not parameters:
            continue
        assert operator.replacement.name == "residual"
        inside = [w for n, w in weights.items() if is_inside(n, operator.name) and "conv_shortcut" in n]
        assert len(parameters) == len(inside)
        assert all(torch.equal(p, w) for p, w in zip(parameters, inside, strict=True))
