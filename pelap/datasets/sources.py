"""Every data set by its name in `params.yaml`."""

from pathlib import Path

from pelap.config import DownloadParams
from pelap.core.errors import DataError
from pelap.data.dataset import ImageDataset
from pelap.datasets.folder import build_folder
from pelap.datasets.photos import build_photos
from pelap.datasets.synthesis import build_sounds
from pelap.datasets.torchvision_sets import build_cifar, build_svhn


def build_dataset(name: str, params: DownloadParams, seed: int, data_dir: Path) -> ImageDataset:
    """Make a data set, from the network only if nothing here holds its archive.

    Args:
        name: ``photos``, ``sounds``, ``cifar10``, ``cifar100``, ``svhn`` or a key of `params.folders`.
        params: The section `download`.
        seed: Of the run; only `photos` and `sounds` depend on it.
        data_dir: The data folder; archives are looked for and put in its ``downloads``.

    Raises:
        DataError: They cannot be had or read; one line that says how to mend it.
    """
    if name == "photos":
        return build_photos(params.photos, params.image_size, seed)
    if name == "sounds":
        return build_sounds(params.sounds, params.image_size, seed)
    if name in ("cifar10", "cifar100"):
        return build_cifar(name, params.image_size, data_dir)
    if name == "svhn":
        return build_svhn(params.image_size, data_dir)
    if name in params.folders:
        return build_folder(name, params.folders[name], params.image_size, params.sounds, data_dir)
    raise DataError(f"dataset: {name!r} is unknown; add its path to download.folders")
