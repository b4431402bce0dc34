"""A stranger's diffusers pipeline as a function from noise to latents."""

from pelap.pipelines.latent import LatentPipeline
from pelap.pipelines.support import refuse
from pelap.pipelines.text import read_prompts

__all__ = ["LatentPipeline", "read_prompts", "refuse"]
