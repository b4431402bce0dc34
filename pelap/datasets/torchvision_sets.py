"""CIFAR-10, CIFAR-100 and SVHN through torchvision, from archives with known checksums."""

import hashlib
import os
import tarfile
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from pelap.config import DownloadParams
from pelap.core.errors import DataError
from pelap.core.files import one_line
from pelap.core.leftovers import scratch_dir
from pelap.core.paths import DOWNLOADS
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset, Split, make_split
from pelap.data.pictures import resize_all
from pelap.datasets.sources import find_file, where_to_put


def build(name: str, params: DownloadParams, seed: int, data_dir: Path) -> ImageDataset:
    """The official `cifar10`, `cifar100` or `svhn` (cropped digits).

    Raises:
        DataError: A file is damaged, or neither here nor to be downloaded.
    """
    return (_svhn if name == "svhn" else _cifar)(name, params.image_size, data_dir)


def _cifar(name: str, image_size: int, data_dir: Path) -> ImageDataset:
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    archive = fetch(kind.url, kind.filename, kind.tgz_md5, data_dir)
    with scratch_dir(Path(tempfile.gettempdir())) as folder:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        stored = [kind(folder, train=train) for train in (True, False)]
    train, test = (_split(each.data, each.targets, image_size) for each in stored)
    return ImageDataset(name, train, test, tuple(stored[0].classes), kind.url, files_checksum([archive]))


def _svhn(name: str, image_size: int, data_dir: Path) -> ImageDataset:
    from torchvision.datasets import SVHN

    splits, files = [], []
    for split in ("train", "test"):
        url, filename, md5 = SVHN.split_list[split]
        files.append(fetch(url, filename, md5, data_dir))
        stored = SVHN(files[-1].parent, split)
        pixels = np.ascontiguousarray(stored.data.transpose(0, 2, 3, 1))  # (N, H, W, 3)
        splits.append(_split(pixels, stored.labels, image_size))
    source = SVHN.split_list["train"][0].rpartition("/")[0]
    train, test = splits
    return ImageDataset(name, train, test, tuple("0123456789"), source, files_checksum(files))


def fetch(url: str, filename: str, md5: str, data_dir: Path) -> Path:
    """The verified file: in the downloads, in the folder of `PELAP_DATA_DIR`, or from the network.

    Raises:
        DataError: It is damaged, or cannot be downloaded.
    """
    from torchvision.datasets.utils import check_integrity

    path = find_file(filename, data_dir)
    if path is None:
        return _download(url, filename, md5, data_dir)
    if not path.is_file() or not check_integrity(path, md5):
        raise DataError(
            f"{path}: damaged or incomplete (its md5 is not {md5}); delete it and run `pelap download` again"
        )
    return path


def files_checksum(files: list[Path]) -> str:
    """Hexadecimal SHA-256 of the files one after the other, as of ``cat FILES | sha256sum``."""
    sha = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: sha)
    return sha.hexdigest()


def _download(url: str, filename: str, md5: str, data_dir: Path) -> Path:
    """Download beside the final place; only a verified file takes the final name."""
    from torchvision.datasets import utils

    folder = data_dir / DOWNLOADS
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_dir(folder) as partial:
        try:
            utils.download_url(url, partial, filename, md5)
        except (OSError, RuntimeError, HTTPException) as error:  # OSError: URLError, timeouts, full disk
            raise DataError(
                f"{url}: cannot be downloaded ({one_line(error)}); "
                f"{where_to_put(filename, data_dir)} (md5 {md5})"
            ) from None
        os.replace(Path(partial) / filename, folder / filename)
    return folder / filename


def _split(pixels: Any, labels: Any, image_size: int) -> Split:
    """A split from an array (N, H, W, 3) uint8 and its labels (N,), in an order that is drawn."""
    images = resize_all(pixels, image_size)
    return make_split(images, [int(label) for label in labels], generator(0, "torchvision"))
