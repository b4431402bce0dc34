"""Stage `download`: make the packed data set that every other stage reads."""

from dataclasses import replace

from pelap import io
from pelap.data.dataset import ImageDataset, made_by, save_dataset
from pelap.data.media import medium_of
from pelap.data.sources import build_dataset
from pelap.paths import packed_dataset
from pelap.stages.context import Context


def run(context: Context) -> None:
    """Build the data set named by the parameters and save it under the data folder.

    Raises:
        DataError: The pictures cannot be had or read.
        BusyError: Another process is making the same data set.
    """
    params = context.params
    path = packed_dataset(context.data, params.dataset)
    with io.exclusive(path):
        dataset = build_dataset(params.dataset, params.download, params.seed, context.data)
        parts = made_by(params.dataset, params.download, params.seed).parts
        save_dataset(replace(dataset, made_by=parts), path)
    print(f"{describe(dataset)} -> {path}")


def describe(dataset: ImageDataset) -> str:
    """The data set in one line."""
    side, noun = dataset.train.images.shape[-1], medium_of(dataset.sound).noun
    return (
        f"{dataset.name}: {len(dataset.train)} train and {len(dataset.test)} test {noun} "
        f"{side}x{side}, {len(dataset.class_names)} classes, sha256 {dataset.checksum[:12]}"
    )
