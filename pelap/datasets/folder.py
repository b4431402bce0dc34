"""A user's own pictures or sounds: a folder or archive with ``train/<class>/*`` and ``test/<class>/*``."""

import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from pelap.config import DownloadParams, SoundParams
from pelap.core.digests import sha256
from pelap.core.errors import DataError
from pelap.core.files import one_line
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset, Split, make_split, pixel_checksum
from pelap.data.entries import (
    Entry,
    Remark,
    Remarks,
    entries,
    is_hidden,
    kind_of,
    parts_of,
    passed_over,
    reading,
)
from pelap.data.pictures import decode
from pelap.data.sounds import read_wav, to_spectrograms
from pelap.datasets.sources import locate

SPLITS = ("train", "test")
LAYOUT = "lay it out as train/<class>/* and test/<class>/*, with PNG or JPEG pictures, or WAV sounds"
OUTSIDE = "pictures and sounds outside train/<class>/ and test/<class>/ passed over"


class Place(NamedTuple):
    """A path of the layout taken apart; `rest` is empty for what lies directly in the split."""

    wrapper: str
    split: str
    label: str
    rest: str


def build(name: str, params: DownloadParams, seed: int, data_dir: Path) -> ImageDataset:
    """The data set of a key of `params.folders`; see `build_folder`."""
    return build_folder(name, params.folders[name], params.image_size, params.sounds, data_dir)


def build_folder(
    name: str, location: str, image_size: int, sounds: SoundParams, data_dir: Path
) -> ImageDataset:
    """Read a folder or archive of pictures, or of sounds, and print what was passed over or changed.

    Pictures become RGB, what is transparent in them laid on white, their central square resized to
    `image_size`; a sound becomes the spectrograms of its windows, those that are silent left out. Links are
    followed. Hidden files, and files that are neither PNG, JPEG nor WAV by their name, are passed over; one
    folder around train/ and test/ does no harm. Archives are read as they are, nothing is unpacked to disk.

    Classes have the order of their names as text (as in torchvision's `ImageFolder`), unless all are whole
    numbers: those have the order of the numbers, so that classes 0 to 10 have the labels 0 to 10. Accents
    written in two ways (NFC, and NFD as on a Mac) are the same.

    Args:
        name: Of the data set.
        location: A bare name, or a path in the downloads, is looked for in the data folder's downloads and in
            the folder of `PELAP_DATA_DIR` as well; any other has to be there.
        image_size: Side in pixels, for sounds bands and frames.
        sounds: How sounds are analysed.
        data_dir: The data folder.

    Raises:
        DataError: It is missing or damaged, has another layout, holds both pictures and sounds, or one of
            them cannot be read.
    """
    source = locate(name, location, data_dir)
    reader = _Reader(source, image_size, sounds)
    with reading(source):
        for entry in entries(source, reader.remarks):
            reader.take(entry)
    for line in reader.remarks.lines():  # which may explain what is wrong
        print(f"{name}: {line}")
    reader.check_layout()
    class_names = _in_order(source, reader.classes)
    train, test = (reader.split(split, class_names) for split in SPLITS)
    checksum = sha256(source) if source.is_file() else pixel_checksum(train, test)
    sound = sounds if "sounds" in reader.examples else None
    return ImageDataset(name, train, test, class_names, source.name, checksum, sound)


def parse(path: str) -> Place | None:
    """Take a path inside the source apart; None for hidden files and what lies outside the layout."""
    parts = parts_of(path)
    if is_hidden(path):
        return None
    for depth in (0, 1):
        if len(parts) > depth + 1 and parts[depth] in SPLITS:
            split, label, *rest = parts[depth:]
            return Place("/".join(parts[:depth]), split, label, "/".join(rest))
    return None


