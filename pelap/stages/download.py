"""Stage `download`: make the packed data set that every other stage reads."""

from dataclasses import replace
from pathlib import Path

from pelap.config import Params
from pelap.core import files
from pelap.core.paths import packed_dataset, packed_key
from pelap.data.dataset import ImageDataset, made_by, save_dataset
from pelap.data.modality import modality_of
from pelap.datasets.sources import build_dataset, inputs_of, say_unseen, seen_last
from pelap.stages.shared import Context


def run(context: Context) -> None:
    """Build the data set named by the parameters and save it under the data folder.

    Raises:
        DataError: The pictures cannot be had or read.
        BusyError: Another process is making the same data set.
    """
    params = context.params
    path = packed_dataset(context.data, params.dataset)
    with files.exclusive(path):
        dataset = build_dataset(params.dataset, params.download, params.seed, context.data)
        parts = made_by(params.dataset, params.download, params.seed).parts
        save_dataset(replace(dataset, made_by=parts), path)
        files.write_json(packed_key(context.data, params.dataset), made_of(params, context.data))
    print(f"{describe(dataset)} -> {path}")


def is_packed(params: Params, data: Path) -> bool:
    """Whether there is the packed file, and nothing says that it was made of anything else."""
    file = packed_key(data, params.dataset)
    if not packed_dataset(data, params.dataset).is_file() or not file.is_file():
        return packed_dataset(data, params.dataset).is_file()
    before, now = files.read_noted(file), made_of(params, data)
    say_unseen(now, before)
    names = [name for name, part in seen_last(now, before).items() if part != before.get(name)]
    if names:
        print(f"{params.dataset}: packed anew; what is there was made of other {', '.join(names)}")
    return not names


def made_of(params: Params, data: Path) -> dict[str, str | None]:
    """What decides a packed data set: digests of its parameters, and of what they name outside of the run."""
    outside = inputs_of("download", params.model_dump(include={"dataset", "seed", "download"}), data)
    return {**made_by(params.dataset, params.download, params.seed).parts, **outside}


def describe(dataset: ImageDataset) -> str:
    """The data set in one line."""
    side, noun = dataset.train.images.shape[-1], modality_of(dataset.sound).noun
    return (
        f"{dataset.name}: {len(dataset.train)} train and {len(dataset.test)} test {noun} "
        f"{side}x{side}, {len(dataset.class_names)} classes, sha256 {dataset.checksum[:12]}"
    )
