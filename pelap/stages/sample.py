"""sample: pictures from any model folder, or from that of a diffusers pipeline."""

from pathlib import Path

import torch

from pelap.data.grid import save_grid, save_png
from pelap.device import choose_device
from pelap.errors import ConfigError
from pelap.io import atomic_dir
from pelap.loading import is_pipeline, load_model
from pelap.params import SamplerParams
from pelap.sampling import BATCH_SIZE, ModelSource, Source, sample_from
from pelap.stages.piped import open_pipeline

GRID = "grid.png"
PIPELINE_BATCH_SIZE = 8
"""Pictures at a time: a stranger's network may be a thousand times larger than ours."""


def sample(
    folder: Path, num: int, seed: int, steps: int, out: Path, device: str, prompts: Path | None = None
) -> None:
    """Write `num` PNG pictures and a grid into `out`; picture i depends on (seed, i) alone.

    Args:
        folder: A model folder of this project or of a diffusers pipeline, pruned or not.
        num: How many pictures.
        seed: Names the noise.
        steps: Of DDIM for our models, of its own scheduler for a pipeline.
        out: New folder for the pictures.
        device: As on the command line.
        prompts: For text-to-image: one prompt a line; picture i is of prompt i, again and again.

    Raises:
        ConfigError: `out` holds something, `steps` does not suit the model, or prompts are missing or out of
            place.
        ModelError: The folder cannot be loaded, or its pipeline is of no kind that is supported.
        DataError: The file of prompts cannot be read.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty; name a new folder, so that nothing is mixed or lost")
    source, batch_size = _source(folder, steps, choose_device(device), prompts)
    images = sample_from(source, num, seed, batch_size)
    with atomic_dir(out) as partial:
        for index, image in enumerate(images):
            save_png(image, partial / f"{index:05d}.png")
        save_grid(images, partial / GRID)
    print(f"{num} pictures and {GRID} in {out}")


def _source(folder: Path, steps: int, device: torch.device, prompts: Path | None) -> tuple[Source, int]:
    """What makes the pictures, and how many at a time."""
    if is_pipeline(folder):
        return open_pipeline(folder, steps, device, prompts), PIPELINE_BATCH_SIZE
    if prompts is not None and folder.is_dir():
        raise ConfigError(f"--prompts {prompts}: {folder} takes no text; leave --prompts out")
    model = load_model(folder, device)
    return ModelSource(model, SamplerParams(kind="ddim", steps=steps)), BATCH_SIZE
