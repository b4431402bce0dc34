"""The forward process, what a model's UNet sees in training, and how its prediction is judged."""

from typing import NamedTuple

import torch

from pelap.config import DiffusionParams
from pelap.models.latent_diffusion import LatentDiffusion, make_scheduler
from pelap.models.mask import Gates


class Noisy(NamedTuple):
    """A batch for the UNet."""

    clean: torch.Tensor  # (B, C, h, w) z*m, normalised where the variant says so
    latents: torch.Tensor  # (B, C, h, w) with noise, zero in channels that are gone
    open_channels: torch.Tensor | None  # (B or 1, C, 1, 1) ones for channels that are there; None: all


def alphas_cumprod(diffusion: DiffusionParams) -> torch.Tensor:
    """alpha-bar of every training step, (T,) float32 in 0..1."""
    alphas: torch.Tensor = make_scheduler(diffusion).alphas_cumprod
    return alphas


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas: torch.Tensor
) -> torch.Tensor:
    """Noisy latents sqrt(a) z + sqrt(1-a) e at each item's time step (DDPM, equation 4).

    Args:
        latents: (B, C, h, w).
        noise: Standard normal, same shape.
        timesteps: (B,) in 0..T-1.
        alphas: alpha-bar, (T,), on the same device.
    """
    a = alphas[timesteps][:, None, None, None]  # (B, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


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
