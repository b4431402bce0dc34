"""The denoising UNet of PeLAP-A: four convolution blocks around one average pooling.

`ConvWithOnes` is for networks that inputs of a convolution were cut off from that were constant, but not
zero. A closed latent channel is zero in the latent, yet not always where a convolution reads it: the light
UNet without stem norms it first, which leaves SiLU of the norm's bias, and some pretrained autoencoders shift
it. Zero padding makes a constant's share of the result different at the border, so no bias can stand in for
it. One channel of ones can, for any number of constants.
"""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn
from torch.nn import functional as F

MAX_GROUPS = 8


class LightBlock(nn.Module):
    """conv3(SiLU(GN(x))) + Linear(SiLU(t)), then conv3(SiLU(GN(h))); no skip inside."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, in_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(in_groups, in_channels)
        self.act1 = nn.SiLU()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(min(MAX_GROUPS, out_channels), out_channels)
        self.act2 = nn.SiLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        h = self.conv1(self.act1(self.norm1(x))) + self.time_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(self.act2(self.norm2(h)))
        return h


class LightUNet(ModelMixin, ConfigMixin):
    """Predicts the noise in noisy latents (PeLAP-A; width 64 and 4 channels have 820,748 parameters).

    Without a stem its first operator is a group norm that normalises each latent channel by itself (the
    paper's min(8, channels) groups at its 4 channels), which hides the channel's mean and standard
    deviation over positions from everything behind it. A stem is a 3x3 convolution before that norm.
    """

    @register_to_config
    def __init__(self, in_channels: int = 4, width: int = 64, stem: bool = False) -> None:
        super().__init__()
        time = self.time_channels = 2 * width
        self.time_embedding = nn.Sequential(nn.Linear(time, 4 * width), nn.SiLU(), nn.Linear(4 * width, time))
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1) if stem else nn.Identity()
        channels, groups = (width, MAX_GROUPS) if stem else (in_channels, in_channels)
        self.block_in = LightBlock(channels, width, time, groups)
        self.block_down = LightBlock(width, 2 * width, time, MAX_GROUPS)
        self.block_mid = LightBlock(2 * width, 2 * width, time, MAX_GROUPS)
        self.block_up = LightBlock(3 * width, width, time, MAX_GROUPS)
        self.conv_out = nn.Conv2d(width, in_channels, 1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor | int) -> UNet2DOutput:
        """Predicted noise, in diffusers' own wrapping.

        Args:
            sample: Noisy latents (B, C, H, W) with even H and W.
            timestep: One step for all, or (B,) steps, in 0..T-1.
        """
        steps = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])  # (B,)
        embedding = get_timestep_embedding(steps, self.time_channels, downscale_freq_shift=1)
        time = self.time_embedding(embedding.to(sample.dtype))  # (B, 2w)
        skip = self.block_in(self.conv_in(sample), time)  # (B, w, H, W)
        h = self.block_down(F.avg_pool2d(skip, 2), time)  # (B, 2w, H/2, W/2)
        h = self.block_mid(h, time)
        h = F.interpolate(h, scale_factor=2.0, mode="nearest")  # (B, 2w, H, W)
        h = self.block_up(torch.cat([h, skip], dim=1), time)  # (B, w, H, W)
        return UNet2DOutput(sample=self.conv_out(h))


class ConvWithOnes(nn.Conv2d):
    """A convolution that appends a channel of ones to its input; `in_channels` counts it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))


class CutLightUNet(LightUNet):
    """A light UNet without stem that closed channels were cut from; see `ConvWithOnes`."""

    @register_to_config
    def __init__(self, in_channels: int = 4, width: int = 64, stem: bool = False) -> None:
        assert not stem, "with a stem nothing constant is left of a closed channel"
        super().__init__(in_channels, width, stem)
        self.block_in.conv1 = ConvWithOnes(in_channels + 1, width, 3, padding=1)


def fold_inputs(weight: torch.Tensor, kept: Sequence[int], constants: torch.Tensor) -> torch.Tensor:
    """Weights for `ConvWithOnes` that read the kept inputs and know the value of the others.

    Args:
        weight: (O, C, kh, kw), or (O, C + 1, kh, kw) of a `ConvWithOnes`.
        kept: Which of the C inputs stay.
        constants: (C,) what the others always hold.

    Returns:
        (O, len(kept) + 1, kh, kw).
    """
    channels, kept = len(constants), list(kept)
    constants = constants.clone()
    constants[kept] = 0.0
    ones = (weight[:, :channels] * constants[:, None, None]).sum(dim=1, keepdim=True)
    ones = ones + weight[:, channels:].sum(dim=1, keepdim=True)
    return torch.cat([weight[:, kept], ones], dim=1)
