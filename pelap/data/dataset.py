"""The packed data set: uint8 pictures and labels in one safetensors file, and batches made from them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from pelap.config import DownloadParams, Section, SoundParams
from pelap.core import digests, files
from pelap.core.errors import DataError
from pelap.core.keys import Key, key


@dataclass(frozen=True)
class Split:
    """Pictures, or sounds as pictures of their spectrograms, and their labels."""

    images: torch.Tensor  # (N, 3 or for sounds 1, H, W) uint8, H = W
    labels: torch.Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ImageDataset:
    """Train and test pictures with their provenance."""

    name: str  # as in `params.yaml`
    train: Split
    test: Split  # never learnt from
    class_names: tuple[str, ...]  # of label 0, 1, ...
    source: str  # where the pictures come from, in words
    checksum: str
    """Hexadecimal SHA-256 of the source archive (of all its files one after the other); of photographs, and
    of a folder that is no archive, `pixel_checksum`."""
    sound: SoundParams | None = None  # how its spectrograms came from sounds; None for pictures
    made_by: Mapping[str, str] = field(default_factory=dict)
    """Digests of the parameters that it was made by, by name; empty: not known."""

    @cached_property
    def key(self) -> Key:
        """Of what is learnt and measured from it: pixels, labels, and the names of the classes in order."""
        return key(train=self.train, test=self.test, class_names=self.class_names)


def made_by(name: str, params: DownloadParams, seed: int) -> Key:
    """The parameters that decide what is in a data set; where the user's own lie does not count.

    They are the section of its name and the seed, where there is such a section; a folder may hold sounds.
    """
    sections = {field: section for field, section in params if isinstance(section, Section)}
    used = {name, "sounds"} if name in params.folders else {name}
    return key(
        image_size=params.image_size,
        seed=seed if name in sections else None,
        **{field: section if field in used else None for field, section in sections.items()},
    )


def pixel_checksum(train: Split, test: Split) -> str:
    """Hexadecimal SHA-256 of the pixels and labels of train, then of test."""
    sha = hashlib.sha256()
    for tensor in (train.images, train.labels, test.images, test.labels):
        sha.update(tensor.contiguous().numpy().data)
    return sha.hexdigest()


def make_split(
    images: Sequence[torch.Tensor] | torch.Tensor, labels: Sequence[int], drawn: torch.Generator | None = None
) -> Split:
    """Stack pictures (3, H, W) into a split, classes evenly mixed.

    Every prefix then holds the classes in the proportions of the whole, so that "the first 1,000
    pictures" stand for all.

    `drawn` draws the order within classes, and that of classes within a round. None leaves it as it is: for
    pictures that were drawn at random themselves, which sorted paths are not.
    """
    given = list(range(len(labels)))
    if drawn is not None:
        given = torch.randperm(len(labels), generator=drawn).tolist()
    order = [given[place] for place in _mixed([labels[i] for i in given])]
    return Split(torch.stack([images[i] for i in order]), torch.tensor([labels[i] for i in order]))


def _mixed(labels: Sequence[int]) -> list[int]:
    """Positions, by how far into its own class each item lies (ties: as they come)."""
    totals = torch.tensor(labels).bincount().tolist()
    seen = [0] * len(totals)
    places = []
    for position, label in enumerate(labels):
        places.append(((seen[label] + 0.5) / totals[label], position))
        seen[label] += 1
    return [position for _, position in sorted(places)]


def save_dataset(dataset: ImageDataset, path: Path) -> None:
    """Write the one packed file, atomically."""
    tensors = {
        "train_images": dataset.train.images,
        "train_labels": dataset.train.labels,
        "test_images": dataset.test.images,
        "test_labels": dataset.test.labels,
    }
    metadata = {
        "name": dataset.name,
        "class_names": json.dumps(dataset.class_names),
        "source": dataset.source,
        "checksum": dataset.checksum,
    }
    if dataset.made_by:
        metadata["made_by"] = json.dumps(dict(dataset.made_by))
    if dataset.sound is not None:
        metadata["sound"] = dataset.sound.model_dump_json()
    files.save_tensors(path, tensors, metadata | {"digest": _digest(tensors, metadata)})


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that the file says: a picture that was changed by chance looks like any other."""
    said = {name: text for name, text in metadata.items() if name != "digest"}
    return digests.digest([digests.tensors_digest(dict(sorted(tensors.items()))), said])


