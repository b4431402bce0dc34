"""The importance mask over latent channels, and the normalisation that takes scale out of play."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

INITIAL_LOGIT = 3.0
"""Bias of the last layer: every mask starts at sigmoid(3) = 0.95 (PeLAP-A)."""


class ImportancePredictor(ModelMixin, ConfigMixin):
    """Mask m = sigmoid(MLP(mean of z over positions)), one value per picture and channel (PeLAP-A)."""

    @register_to_config
    def __init__(self, latent_channels: int = 4, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent_channels, hidden), nn.ReLU(), nn.Linear(hidden, latent_channels)
        )
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, INITIAL_LOGIT)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Masks (B, C) in 0..1 of latents (B, C, H, W)."""
        # Outside autocast: bf16 cannot tell a mask of 0.997 from 1.
        with torch.autocast(latents.device.type, enabled=False):
            return torch.sigmoid(self.layers(latents.float().mean(dim=(2, 3))))


class LatentNormaliser(ModelMixin, ConfigMixin):
    """Unit variance and zero mean per latent channel.

    By the batch's own statistics in training, by their stored running averages otherwise. Shrinking
    the encoder's output then no longer makes the noise loss smaller.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 4) -> None:
        super().__init__()
        self.statistics = nn.BatchNorm2d(latent_channels, affine=False)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents, same shape (B, C, H, W)."""
        with torch.autocast(latents.device.type, enabled=False):
            normalised: torch.Tensor = self.statistics(latents.float())
        return normalised
