"""sample, remove-channels: what is done with any one model folder."""

from pathlib import Path

from pelap.api.models import load_pipeline
from pelap.api.quality import make_pictures
from pelap.core import files
from pelap.core.device import choose_device
from pelap.core.paths import GRID, packed_dataset
from pelap.data.dataset import load_dataset
from pelap.data.entries import read_prompts
from pelap.data.modality import modality_of
from pelap.diffusion.sampler import said_if_alike
from pelap.masking.channel_removal import closed_channels, cut_channels, describe_cut
from pelap.models.latent_diffusion import LatentDiffusion
from pelap.models.model_io import demand_trained_on
from pelap.pipelines.pipeline_io import load_model, save_model
from pelap.profiling.cost import count_params

BATCH_SIZE = 128


def sample(
    folder: Path, num: int, seed: int, steps: int, out: Path, device: str, prompts: Path | None = None
) -> None:
    """Write `num` samples and a grid of them into `out`: PNG files; of sounds spectrograms, and WAV files.

    Sample i depends on (seed, i) alone.

    Args:
        folder: A model folder of this project or of a diffusers pipeline, pruned or not.
        num: How many samples.
        seed: Of the noise.
        steps: Of DDIM for our models, of its own scheduler for a pipeline.
        out: New folder.
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
    with files.atomic_dir(out) as partial:
        for index in range(num):
            modality.save(images[index : index + 1], partial / f"{index:05d}")
        modality.save_grid(images, partial / GRID)
    print(f"{num} {modality.noun} and {GRID} in {out}")


def remove_channels(folder: Path, data: Path, out: Path, device: str) -> None:
    """Write the model in `folder` into `out`, without the channels closed on every train picture.

    Args:
        folder: Any model folder that is not pruned.
        data: Of the packed data sets; the one that the model was trained on is read.
        out: New folder.
        device: As on the command line.

    Raises:
        ConfigError: `out` holds something.
        ModelError: All channels are closed, the model is pruned, or the data are not what it was trained on.
        DataError: The data set is not there.
    """
    files.demand_new(out)
    model = load_model(folder, choose_device(device))
    dataset = load_dataset(packed_dataset(data, model.info.dataset))
    demand_trained_on(model, folder, dataset)
    closed = closed_channels(model, dataset.train.images, BATCH_SIZE)
    smaller = cut_channels(model, closed)
    save_model(smaller, out)
    print(
        f"{describe_cut(closed, model.latent_shape[0])}; parameters {count_params(model):,} -> "
        f"{count_params(smaller):,}; bytes on disk {_bytes(folder):,} -> {_bytes(out):,}"
    )
    if closed and model.info.variant.decoder_input == "unmasked":
        trained = "its decoder was trained on all of z (decoder_input: unmasked)"
        print(f"{trained}: look at its pictures before you use it")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