def load_dataset(path: Path) -> ImageDataset:
    """Read and check a packed file.

    Raises:
        DataError: The file is missing, incomplete, or holds something else.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `pelap download` with the same --params and --data")
    tensors, metadata = files.load_tensors(path)
    if metadata.get("digest", now := _digest(tensors, metadata)) != now:  # version 0.1 wrote none
        raise DataError(f"{path}: is not as it was packed; delete it and run `pelap download` again")
    try:
        class_names, sound = json.loads(metadata["class_names"]), json.loads(metadata.get("sound", "null"))
        dataset = ImageDataset(
            name=metadata["name"],
            train=Split(tensors["train_images"], tensors["train_labels"]),
            test=Split(tensors["test_images"], tensors["test_labels"]),
            class_names=tuple(class_names),
            source=metadata["source"],
            checksum=metadata["checksum"],
            sound=sound and SoundParams.written(sound),
            made_by=dict(json.loads(metadata.get("made_by", "{}"))),
        )
        problem = _problem(dataset)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"no usable {files.one_line(error)}"
    if problem:
        raise DataError(
            f"{path}: not a packed data set ({problem}); delete it and run `pelap download` again"
        )
    return dataset


def _problem(dataset: ImageDataset) -> str | None:
    """What keeps a data set from being used, in words."""
    side, num_classes = (dataset.train.images.shape or [0])[-1], len(dataset.class_names)
    if not all(isinstance(name, str) for name in dataset.class_names):
        return "names of classes are texts"
    shape = (3 if dataset.sound is None else 1, side, side)  # sounds have no colours
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        images, labels = split.images, split.labels
        if images.dtype != torch.uint8 or images.dim() != 4 or tuple(images.shape[1:]) != shape:
            wanted = ", ".join(map(str, shape))
            return f"{name} images are {images.dtype} {tuple(images.shape)}, not torch.uint8 (N, {wanted})"
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1] or not len(labels):
            return f"{name} labels are {labels.dtype} {tuple(labels.shape)} for {len(images)} images"
        if labels.min() < 0 or labels.max() >= num_classes:
            return f"{name} labels go from {labels.min()} to {labels.max()} for {num_classes} classes"
    return None


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float32 [-1, 1], any shape."""
    return images.float() / 127.5 - 1.0


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float [-1, 1] (clamped) to uint8 0..255, any shape; the exact inverse of `to_float`."""
    return ((images.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def all_equal(images: torch.Tensor) -> bool:
    """Whether every picture (N, C, H, W) is the same as the first, as of a model that has collapsed."""
    return bool((images == images[:1]).all())


class BatchIndices(NamedTuple):
    """Which pictures make a batch."""

    indices: torch.Tensor  # (B,) int64
    mirrored: torch.Tensor  # (B,) bool: left to right


def epoch_indices(
    num_images: int, batch_size: int, generator: torch.Generator, flip: bool
) -> Iterator[BatchIndices]:
    """One epoch in random order, on the CPU; pictures beyond the last whole batch are dropped.

    With `flip`, each picture is mirrored, left to right, with probability 1/2. The generator is on the CPU,
    so that every device sees the same order and flips.

    Raises:
        DataError: There are fewer pictures than a batch holds (raised by the call itself).
    """
    if num_images < batch_size:
        raise DataError(
            f"batch_size: {batch_size} exceeds the {num_images} pictures of the data set; "
            f"use at most {num_images}"
        )
    order = torch.randperm(num_images, generator=generator)
    mirrored = torch.rand(num_images, generator=generator) < (0.5 if flip else 0.0)
    whole = num_images - num_images % batch_size
    chunks = [every[:whole].split(batch_size) for every in (order, mirrored)]
    return (BatchIndices(*chunk) for chunk in zip(*chunks, strict=True))


def gather_batch(images: torch.Tensor, indices: BatchIndices) -> torch.Tensor:
    """The pictures of a batch, float32 (B, 3 or 1, H, W) in [-1, 1], of uint8 (N, 3 or 1, H, W) beside it."""
    batch = images[indices.indices]  # (B, 3 or 1, H, W)
    return to_float(torch.where(indices.mirrored[:, None, None, None], batch.flip(-1), batch))
