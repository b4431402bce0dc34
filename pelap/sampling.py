"""Pictures from a model or a pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pelap.data.dataset import to_uint8
from pelap.denoising import denoise
from pelap.models.ldm import LatentDiffusion
from pelap.params import SamplerParams
from pelap.seeding import generator, noise

PURPOSE = "sample"
"""The stream of the starting noise: all models make picture i of a seed from the same noise."""

BATCH_SIZE = 128


class Source(Protocol):
    """Something that makes pictures from noise; a `LatentPipeline` is one."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""

    def denoise(self, noise: torch.Tensor, indices: Sequence[int], seed: int) -> torch.Tensor:
        """Latents from noise, both (B, C, h, w); row i is item ``indices[i]`` of the seed."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures, uint8 (B, 3, H, W) on the CPU."""


@dataclass(frozen=True)
class ModelSource:
    """A model of this project, in evaluation mode, with a reverse process."""

    model: LatentDiffusion
    sampler: SamplerParams

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.model.latent_shape

    def denoise(self, noise: torch.Tensor, indices: Sequence[int], seed: int) -> torch.Tensor:
        device = next(self.model.parameters()).device
        step_noise = [generator(seed, "sample-step", i) for i in indices]
        return denoise(self.model, self.sampler, noise.to(device), step_noise)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return to_uint8(self.model.decode_sample(latents)).cpu()


@torch.no_grad()
def sample_from(source: Source, num: int, seed: int, batch_size: int = BATCH_SIZE) -> torch.Tensor:
    """Generate pictures.

    Args:
        source: What makes them.
        num: How many pictures; picture i depends on (seed, i) alone.
        seed: Names the noise.
        batch_size: Pictures at a time; changes nothing but speed and memory.

    Returns:
        uint8 (num, 3, H, W) on the CPU.
    """
    pictures = []
    for start in range(0, num, batch_size):
        indices = range(start, min(start + batch_size, num))
        latents = source.denoise(noise(source.latent_shape, seed, PURPOSE, indices), indices, seed)
        pictures.append(source.decode(latents))
    return torch.cat(pictures)


def sample_images(
    model: LatentDiffusion, sampler: SamplerParams, num: int, seed: int, batch_size: int = BATCH_SIZE
) -> torch.Tensor:
    """Generate pictures with a model of this project; see `sample_from`."""
    return sample_from(ModelSource(model, sampler), num, seed, batch_size)
