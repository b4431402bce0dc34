"""A stranger's diffusers pipeline as a function from noise to latents."""

from pelap.pipelines.kinds import refuse
from pelap.pipelines.latent import LatentPipeline

__all__ = ["LatentPipeline", "refuse"]
