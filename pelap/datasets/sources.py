"""Every data set by its name in `params.yaml`."""

from importlib import import_module
from pathlib import Path

from pelap.config import DownloadParams
from pelap.config.rules import BUILTIN_DATASETS
from pelap.core.errors import DataError
from pelap.data.dataset import ImageDataset


def build_dataset(name: str, params: DownloadParams, seed: int, data_dir: Path) -> ImageDataset:
    """Make a data set by the function `build` of its module, which takes the same arguments.

    Args:
        name: Key of `BUILTIN_DATASETS` or of `params.folders`.
        params: The section `download`.
        seed: Of the run; only data sets that have a section of their own in `download` depend on it.
        data_dir: The data folder; archives are looked for and put in its ``downloads``, and fetched from
            the network only if nothing here holds them.

    Raises:
        DataError: They cannot be had or read; one line that says how to mend it.
    """
    module = BUILTIN_DATASETS.get(name, "folder")
    if module == "folder" and name not in params.folders:
        raise DataError(f"dataset: {name!r} is unknown; add its path to download.folders")
    dataset: ImageDataset = import_module(f"pelap.datasets.{module}").build(name, params, seed, data_dir)
    return dataset
