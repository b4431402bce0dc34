"""A user's own pictures or sounds: a folder or archive with ``train/<class>/*`` and ``test/<class>/*``."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath

import torch

from pelap.config import SoundParams
from pelap.core.errors import DataError
from pelap.core.files import one_line, sha256
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset, Split, make_split, pixel_checksum
from pelap.data.entries import (
    KINDS,
    Remark,
    Remarks,
    entries,
    is_hidden,
    parts_of,
    passed_over,
    reading,
)
from pelap.data.pictures import decode
from pelap.data.sounds import read_wav, to_spectrograms
from pelap.datasets.locate import locate

SPLITS = ("train", "test")
NUMBER = re.compile(r"[0-9]+")
LAYOUT = "lay it out as train/<class>/* and test/<class>/*, with PNG or JPEG pictures, or WAV sounds"


@dataclass(frozen=True)
class Place:
    """A path of the layout taken apart; `rest` is empty for what lies directly in the split."""

    wrapper: str
    split: str
    label: str
    rest: str


@dataclass
class Found:
    """What the source holds."""

    wrappers: set[str] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)
    examples: dict[str, str] = field(default_factory=dict)
    """Kind of file -> the first path of it."""
    images: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)
    """(split, class, path below, path as written) -> uint8 (1, 3, S, S), of a sound (windows, 1, S, S)"""
    spellings: dict[str, set[str]] = field(default_factory=dict)
    """Class -> the ways in which it is written."""
    remarks: Remarks = field(default_factory=Remarks)

    def having(self, split: str) -> set[str]:
        """Classes with items in a split."""
        return {label for name, label, *_ in self.images if name == split}


Decoder = Callable[[bytes, str, Remark], torch.Tensor]
"""(content, name for errors, what to call with changes) -> the items of a file, uint8 (N, C, S, S)."""


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
        location: Path from `params.yaml`. A bare name, or a path in the downloads, is looked for in the data
            folder's downloads and in the folder of `PELAP_DATA_DIR` as well; any other has to be there.
        image_size: Side in pixels, for sounds bands and frames.
        sounds: How sounds are analysed.
        data_dir: The data folder.

    Raises:
        DataError: It is missing or damaged, has another layout, holds both pictures and sounds, or one of
            them cannot be read.
    """
    source = locate(name, location, data_dir)
    with reading(source):
        found = _read(source, _decoders(image_size, sounds))
    for line in found.remarks.lines():  # which may explain what is wrong
        print(f"{name}: {line}")
    _check_layout(source, found)
    class_names = _in_order(source, found.classes)
    train, test = (_split(found, split, class_names) for split in SPLITS)
    checksum = sha256(source) if source.is_file() else pixel_checksum(train, test)
    sound = sounds if "sounds" in found.examples else None
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


def _in_order(source: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Numbers by size, other names as text."""
    names = sorted(names)
    if not all(NUMBER.fullmatch(name) for name in names):
        return tuple(names)
    by_size = sorted(names, key=int)
    for one, other in pairwise(by_size):
        if int(one) == int(other):
            raise DataError(f"{source}: classes {one} and {other} are the same number; rename one")
    return tuple(by_size)


def _decoders(image_size: int, sounds: SoundParams) -> dict[str, Decoder]:
    """How each kind of file is read."""

    def picture(data: bytes, name: str, remark: Remark) -> torch.Tensor:
        try:
            return decode(data, image_size, remark).unsqueeze(0)
        except ValueError as error:
            raise DataError(
                f"{name} is not a readable PNG or JPEG ({one_line(error)}); repair or remove it"
            ) from None

    def sound(data: bytes, name: str, remark: Remark) -> torch.Tensor:
        return to_spectrograms(read_wav(data, name, sounds, image_size, remark), sounds)

    return {"pictures": picture, "sounds": sound}


def _read(source: Path, decoders: dict[str, Decoder]) -> Found:
    found = Found()
    for entry in entries(source, found.remarks):
        place = parse(entry.path)
        inside = place is not None and (entry.read is None or place.rest)
        if place is not None and inside:
            found.wrappers.add(place.wrapper)
            found.classes.add(_class_name(source, place.label, found))
        if entry.read is None:
            continue
        reason = passed_over(entry.path)
        if place is None or not inside or reason is not None:
            outside = "pictures and sounds outside train/<class>/ and test/<class>/ passed over"
            found.remarks.add(reason or outside, entry.path)
        else:
            _read_file(source, entry.path, entry.read, place, found, decoders)
    return found


def _read_file(
    source: Path,
    path: str,
    read: Callable[[], bytes],
    place: Place,
    found: Found,
    decoders: dict[str, Decoder],
) -> None:
    kind = KINDS[PurePosixPath(path.lower()).suffix]
    found.examples.setdefault(kind, path)
    _check_one_kind(source, found)
    key = (place.split, _nfc(place.label), _nfc(place.rest), path)
    if key in found.images:
        found.remarks.add("files replaced by later ones of the same name", path)
    found.images[key] = decoders[kind](read(), f"{source}: {path}", found.remarks.about(path))


def _class_name(source: Path, label: str, found: Found) -> str:
    """The name of a class, however its accents are written."""
    name = _nfc(label)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{source}: the name of the class {label!a} is not UTF-8; rename it") from None
    spellings = found.spellings.setdefault(name, set())
    if len(spellings) == 1 and label not in spellings:
        found.remarks.add("classes whose accents are written in two ways (Unicode NFC, NFD) joined", name)
    spellings.add(label)
    return name


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _check_one_kind(source: Path, found: Found) -> None:
    """Raise a `DataError` as soon as there are pictures and sounds: what follows may be hours long."""
    if len(found.examples) > 1:
        files = " and ".join(sorted(found.examples.values()))
        raise DataError(f"{source}: holds pictures and sounds ({files}); keep one kind")


def _check_layout(source: Path, found: Found) -> None:
    """Raise a `DataError` unless both splits have items of every class."""
    for split in SPLITS:
        if not found.having(split):
            raise DataError(f"{source}: no pictures or sounds in {split}/<class>/; {LAYOUT}")
    if len(found.wrappers) > 1:
        folders = ", ".join(repr(wrapper or ".") for wrapper in sorted(found.wrappers))
        raise DataError(f"{source}: more than one folder holds train/ or test/ ({folders}); keep one")
    for split in SPLITS:
        lacking = sorted(found.classes - found.having(split))
        if lacking:
            raise DataError(
                f"{source}: no pictures or sounds in {split}/ for {', '.join(map(_shown, lacking))}; every "
                "class needs some in train/ and in test/: add them, or remove the class from both"
            )


def _shown(name: str) -> str:
    """A name that tells itself from others that look the same."""
    return " = ".join(dict.fromkeys((repr(name), ascii(name))))


def _split(found: Found, split: str, class_names: tuple[str, ...]) -> Split:
    """The items of a split in an order that is drawn: paths, and the windows of a sound, may have one."""
    label_of = {name: label for label, name in enumerate(class_names)}
    items = [
        (image, label_of[key[1]])
        for key in sorted(found.images)
        if key[0] == split
        for image in found.images[key]
    ]
    drawn = generator(0, f"folder/{split}")
    return make_split([image for image, _ in items], [label for _, label in items], drawn)
