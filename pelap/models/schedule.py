"""The forward process: the schedule and noising; schedulers are diffusers', set for unbounded latents."""

from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from pelap.config import DiffusionParams

CLIP_RANGE = 4.0
"""Predicted clean latents are clipped to [-4, 4]. diffusers' default of 1 cuts 31 % of the values of
unit-variance latents (samples of standard deviation 0.60); without clipping they run off to 1.3..2.0."""

SPACING = "trailing"
"""Starts at t = T-1, pure noise; diffusers' default ``leading`` starts 20 steps of 1000 at t = 950."""

SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}


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
