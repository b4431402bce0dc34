"""The autoencoder of PeLAP-A: pictures to latents four times smaller on a side, and back.

Shapes: B batch, H and W sides of a picture, c latent channels, w width (64 in the paper).
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

DOWNSAMPLING = 4
"""A picture's side divided by its latent's side."""

GROUPS = 8


class ResidualBlock(nn.Module):
    """x + conv3(SiLU(GN(conv3(SiLU(GN(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class VAE(ModelMixin, ConfigMixin):
    """Variational autoencoder with a diagonal Gaussian posterior (PeLAP-A, section 3)."""

    downsampling = DOWNSAMPLING

    @register_to_config
    def __init__(self, width: int = 64, latent_channels: int = 4) -> None:
        super().__init__()
        wide = 2 * width
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),  # (B, w, H, W)
            ResidualBlock(width),
            nn.Conv2d(width, wide, 4, stride=2, padding=1),  # (B, 2w, H/2, W/2)
            ResidualBlock(wide),
            nn.Conv2d(wide, wide, 4, stride=2, padding=1),  # (B, 2w, H/4, W/4)
            ResidualBlock(wide),
            nn.GroupNorm(GROUPS, wide),
            nn.SiLU(),
        )
        self.mean_head = nn.Conv2d(wide, latent_channels, 1)
        self.logvar_head = nn.Conv2d(wide, latent_channels, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, wide, 3, padding=1),  # (B, 2w, H/4, W/4)
            ResidualBlock(wide),
            nn.ConvTranspose2d(wide, wide, 4, stride=2, padding=1),  # (B, 2w, H/2, W/2)
            ResidualBlock(wide),
            nn.ConvTranspose2d(wide, width, 4, stride=2, padding=1),  # (B, w, H, W)
            ResidualBlock(width),
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv2d(width, 3, 3, padding=1),
            nn.Tanh(),
        )

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of the posterior, each (B, c, H/4, W/4), of images in [-1, 1]."""
        features = self.encoder(images)
        return self.mean_head(features), self.logvar_head(features)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of latents (B, c, H/4, W/4)."""
        images: torch.Tensor = self.decoder(latents)
        return images
