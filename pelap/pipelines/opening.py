"""Pipelines of diffusers from their folders, together with the data that a stage wants to use them on."""

from pathlib import Path

import torch

from pelap.core.errors import ConfigError, ModelError
from pelap.data.dataset import ImageDataset
from pelap.data.prompts import read_prompts
from pelap.pipelines import LatentPipeline
from pelap.pipelines.pipeline_io import load_pipeline


def open_pipeline(
    folder: Path,
    num_steps: int,
    device: torch.device,
    prompts: Path | None = None,
    precision: str = "fp32",
) -> LatentPipeline:
    """A pipeline folder, pruned or not, ready to make latents and pictures.

    Raises:
        ModelError: Not a pipeline that can be loaded and used.
        ConfigError: Prompts are missing or out of place, or `num_steps` does not suit the scheduler.
        DataError: The file of prompts cannot be read.
    """
    texts = read_prompts(prompts) if prompts is not None else None
    return LatentPipeline(load_pipeline(folder, device), num_steps, texts, precision)


def demand_pictures_of(pipeline: LatentPipeline, folder: Path, dataset: ImageDataset) -> None:
    """Refuse sounds, and data of another size than the pictures of the pipeline in `folder`.

    Raises:
        ModelError: They have another size.
        ConfigError: They are sounds.
    """
    if dataset.sound is not None:
        raise ConfigError(
            f"dataset: {dataset.name} holds sounds, and pipelines make pictures; name one of pictures"
        )
    height, width = pipeline.decode(torch.zeros(1, *pipeline.latent_shape)).shape[-2:]
    side = dataset.train.images.shape[-1]
    if (height, width) != (side, side):
        raise ModelError(
            f"{folder}: makes pictures of {width}x{height} pixels, those of {dataset.name} have "
            f"{side}x{side}; make that data set again with download.image_size: {height}, or give other data"
        )
