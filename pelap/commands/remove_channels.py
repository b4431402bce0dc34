"""remove-channels: a model folder without the latent channels that its mask closed."""

from pathlib import Path

from pelap.core import files
from pelap.core.device import choose_device
from pelap.core.paths import packed_dataset
from pelap.data.dataset import load_dataset
from pelap.masking.channel_removal import closed_channels, cut_channels, describe_cut
from pelap.models.model_io import demand_trained_on
from pelap.pipelines.model_io import load_model, save_model
from pelap.profiling.cost import count_params

BATCH_SIZE = 128


def remove_channels(folder: Path, data: Path, out: Path, device: str) -> None:
    """Write the model in `folder` into `out`, without the channels closed on every train picture.

    Args:
        folder: Any model folder that is not pruned.
        data: Folder of the packed data sets; the one that the model was trained on is read.
        out: New folder for the smaller model.
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
        print(
            "its decoder was trained on all of z (decoder_input: unmasked): look at its pictures before you "
            "use it"
        )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
