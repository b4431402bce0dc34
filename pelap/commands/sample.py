"""sample: pictures or sounds from any model folder, or from that of a diffusers pipeline."""

from pathlib import Path

from pelap.api.models import load_pipeline
from pelap.api.quality import make_pictures
from pelap.core import files
from pelap.core.device import choose_device
from pelap.core.files import atomic_dir
from pelap.core.paths import GRID
from pelap.data.modality import modality_of
from pelap.data.prompts import read_prompts
from pelap.diffusion.sampler import said_if_alike
from pelap.models.latent_diffusion import LatentDiffusion


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
    files.demand_new(out)
    texts = None if prompts is None else read_prompts(prompts)
    model = load_pipeline(folder, choose_device(device))
    images = make_pictures(model, num, texts, seed, steps)
    said_if_alike(str(folder), images)
    modality = modality_of(model.info.sound if isinstance(model, LatentDiffusion) else None)
    with atomic_dir(out) as partial:
        for index in range(num):
            modality.save(images[index : index + 1], partial / f"{index:05d}")
        modality.save_grid(images, partial / GRID)
    print(f"{num} {modality.noun} and {GRID} in {out}")
