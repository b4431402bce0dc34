"""What a network needs when inputs of a convolution are cut off that were constant, but not zero.

A closed latent channel is zero in the latent, yet not always where a convolution reads it: the light UNet
without stem norms it first, which leaves SiLU of the norm's bias, and some pretrained autoencoders shift
it. Zero padding makes a constant's share of the result different at the border, so no bias can stand in for
it. One channel of ones can, for any number of constants.
"""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from pelap.models.light_unet import LightUNet


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
    channels = len(constants)
    constants = constants.clone()
    constants[list(kept)] = 0.0
    ones = (weight[:, :channels] * constants[:, None, None]).sum(dim=1, keepdim=True)
    ones = ones + weight[:, channels:].sum(dim=1, keepdim=True)
    return torch.cat([weight[:, list(kept)], ones], dim=1)
