"""The autoencoder of PeLAP-A: pictures to latents, in the paper four times smaller on a side, and back.

Shapes: B batch, H and W sides of a picture, h and w of its latent, c latent channels. The width is the
number of channels at full resolution, 64 in the paper.
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

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


def _halve(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 4, stride=2, padding=1)


def _double(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)


class VAE(ModelMixin, ConfigMixin):
    """Variational autoencoder with a diagonal Gaussian posterior (PeLAP-A, section 3).

    Args:
        width: Channels at full resolution, w.
        latent_channels: c.
        image_channels: Of a picture; 1 for the spectrogram of a sound.
        downsampling: Side of a picture over that of its latents, a power of two; the paper has 4. Every
            halving beyond that is one more strided convolution and residual block of 2w channels.
    """

    @register_to_config
    def __init__(
        self, width: int = 64, latent_channels: int = 4, image_channels: int = 3, downsampling: int = 4
    ) -> None:
        super().__init__()
        wide = 2 * width
        halvings = range(downsampling.bit_length() - 2)  # beyond the first
        self.encoder = nn.Sequential(
            nn.Conv2d(image_channels, width, 3, padding=1),  # (B, w, H, W)
            ResidualBlock(width),
            nn.Conv2d(width, wide, 4, stride=2, padding=1),  # (B, 2w, H/2, W/2)
            ResidualBlock(wide),
            *(layer for _ in halvings for layer in (_halve(wide), ResidualBlock(wide))),  # (B, 2w, h, w)
            nn.GroupNorm(GROUPS, wide),
            nn.SiLU(),
        )
        self.mean_head = nn.Conv2d(wide, latent_channels, 1)
        self.logvar_head = nn.Conv2d(wide, latent_channels, 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, wide, 3, padding=1),  # (B, 2w, h, w)
            ResidualBlock(wide),
            *(layer for _ in halvings for layer in (_double(wide), ResidualBlock(wide))),  # (B, 2w, H/2, W/2)
            nn.ConvTranspose2d(wide, width, 4, stride=2, padding=1),  # (B, w, H, W)
            ResidualBlock(width),
            nn.GroupNorm(GROUPS, width),
            nn.SiLU(),
            nn.Conv2d(width, image_channels, 3, padding=1),
            nn.Tanh(),
        )

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def image_channels(self) -> int:
        return self.config.image_channels

    @property
    def downsampling(self) -> int:
        """A picture's side divided by its latent's side."""
        return self.config.downsampling

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of the posterior, each (B, c, h, w), of images in [-1, 1]."""
        features = self.encoder(images)
        return self.mean_head(features), self.logvar_head(features)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (B, image_channels, H, W) in [-1, 1] of latents (B, c, h, w)."""
        images: torch.Tensor = self.decoder(latents)
        return images
