"""The assembly: autoencoder, mask, normaliser, conditioner and denoising UNet as one latent diffusion model.

Shapes: B batch, C latent channels, h and w sides of a latent, L tokens of a prompt.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from pydantic import ConfigDict, Field
from torch import nn

from pelap.config import (
    DiffusionParams,
    LightUNetParams,
    Loss,
    PelapVAEParams,
    SoundParams,
    UNet2DParams,
    UNetParams,
    VAEParams,
    VariantParams,
)
from pelap.models.light_unet import LightUNet
from pelap.models.mask import Gates, ImportanceMask, LatentNorm
from pelap.models.text_conditioner import Guidance, TextConditioner
from pelap.models.vae import VAE, Autoencoder, load_pretrained_vae

CLIP_RANGE = 4.0
"""Predicted clean latents are clipped to [-4, 4]. diffusers' default of 1 cuts 31 % of the values of
unit-variance latents (samples of standard deviation 0.60); without clipping they run off to 1.3..2.0."""
SPACING = "trailing"
"""Starts at t = T-1, pure noise; diffusers' default ``leading`` starts 20 steps of 1000 at t = 950."""
MOST_PIXELS = 4096
SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}


@dataclass(frozen=True)
class ModelInfo:
    """What must be known of a trained model beside its weights."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # of the file that keeps it

    name: str  # of the variant, or ``pruned``, ``distilled``
    variant: VariantParams
    diffusion: DiffusionParams
    image_size: Annotated[int, Field(ge=1, le=MOST_PIXELS)]  # of a side
    dataset: str
    seed: int
    sparsity_weight: float  # of the penalty it was trained with, after any warm-up
    ema_decay: float  # 0 when the weights are not a moving average
    sound: SoundParams | None = None  # how its pictures came from sounds
    cut_channels: tuple[int, ...] = ()  # trained with and here no longer, see `masking.channel_removal`
    data: str = ""  # key of the data set that it was trained on; empty: not known


class Posterior(NamedTuple):
    """The encoder's normal distribution for every value of the latents of a batch of pictures."""

    mean: torch.Tensor  # (B, C, h, w)
    logvar: torch.Tensor  # (B, C, h, w)


