"""A stranger's diffusers pipeline as a function from noise to latents."""

from pelap.pipelines.latent import LatentPipeline
from pelap.pipelines.support import refuse

__all__ = ["LatentPipeline", "refuse"]
