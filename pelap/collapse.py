"""What a mask did to its latents: the numbers that tell a collapse from a better model.

A lower noise loss alone tells nothing: it falls as the UNet's input shrinks. So every loss stands
beside the error that a predictor without any network reaches at the same scale.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch

from pelap.data.dataset import to_float
from pelap.diffusion import add_noise, alphas_cumprod
from pelap.models.ldm import LatentDiffusion, apply_mask
from pelap.seeding import generator, noise


class Observations(NamedTuple):
    """What a model makes of N pictures."""

    masks: torch.Tensor  # (N, C)
    unet_inputs: torch.Tensor  # (N, C, h, w), z*m
    noise_errors: torch.Tensor  # (N,) mean squared error of the predicted noise
    recon_errors: torch.Tensor  # (N,) squared error summed over a picture's values, decoded from z
    masked_recon_errors: torch.Tensor  # (N,) the same, decoded from z*m


@torch.no_grad()
def observe(model: LatentDiffusion, images: torch.Tensor, seed: int, batch_size: int) -> Observations:
    """Run a model over pictures.

    Args:
        model: In evaluation mode.
        images: (N, 3, H, W) uint8.
        seed: Names the posterior's and the diffusion's noise; picture i's depends on (seed, i) alone.
        batch_size: Pictures at a time; changes no number.
    """
    device = next(model.parameters()).device
    alphas = alphas_cumprod(model.info.diffusion).to(device)
    # Time steps spread evenly over 0..T-1 and over the pictures: less spread than drawing them.
    order = torch.randperm(len(images), generator=generator(seed, "collapse-timesteps"))
    timesteps = order * len(alphas) // len(images)  # (N,)
    parts = []
    for start in range(0, len(images), batch_size):
        indices = range(start, min(start + batch_size, len(images)))
        pictures = to_float(images[indices.start : indices.stop].to(device))
        posterior = noise(model.latent_shape, seed, "collapse-posterior", indices).to(device)
        added = noise(model.latent_shape, seed, "collapse-noise", indices).to(device)
        steps = timesteps[indices.start : indices.stop].to(device)
        latents = model.encode(pictures, posterior).latents
        masks = model.importance(latents)
        masked = apply_mask(latents, masks)
        predicted = model.unet(add_noise(masked, added, steps, alphas), steps).sample
        parts.append(
            Observations(
                masks,
                masked,
                (predicted - added).square().mean(dim=(1, 2, 3)),
                (model.vae.decode(latents) - pictures).square().sum(dim=(1, 2, 3)),
                (model.vae.decode(masked) - pictures).square().sum(dim=(1, 2, 3)),
            )
        )
    return Observations(*(torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True)))


def gaussian_floor(variances: torch.Tensor, alphas: torch.Tensor) -> float:
    """Error of the best affine noise predictor that looks at each coordinate by itself.

    Mean over time steps and coordinates of a*v / (a*v + 1 - a). A reference, not a lower bound: a
    network that uses structure between coordinates goes below it.

    Args:
        variances: v, of each coordinate of the UNet's clean input, any shape.
        alphas: a = alpha-bar, (T,) in 0..1.
    """
    v = variances.double().flatten()[None, :]  # (1, coordinates)
    a = alphas.double()[:, None]  # (T, 1)
    return float((a * v / (a * v + 1 - a)).mean())


def channel_std(inputs: torch.Tensor) -> torch.Tensor:
    """Root of the variance over pictures and positions, (C,), of inputs (N, C, h, w)."""
    return inputs.transpose(0, 1).flatten(1).std(dim=1)


def summarise(seen: Observations, alphas: torch.Tensor, active_threshold: float) -> dict[str, float]:
    """The row of `collapse.csv`.

    ``active_channels`` have a mean mask above the threshold; ``unet_input_std`` is averaged over
    them, or over all channels where none is active. ``floor_ratio`` is NaN where the floor is 0.
    """
    active = seen.masks.mean(dim=0) > active_threshold  # (C,)
    stds = channel_std(seen.unet_inputs)
    loss = float(seen.noise_errors.mean())
    floor = gaussian_floor(seen.unet_inputs.var(dim=0), alphas)
    return {
        "mean_mask": float(seen.masks.mean()),
        "active_channels": int(active.sum()),
        "unet_input_std": float(stds[active].mean() if active.any() else stds.mean()),
        "diffusion_loss": loss,
        "gaussian_floor": floor,
        "floor_ratio": loss / floor if floor > 0 else float("nan"),
        "recon_mse": float(seen.recon_errors.mean()),
        "masked_recon_mse": float(seen.masked_recon_errors.mean()),
    }


def masks_per_class(masks: torch.Tensor, labels: torch.Tensor, class_names: Sequence[str]) -> pd.DataFrame:
    """Mean mask (N, C) of each class and channel: columns class_name, channel, mean_mask."""
    rows = [
        {"class_name": name, "channel": channel, "mean_mask": float(value)}
        for label, name in enumerate(class_names)
        if bool((labels == label).any())
        for channel, value in enumerate(masks[labels == label].mean(dim=0))
    ]
    return pd.DataFrame(rows, columns=["class_name", "channel", "mean_mask"])
