"""sample: pictures or sounds from any model folder, or from that of a diffusers pipeline."""

from pathlib import Path
from typing import NamedTuple

import torch

from pelap.config import SamplerParams
from pelap.core.device import choose_device
from pelap.core.errors import ConfigError
from pelap.core.files import atomic_dir
from pelap.core.paths import GRID
from pelap.data.modality import Modality, modality_of
from pelap.data.prompts import read_prompts
from pelap.diffusion.sampler import (
    BATCH_SIZE,
    ImageGenerator,
    ModelGenerator,
    said_if_alike,
    sample_from,
)
from pelap.pipelines.model_io import load_model
from pelap.pipelines.pipeline_io import is_pipeline, open_pipeline

PIPELINE_BATCH_SIZE = 8
"""Pictures at a time: a stranger's network may be a thousand times larger than ours."""


def sample(
    folder: Path, num: int, seed: int, steps: int, out: Path, device: str, prompts: Path | None = None
) -> None:
    """Write `num` samples and a grid of them into `out`: PNG files; of sounds spectrograms, and WAV files.

    Sample i depends on (seed, i) alone.

    Args:
        folder: A model folder of this project or of a diffusers pipeline, pruned or not.
        num: How many samples.
        seed: Names the noise.
        steps: Of DDIM for our models, of its own scheduler for a pipeline.
        out: New folder for the samples.
        device: As on the command line.
        prompts: For text-to-image: one prompt a line; picture i is of prompt i, again and again. None: a
            model of this project uses its own, a pipeline needs some.

    Raises:
        ConfigError: `out` holds something, `steps` does not suit the model, or prompts are missing or out of
            place.
        ModelError: The folder cannot be loaded, its pipeline is of no kind that is supported, or fails, or
            what it makes is not finite.
        DataError: The file of prompts cannot be read, or a prompt is not in the vocabulary of a model.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty; name a new folder, so that nothing is mixed or lost")
    maker = _maker(folder, steps, choose_device(device), prompts)
    images = sample_from(maker.source, num, seed, maker.batch_size)
    said_if_alike(str(folder), images)
    with atomic_dir(out) as partial:
        for index in range(num):
            maker.modality.save(images[index : index + 1], partial / f"{index:05d}")
        maker.modality.save_grid(images, partial / GRID)
    print(f"{num} {maker.modality.noun} and {GRID} in {out}")


class _Maker(NamedTuple):
    source: ImageGenerator
    batch_size: int
    """Samples at a time."""
    modality: Modality


def _maker(folder: Path, steps: int, device: torch.device, prompts: Path | None) -> _Maker:
    if is_pipeline(folder):
        pipeline = open_pipeline(folder, steps, device, prompts)
        return _Maker(pipeline, PIPELINE_BATCH_SIZE, modality_of(None))
    model = load_model(folder, device)
    if prompts is not None:
        if model.conditioner is None:
            raise ConfigError(f"--prompts {prompts}: {folder} takes no text; leave --prompts out")
        model.conditioner.set_prompts(read_prompts(prompts))
    source = ModelGenerator(model, SamplerParams(kind="ddim", steps=steps))
    return _Maker(source, BATCH_SIZE, modality_of(model.info.sound))