class _Reader:
    """Takes the entries of a source one by one, and keeps what they hold."""

    def __init__(self, source: Path, image_size: int, sounds: SoundParams) -> None:
        self.source, self.image_size, self.sounds = source, image_size, sounds
        self.remarks = Remarks()
        self.wrappers: set[str] = set()
        self.classes: dict[str, set[str]] = {}  # every class and the ways in which it is written
        self.examples: dict[str, str] = {}  # kind of file -> the first path of it
        self.images: dict[tuple[str, str, str, str], torch.Tensor] = {}
        """(split, class, path below, path as written) -> uint8 (1, 3, S, S), of a sound (windows, 1, S, S)"""

    def take(self, entry: Entry) -> None:
        place = parse(entry.path)
        if place is not None and entry.read is not None and not place.rest:
            place = None  # a file in the place of a class
        if place is not None:
            self.wrappers.add(place.wrapper)
            self._note_class(place.label)
        if entry.read is None:
            return
        reason = passed_over(entry.path)
        if place is None or reason is not None:
            self.remarks.add(reason or OUTSIDE, entry.path)
            return
        kind = str(kind_of(entry.path))
        self.examples.setdefault(kind, entry.path)
        if len(self.examples) > 1:  # as soon as there are both: what follows may be hours long
            files = " and ".join(sorted(self.examples.values()))
            raise DataError(f"{self.source}: holds pictures and sounds ({files}); keep one kind")
        key = (place.split, _nfc(place.label), _nfc(place.rest), entry.path)
        if key in self.images:
            self.remarks.add("files replaced by later ones of the same name", entry.path)
        decoded = self._picture if kind == "pictures" else self._sound
        self.images[key] = decoded(
            entry.read(), f"{self.source}: {entry.path}", self.remarks.about(entry.path)
        )

    def check_layout(self) -> None:
        """Raise a `DataError` unless both splits have items of every class."""
        having = {split: {label for name, label, *_ in self.images if name == split} for split in SPLITS}
        for split in SPLITS:
            if not having[split]:
                raise DataError(f"{self.source}: no pictures or sounds in {split}/<class>/; {LAYOUT}")
        if len(self.wrappers) > 1:
            folders = ", ".join(repr(wrapper or ".") for wrapper in sorted(self.wrappers))
            raise DataError(
                f"{self.source}: more than one folder holds train/ or test/ ({folders}); keep one"
            )
        for split in SPLITS:
            if lacking := sorted(self.classes.keys() - having[split]):
                raise DataError(
                    f"{self.source}: no pictures or sounds in {split}/ for {', '.join(map(_shown, lacking))}"
                    "; every class needs some in train/ and in test/: add them, or remove the class from both"
                )

    def split(self, split: str, class_names: tuple[str, ...]) -> Split:
        """The items of a split in an order that is drawn: paths, and the windows of a sound, may have one."""
        label_of = {name: label for label, name in enumerate(class_names)}
        keys = [key for key in sorted(self.images) if key[0] == split]
        images = [image for key in keys for image in self.images[key]]
        labels = [label_of[key[1]] for key in keys for _ in self.images[key]]
        return make_split(images, labels, generator(0, f"folder/{split}"))

    def _note_class(self, label: str) -> None:
        name = _nfc(label)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{self.source}: the name of the class {label!a} is not UTF-8; rename it"
            ) from None
        spellings = self.classes.setdefault(name, set())
        if len(spellings) == 1 and label not in spellings:
            self.remarks.add("classes whose accents are written in two ways (Unicode NFC, NFD) joined", name)
        spellings.add(label)

    def _picture(self, data: bytes, name: str, remark: Remark) -> torch.Tensor:
        try:
            return decode(data, self.image_size, remark).unsqueeze(0)
        except ValueError as error:
            raise DataError(
                f"{name} is not a readable PNG or JPEG ({one_line(error)}); repair or remove it"
            ) from None

    def _sound(self, data: bytes, name: str, remark: Remark) -> torch.Tensor:
        windows = read_wav(data, name, self.sounds, self.image_size, remark)
        return to_spectrograms(windows, self.sounds)


def _in_order(source: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Numbers by size, other names as text."""
    in_order = sorted(names)
    if all(name.isascii() and name.isdecimal() for name in in_order):
        in_order.sort(key=int)
        for one, other in pairwise(in_order):
            if int(one) == int(other):
                raise DataError(f"{source}: classes {one} and {other} are the same number; rename one")
    return tuple(in_order)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _shown(name: str) -> str:
    """A name that tells itself from others that look the same."""
    return " = ".join(dict.fromkeys((repr(name), ascii(name))))
