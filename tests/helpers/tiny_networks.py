"""Denoisers of every kind that the pruning engine serves: tiny, with weights that matter, and a way from
noise to latents in which every row depends on its own noise and its item alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from tiny import LIGHT, tiny_model
from torch import nn

from pelap.core.rng import noise
from pelap.surgery.operators import KINDS, Init, Norm, Operator, find_operators

GUIDANCE = 2.0
TOKENS, WIDTH = 5, 12  # of the texts that the conditional network looks at
LEVELS: dict[str, Any] = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}

Predict = Callable[[nn.Module, torch.Tensor, int, Sequence[int]], torch.Tensor]
"""Network, rows (B, C, H, W), time step and the rows' items, to what is taken off the rows."""


@dataclass
class Case:
    """A network, and how it is used."""

    network: nn.Module
    predict: Predict
    shape: tuple[int, ...] = (4, 8, 8)
    kinds: dict[str, str] | None = None

    def noise(self, num: int) -> torch.Tensor:
        return noise(self.shape, 0, "test", range(num))

    def forward(self, rows: int = 3, network: nn.Module | None = None) -> Callable[[], torch.Tensor]:
        """A pass of `network`, or of another one in its place, as it is called on the way."""
        return lambda: self.predict(network or self.network, self.noise(rows), 500, range(rows))

    def denoise(self, rows: torch.Tensor, items: Sequence[int]) -> torch.Tensor:
        """Three steps with noise of the items' own."""
        for t in (800, 500, 200):
            rows = 0.9 * rows - 0.5 * self.predict(self.network, rows, t, items)
            rows = rows + 0.1 * noise(self.shape, t, "step", items)
        return rows

    def run(self, num: int = 8) -> Callable[[], object]:
        """What fits are made on."""
        return lambda: self.denoise(self.noise(num), range(num))

    def find(self, norm: Norm = "identity", init: Init = "least_squares", **options: Any) -> list[Operator]:
        options.setdefault("kinds", self.kinds or KINDS)
        return find_operators(self.network, self.forward(), norm, init, **options)


def awake(network: nn.Module, seed: int = 0) -> Any:
    """Weights that let every operator be felt, where fresh ones may be zero or tiny."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            value = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                weight.copy_(value * weight[0].numel() ** -0.5)
            else:
                weight.copy_(0.3 * value + float(name.endswith("weight")))
    return network.eval()


def texts(items: Sequence[int]) -> torch.Tensor:
    """(B, TOKENS, WIDTH), each item's own."""
    return noise((TOKENS, WIDTH), 0, "text", items)


def unet2d() -> Case:
    network = UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        mid_block_scale_factor=2**0.5,
        **LEVELS,
    )
    return Case(awake(network), lambda net, x, t, items: net(x, t).sample)


def resnet_samplers() -> Case:
    """Residual blocks that change the resolution, as ADM and Kandinsky have."""
    network = UNet2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        add_attention=False,
        **LEVELS,
    )
    return Case(awake(network), lambda net, x, t, items: net(x, t).sample)


def conditional(side: int = 7) -> Case:
    """Text to image with guidance: two copies of the batch in one pass. Odd sides as with other pictures."""
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        **LEVELS,
    )

    def predict(net: nn.Module, x: torch.Tensor, t: int, items: Sequence[int]) -> torch.Tensor:
        given = texts(items)
        empty = texts([-1]).expand_as(given)
        without, with_text = net(torch.cat([x, x]), t, torch.cat([empty, given])).sample.chunk(2)
        guided: torch.Tensor = without + GUIDANCE * (with_text - without)
        return guided

    return Case(awake(network), predict, (4, side, side))


def dit() -> Case:
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
    )

    def predict(net: nn.Module, x: torch.Tensor, t: int, items: Sequence[int]) -> torch.Tensor:
        steps, labels = torch.full((len(x),), t), torch.tensor(list(items))
        prediction: torch.Tensor = net(x, steps, labels).sample[:, :4]
        return prediction

    return Case(awake(network), predict)


def light() -> Case:
    """This project's own."""
    model = tiny_model(**LIGHT)
    return Case(awake(model.unet), lambda net, x, t, items: net(x, t).sample, model.latent_shape)


class OwnBlock(nn.Module):
    """Of a class that nobody knows; it doubles the channels of tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Linear(channels, 4 * channels)
        self.second = nn.Linear(4 * channels, 2 * channels)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(tokens).tanh())


class Plain(nn.Module):
    """A network that is not diffusers'."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.columns = nn.MultiheadAttention(8, 2)
        self.flat = nn.Linear(8, 8)
        self.own = OwnBlock(8)
        self.norm = nn.LayerNorm(16, elementwise_affine=False)
        self.unused = nn.Linear(8, 8)
        self.conv_out = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        x = x + self.activation(self.twice(x))  # 8x8
        low = self.activation(self.twice(nn.functional.avg_pool2d(x, 2)))  # 4x4
        tokens = low.flatten(2).transpose(1, 2)  # (B, 16, 8)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        columns = tokens.transpose(0, 1)  # (16, B, 8)
        tokens = tokens + self.columns(query=columns, key=columns, value=columns)[0].transpose(0, 1)
        tokens = tokens + self.flat(tokens.flatten(0, 1)).view_as(tokens)  # (B * 16, 8)
        tokens = self.norm(self.own(tokens))
        low = tokens.transpose(1, 2).unflatten(2, low.shape[2:])
        return self.conv_out(nn.functional.interpolate(low, scale_factor=2.0))


def plain() -> Case:
    kinds = KINDS | {"OwnBlock": "block"}
    return Case(awake(Plain()), lambda net, x, t, items: net(x + t / 1000), kinds=kinds)


class InPlace(nn.Module):
    """An activation that writes over its input: without `conv` that would be what the sum still needs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 4, 1)
        self.conv = nn.Conv2d(4, 4, 1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        return x + self.activation(self.conv(x))


CASES: dict[str, Callable[[], Case]] = {
    "unet2d": unet2d,
    "resnet_samplers": resnet_samplers,
    "conditional": conditional,
    "dit": dit,
    "light": light,
    "plain": plain,
}