class Encoded(NamedTuple):
    """Latents of a batch of pictures, and the posterior that they are from."""

    latents: torch.Tensor  # (B, C, h, w) from the posterior, normalised where the variant says so
    mean: torch.Tensor  # (B, C, h, w) of the posterior, before normalisation
    logvar: torch.Tensor  # (B, C, h, w)

    def kl(self) -> torch.Tensor:
        """KL of the posterior from N(0, 1) of every value, in nats, (B, C, h, w)."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return -0.5 * (1 + logvar - mean.square() - logvar.exp())


class LatentDiffusion(nn.Module):
    """A variant's network. The mask is None for variants without one, likewise normaliser and conditioner."""

    def __init__(
        self,
        info: ModelInfo,
        vae: Autoencoder,
        unet: nn.Module,
        mask: ImportanceMask | None,
        normaliser: LatentNorm | None,
        conditioner: TextConditioner | None = None,
    ) -> None:
        super().__init__()
        self.info = info
        self.vae, self.unet, self.mask = vae, unet, mask
        self.normaliser, self.conditioner = normaliser, conditioner

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""
        side = self.info.image_size // self.vae.downsampling
        return (self.vae.latent_channels, side, side)

    def with_unet(self, unet: nn.Module, name: str, ema_decay: float) -> "LatentDiffusion":
        """The same model around another UNet, which is averaged by its own `ema_decay`."""
        info = dataclasses.replace(self.info, name=name, ema_decay=ema_decay)
        return LatentDiffusion(info, self.vae, unet, self.mask, self.normaliser, self.conditioner).eval()

    def encode(self, images: torch.Tensor, posterior_noise: torch.Tensor | None = None) -> Encoded:
        """Latents of images (B, 3, or of sounds 1, H, W) in [-1, 1].

        The noise is standard normal (B, C, h, w); None takes the posterior's mean.
        """
        return self.encoded(self.posterior(images), posterior_noise)

    def posterior(self, images: torch.Tensor) -> Posterior:
        """The encoder's distribution of latents for images (B, 3 or 1, H, W) in [-1, 1]."""
        return Posterior(*self.vae.encode(images))

    def encoded(self, posterior: Posterior, posterior_noise: torch.Tensor | None = None) -> Encoded:
        """Latents from a posterior; see `encode`."""
        mean, logvar = posterior
        z = mean if posterior_noise is None else mean + torch.exp(0.5 * logvar) * posterior_noise
        if self.normaliser is not None and self.info.variant.normalise == "before_mask":
            z = self.normaliser(z)
        return Encoded(z, mean, logvar)

    def gates(self, latents: torch.Tensor, uniform: torch.Tensor | None = None) -> Gates:
        """The mask on these latents; ones for a variant without a mask. See `ImportanceMask.forward`."""
        if self.mask is not None:
            gates: Gates = self.mask(latents, uniform)
            return gates
        ones = torch.ones(latents.shape[:2], device=latents.device)
        return Gates(ones, ones)

    def reached_by(
        self, loss: Loss, latents: torch.Tensor, uniform: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Gates]:
        """Latents (B, C, h, w) and gates for one loss, detached from the parts that it must not train.

        Gates are sampled only for the losses that train the mask: the others see the mask as it will be
        used.
        """
        variant = self.info.variant
        source = latents if loss in variant.encoder_losses else latents.detach()
        if loss in variant.mask_losses:
            return source, self.gates(source, uniform)
        values, cost = self.gates(source)
        return source, Gates(values.detach(), cost.detach())

    def unet_input(self, latents: torch.Tensor, gates: Gates) -> torch.Tensor:
        """z*m, normalised where the variant does that last: what the noise is added to."""
        masked = apply_mask(latents, gates.values)
        if self.normaliser is not None and self.info.variant.normalise == "after_mask":
            return self.normaliser(masked)
        return masked

    def decoder_input(self, latents: torch.Tensor, gates: Gates) -> torch.Tensor:
        """Z or z*m, whichever this variant's decoder is trained on."""
        return latents if self.info.variant.decoder_input == "unmasked" else apply_mask(latents, gates.values)

    def tokens_for(self, labels: torch.Tensor, stream: torch.Generator | None = None) -> torch.Tensor:
        """Prompts (B, L) for pictures with these labels (B,), on the CPU; L is 0 without a conditioner.

        The stream draws templates, and who is given no prompt, as in training; None: the first template.
        """
        told = self.conditioner
        if told is None:
            return torch.empty(len(labels), 0, dtype=torch.int64)
        return told.of_labels(labels) if stream is None else told.drawn_for(labels, stream)

    def tokens_of(self, items: Sequence[int]) -> torch.Tensor:
        """Prompts (B, L) of these samples, on the CPU; L is 0 without a conditioner."""
        if self.conditioner is None:
            return torch.empty(len(items), 0, dtype=torch.int64)
        return self.conditioner.of_items(items)

    def conditions(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """What else the UNet is called with for prompts (B, L), by keyword; nothing without a conditioner."""
        return {} if self.conditioner is None else {"encoder_hidden_states": self.conditioner(tokens)}

    def guidance(self, items: Sequence[int]) -> Guidance | None:
        """How the denoising of these samples is led to their prompts; None without a conditioner.

        Where predictions without prompt do not count, they are not made.
        """
        if self.conditioner is None:
            return None
        tokens, scale = self.tokens_of(items), self.conditioner.guidance_scale
        if self.conditioner.rows_per_latent > 1:
            tokens = torch.cat([tokens, self.conditioner.no_prompt(len(tokens))])
        return Guidance(self.conditions(tokens.to(self.conditioner.positions.device)), scale)

    def open_channels(self, gates: Gates | None = None) -> torch.Tensor | None:
        """Which channels are part of the latent: (B or 1, C, 1, 1) of zeros and ones; None if all.

        A channel that a static hard gate closed is gone: it gets no noise, and none is predicted for it.
        A channel that an adaptive mask closed may be open in the next picture, so it stays. Without gates,
        those of the mask without sampling are taken.
        """
        if self.mask is None or not self.mask.selects:
            return None
        if gates is None:
            gates = self.mask(torch.zeros(1, *self.latent_shape, device=self.mask.logits.device))
        return (gates.values > 0).float()[:, :, None, None]

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures through the posterior's mean and back, the way this variant decodes."""
        latents = self.encode(images).latents
        return self.vae.decode(self.decoder_input(latents, self.gates(latents)))

    def decode_sample(self, sample: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3 or 1, H, W) of what the UNet made (B, C, h, w).

        It is decoded as it is: the paper's variant was trained so (and decodes near the zero latent once
        its mask has collapsed), and the sample of a variant that decodes z*m is already masked, for z*m is
        what its UNet has learnt.
        """
        if self.normaliser is not None and self.info.variant.normalise == "after_mask":
            sample = self.normaliser.restore(sample)
        return self.vae.decode(sample)


def apply_mask(latents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """z*m: latents (B, C, h, w) times masks (B, C)."""
    return latents * mask[:, :, None, None]


def make_scheduler(diffusion: DiffusionParams, kind: str = "ddpm") -> Any:
    """A diffusers scheduler with a linear schedule, ``epsilon`` prediction and the settings above."""
    return SCHEDULERS[kind](
        num_train_timesteps=diffusion.num_train_timesteps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule="linear",
        clip_sample=True,
        clip_sample_range=CLIP_RANGE,
        timestep_spacing=SPACING,
    )


def build_vae(params: VAEParams, image_channels: int = 3) -> Autoencoder:
    """An autoencoder: with fresh weights for pictures of so many channels, or pretrained and frozen.

    Raises:
        ModelError: The pretrained one cannot be read.
    """
    if isinstance(params, PelapVAEParams):
        return VAE(params.width, params.latent_channels, image_channels, params.downsampling)
    return load_pretrained_vae(params.source)


def build_unet(
    params: UNetParams, latent_channels: int, latent_side: int, prompt_width: int | None = None
) -> nn.Module:
    """A denoising UNet with fresh weights; `prompt_width` is that of the conditioner, where there is one."""
    if isinstance(params, LightUNetParams):
        return LightUNet(in_channels=latent_channels, width=params.width, stem=params.stem)
    attention = "Attn" if isinstance(params, UNet2DParams) else "CrossAttn"
    prefixes = [attention if here else "" for here in params.attention]
    shape = {
        "down_block_types": tuple(f"{prefix}DownBlock2D" for prefix in prefixes),
        "up_block_types": tuple(f"{prefix}UpBlock2D" for prefix in reversed(prefixes)),
        "sample_size": latent_side,
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "block_out_channels": params.channels,
        "layers_per_block": params.layers_per_block,
        "norm_num_groups": params.norm_num_groups,
    }
    if isinstance(params, UNet2DParams):
        return UNet2DModel(**shape, attention_head_dim=params.attention_head_dim)
    # What this class calls the dimension of a head is the number of heads.
    heads = tuple(channels // params.attention_head_dim for channels in params.channels)
    return UNet2DConditionModel(**shape, attention_head_dim=heads, cross_attention_dim=prompt_width)


def build_model(
    info: ModelInfo, vae: Autoencoder, unet: UNetParams, conditioner: TextConditioner | None = None
) -> LatentDiffusion:
    """A whole model around an autoencoder, with fresh weights from torch's global generator."""
    variant, channels = info.variant, vae.latent_channels
    mask = ImportanceMask(channels, variant.gate, variant.adaptive, num_active=variant.k)
    side, width = info.image_size // vae.downsampling, conditioner and conditioner.config.width
    return LatentDiffusion(
        info,
        vae,
        build_unet(unet, channels, side, width),
        mask if variant.gate != "none" else None,
        LatentNorm(channels) if variant.normalise != "none" else None,
        conditioner,
    )
