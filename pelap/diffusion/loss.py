"""What a model's UNet sees in training, how its prediction is judged, and the way from noise to latents."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pelap.config import SamplerParams
from pelap.diffusion.reverse import sample_latents
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.mask import Gates
from pelap.models.schedule import add_noise


class Noisy(NamedTuple):
    """A batch for the UNet."""

    clean: torch.Tensor  # (B, C, h, w) z*m, normalised where the variant says so
    latents: torch.Tensor  # (B, C, h, w) with noise, zero in channels that are gone
    open_channels: torch.Tensor | None  # (B or 1, C, 1, 1) ones for channels that are there; None: all


def add_noise_to(
    model: LatentDiffusion,
    latents: torch.Tensor,
    gates: Gates,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas: torch.Tensor,
) -> Noisy:
    """Mask latents (B, C, h, w) and add noise of the same shape at time steps (B,); see `add_noise`."""
    clean = model.unet_input(latents, gates)
    noisy = add_noise(clean, noise, timesteps, alphas)
    open_channels = model.open_channels(gates)
    return Noisy(clean, noisy if open_channels is None else noisy * open_channels, open_channels)


def noise_error(
    predicted: torch.Tensor, noise: torch.Tensor, open_channels: torch.Tensor | None
) -> torch.Tensor:
    """Mean squared error of each picture's prediction, (B,), over the channels that are there."""
    errors = (predicted.float() - noise).square()
    if open_channels is None:
        return errors.mean(dim=(1, 2, 3))
    there = open_channels.expand(len(errors), *open_channels.shape[1:])
    return (errors * there).mean(dim=(2, 3)).sum(dim=1) / there.sum(dim=(1, 2, 3)).clamp_min(1)


def denoise(
    model: LatentDiffusion,
    sampler: SamplerParams,
    noise: torch.Tensor,
    generators: Sequence[torch.Generator] | None = None,
    items: Sequence[int] | None = None,
) -> torch.Tensor:
    """Latents (B, C, h, w) from noise, zero in channels that are gone; see `sample_latents`.

    Args:
        model: Its conditioner has a prompt for each of the `items`, by default 0, 1, ...
        sampler: As in `sample_latents`, like `noise` and `generators`.
        noise: Where to start.
        generators: Of the noise of the steps.
        items: Which sample each row is.
    """
    guidance = model.guidance(range(len(noise)) if items is None else items)
    unet, diffusion = model.unet, model.info.diffusion
    return sample_latents(unet, diffusion, sampler, noise, generators, model.open_channels(), guidance)
