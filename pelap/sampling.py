"""Pictures from a model."""

import torch

from pelap.data.dataset import to_uint8
from pelap.denoising import denoise
from pelap.models.ldm import LatentDiffusion
from pelap.params import SamplerParams
from pelap.seeding import generator, noise

PURPOSE = "sample"
"""The stream of the starting noise: all models make picture i of a seed from the same noise."""


@torch.no_grad()
def sample_images(
    model: LatentDiffusion, sampler: SamplerParams, num: int, seed: int, batch_size: int = 128
) -> torch.Tensor:
    """Generate pictures.

    Args:
        model: In evaluation mode.
        sampler: Which reverse process.
        num: How many pictures; picture i depends on (seed, i) alone.
        seed: Names the noise.
        batch_size: Pictures at a time; changes nothing but speed and memory.

    Returns:
        uint8 (num, 3, H, W) on the CPU.
    """
    device = next(model.parameters()).device
    pictures = []
    for start in range(0, num, batch_size):
        indices = range(start, min(start + batch_size, num))
        start_noise = noise(model.latent_shape, seed, PURPOSE, indices).to(device)
        step_noise = [generator(seed, "sample-step", i) for i in indices]
        latents = denoise(model, sampler, start_noise, step_noise)
        pictures.append(to_uint8(model.decode_sample(latents)).cpu())
    return torch.cat(pictures)
