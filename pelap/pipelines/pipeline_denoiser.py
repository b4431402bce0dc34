"""A diffusers pipeline as a denoiser that can be scored."""

from collections.abc import Sequence

import torch
from torch import nn

from pelap.diffusion.denoiser import Denoiser
from pelap.pipelines import LatentPipeline


def pipeline_denoiser(
    pipeline: LatentPipeline, name: str, seed: int, num_seeds: int = 1, precision: str = "fp32"
) -> Denoiser:
    """A stranger's pipeline, with its own scheduler and settings.

    Every seed goes through the prompts from the first, so that seeds can be compared.
    """

    def to_latents(start: torch.Tensor, items: Sequence[int]) -> torch.Tensor:
        seeds = [seed + i % num_seeds for i in items]
        return pipeline.denoise(start, [i // num_seeds for i in items], seeds)

    return Denoiser(
        name=name,
        network=pipeline.denoiser,
        latent_shape=pipeline.latent_shape,
        device=pipeline.device,
        denoise=to_latents,
        networks=tuple(part for part in pipeline.pipe.components.values() if isinstance(part, nn.Module)),
        protocol=(protocol := pipeline.describe()),
        spacing=str(protocol["timestep_spacing"]),
        precision=precision,
        num_asked=pipeline.num_asked,
    )
