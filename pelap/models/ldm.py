"""The assembly: autoencoder, mask, normaliser and denoising UNet as one latent diffusion model."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import UNet2DModel
from torch import nn

from pelap.models.light_unet import LightUNet
from pelap.models.mask import ImportancePredictor, LatentNormaliser
from pelap.models.vae import DOWNSAMPLING, VAE
from pelap.params import DiffusionParams, LightUNetParams, UNetParams, VAEParams, VariantParams


@dataclass(frozen=True)
class ModelInfo:
    """What must be known of a trained model beside its weights."""

    name: str
    """Variant, or ``pruned``, ``distilled``."""
    variant: VariantParams
    diffusion: DiffusionParams
    image_size: int
    dataset: str
    seed: int
    strength: float
    """Weight of the sparsity penalty it was trained with."""
    ema_decay: float
    """0 when the weights are not a moving average."""


class Encoded(NamedTuple):
    """What the encoder says about a batch of pictures."""

    latents: torch.Tensor  # (B, C, h, w) sampled from the posterior, normalised where the variant says so
    mean: torch.Tensor  # (B, C, h, w) of the posterior, before normalisation
    logvar: torch.Tensor  # (B, C, h, w)


class LatentDiffusion(nn.Module):
    """A variant's network. The mask is None for variants without one, likewise the normaliser."""

    def __init__(
        self,
        info: ModelInfo,
        vae: VAE,
        unet: nn.Module,
        mask: ImportancePredictor | None,
        normaliser: LatentNormaliser | None,
    ) -> None:
        super().__init__()
        self.info = info
        self.vae = vae
        self.unet = unet
        self.mask = mask
        self.normaliser = normaliser

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        side = self.info.image_size // DOWNSAMPLING
        return (self.vae.config.latent_channels, side, side)

    def encode(self, images: torch.Tensor, posterior_noise: torch.Tensor | None = None) -> Encoded:
        """Latents of images (B, 3, H, W) in [-1, 1].

        Args:
            images: Pictures.
            posterior_noise: Standard normal (B, C, h, w); None takes the posterior's mean.
        """
        mean, logvar = self.vae.encode(images)
        return Encoded(self.latents(mean, logvar, posterior_noise), mean, logvar)

    def latents(
        self, mean: torch.Tensor, logvar: torch.Tensor, posterior_noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draw from a posterior and normalise; see `encode`."""
        z = mean if posterior_noise is None else mean + torch.exp(0.5 * logvar) * posterior_noise
        return z if self.normaliser is None else self.normaliser(z)

    def importance(self, latents: torch.Tensor) -> torch.Tensor:
        """Mask m (B, C) in 0..1; ones for a variant without a mask."""
        if self.mask is None:
            return torch.ones(latents.shape[:2], device=latents.device)
        m: torch.Tensor = self.mask(latents)
        return m

    def unet_input(self, latents: torch.Tensor) -> torch.Tensor:
        """z*m, what the noise is added to; detached from the parts that the variant names."""
        source = latents.detach() if "encoder" in self.info.variant.detach else latents
        m = self.importance(source)
        if "mask" in self.info.variant.detach:
            m = m.detach()
        return apply_mask(source, m)

    def decoder_input(self, latents: torch.Tensor) -> torch.Tensor:
        """Z or z*m, whichever this variant's decoder is trained on."""
        if self.info.variant.decode_from == "z":
            return latents
        return apply_mask(latents, self.importance(latents))

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures through the posterior's mean and back, the way this variant decodes."""
        return self.vae.decode(self.decoder_input(self.encode(images).latents))


def apply_mask(latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """z*m: latents (B, C, h, w) times masks (B, C)."""
    return latents * mask[:, :, None, None]


def build_unet(params: UNetParams, latent_channels: int, latent_side: int) -> nn.Module:
    """A denoising UNet with fresh weights."""
    if isinstance(params, LightUNetParams):
        return LightUNet(in_channels=latent_channels, width=params.width)
    down = ["AttnDownBlock2D" if here else "DownBlock2D" for here in params.attention]
    up = ["AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(params.attention)]
    return UNet2DModel(
        sample_size=latent_side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=params.channels,
        layers_per_block=params.layers_per_block,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        attention_head_dim=params.attention_head_dim,
        norm_num_groups=params.norm_num_groups,
    )


def build_model(info: ModelInfo, vae: VAEParams, unet: UNetParams) -> LatentDiffusion:
    """A whole model with fresh weights from torch's global generator."""
    channels = vae.latent_channels
    return LatentDiffusion(
        info,
        VAE(width=vae.width, latent_channels=channels),
        build_unet(unet, channels, info.image_size // DOWNSAMPLING),
        ImportancePredictor(latent_channels=channels) if info.variant.mask == "sigmoid" else None,
        LatentNormaliser(latent_channels=channels) if info.variant.normalise else None,
    )
