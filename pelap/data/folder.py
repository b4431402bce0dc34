"""A user's own pictures or sounds: a folder or archive with ``train/<class>/*`` and ``test/<class>/*``."""

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import torch

from pelap.data.dataset import ImageDataset, Split, make_split, pixel_checksum
from pelap.data.locate import find_file, where_to_put
from pelap.data.pictures import decode
from pelap.data.spectrogram import to_spectrograms
from pelap.data.wav import read_wav
from pelap.errors import DataError
from pelap.io import one_line, sha256
from pelap.params import SoundParams
from pelap.seeding import generator

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of pictures."""
KINDS = {**dict.fromkeys(SUFFIXES, "pictures"), ".wav": "sounds"}
"""What a file holds, by the end of its name."""
LAYOUT = "lay it out as train/<class>/* and test/<class>/*, with PNG or JPEG pictures, or WAV sounds"
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Entry:
    """A file or folder of the source: its path inside, and how to read it (None for a folder)."""

    path: str
    read: Callable[[], bytes] | None


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
    images: dict[tuple[str, str, str], torch.Tensor] = field(default_factory=dict)
    """(split, class, path below) -> uint8 (1, 3, S, S), of a sound (windows, 1, S, S)"""

    def having(self, split: str) -> set[str]:
        """Classes with items in a split."""
        return {label for name, label, _ in self.images if name == split}


Decoder = Callable[[bytes, str], torch.Tensor]
"""(content, name for errors) -> the items of a file, uint8 (N, C, S, S)."""


def build_folder(
    name: str, location: str, image_size: int, sounds: SoundParams, data_dir: Path
) -> ImageDataset:
    """Read a folder or archive of pictures, or of sounds.

    Pictures become RGB, their central square resized to `image_size`; a sound becomes the spectrograms of
    its windows, those that are silent left out. Hidden files, and files that are neither PNG, JPEG nor WAV
    by their name, are passed over; one folder around train/ and test/ does no harm. Archives are read as
    they are, nothing is unpacked to disk.

    Args:
        name: Of the data set.
        location: Path from `params.yaml`; if nothing is there, its file name is looked for in the
            downloads and in the folder of `PELAP_DATA_DIR`.
        image_size: Side in pixels, for sounds bands and frames.
        sounds: How sounds are analysed.
        data_dir: The data folder.

    Raises:
        DataError: It is missing or damaged, has another layout, holds both pictures and sounds, or one of
            them cannot be read.
    """
    source = _locate(name, location, data_dir)
    try:
        found = _read(source, _decoders(image_size, sounds))
    except UNREADABLE as error:
        raise DataError(
            f"{source}: cannot be read to its end ({one_line(error)}); copy or download it again"
        ) from None
    _check_layout(source, found)
    class_names = tuple(sorted(found.classes))
    train, test = (_split(found, split, class_names) for split in SPLITS)
    checksum = sha256(source) if source.is_file() else pixel_checksum(train, test)
    sound = sounds if "sounds" in found.examples else None
    return ImageDataset(name, train, test, class_names, source.name, checksum, sound)


def parse(path: str) -> Place | None:
    """Take a path inside the source apart; None for hidden files and what lies outside the layout."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return None
    for depth in (0, 1):
        if len(parts) > depth + 1 and parts[depth] in SPLITS:
            split, label, *rest = parts[depth:]
            return Place("/".join(parts[:depth]), split, label, "/".join(rest))
    return None


def _locate(name: str, location: str, data_dir: Path) -> Path:
    path = Path(location).expanduser()
    found = path if path.exists() else find_file(path.name, data_dir)
    if found is None:
        raise DataError(
            f"{path}: no such file or folder; correct download.folders.{name}, or "
            f"{where_to_put(path.name, data_dir)}"
        )
    return found


def _decoders(image_size: int, sounds: SoundParams) -> dict[str, Decoder]:
    """How each kind of file is read."""

    def picture(data: bytes, name: str) -> torch.Tensor:
        try:
            return decode(data, image_size).unsqueeze(0)
        except ValueError as error:
            raise DataError(
                f"{name} is not a readable PNG or JPEG ({one_line(error)}); repair or remove it"
            ) from None

    def sound(data: bytes, name: str) -> torch.Tensor:
        return to_spectrograms(read_wav(data, name, sounds, image_size), sounds)

    return {"pictures": picture, "sounds": sound}


def _read(source: Path, decoders: dict[str, Decoder]) -> Found:
    found = Found()
    for entry in _entries(source):
        place = parse(entry.path)
        if place is None or not (place.rest or entry.read is None):
            continue
        found.wrappers.add(place.wrapper)
        found.classes.add(place.label)
        kind = KINDS.get(PurePosixPath(entry.path.lower()).suffix)
        if entry.read is not None and kind is not None:
            found.examples.setdefault(kind, entry.path)
            _check_one_kind(source, found)
            items = decoders[kind](entry.read(), f"{source}: {entry.path}")
            found.images[place.split, place.label, place.rest] = items
    return found


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
                f"{source}: no pictures or sounds in {split}/ for {', '.join(lacking)}; every class needs "
                "some in train/ and in test/: add them, or remove the class from both"
            )


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


def _entries(source: Path) -> Iterator[Entry]:
    if source.is_dir():
        return _folder_entries(source)
    return _zip_entries(source) if source.suffix.lower() == ".zip" else _tar_entries(source)


def _folder_entries(source: Path) -> Iterator[Entry]:
    seen = set()
    for parent, folders, files in os.walk(source, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder above would go round for ever
            folders.clear()
            continue
        seen.add(real)
        inside = Path(parent).relative_to(source)
        for name in folders:
            yield Entry((inside / name).as_posix(), None)
        for name in files:
            yield Entry((inside / name).as_posix(), (Path(parent) / name).read_bytes)


def _zip_entries(source: Path) -> Iterator[Entry]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            yield Entry(info.filename, None if info.is_dir() else partial(_zip_bytes, archive, info))


def _zip_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except RuntimeError as error:  # encrypted, or a compression that Python lacks
        raise zipfile.BadZipFile(str(error)) from None


def _tar_entries(source: Path) -> Iterator[Entry]:
    """Members in the order of the archive: reading on and on decompresses it once."""
    with tarfile.open(source) as archive:
        for member in archive:
            yield Entry(member.name, None if member.isdir() else partial(_tar_bytes, archive, member))
        if archive.fileobj is None or archive.fileobj.tell() == archive.offset:
            # Python takes a tar cut between two members for a whole one; the end mark tells.
            raise tarfile.ReadError("the end mark is missing")


def _tar_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = archive.extractfile(member)
    except KeyError as error:  # a link to what the archive does not hold
        raise tarfile.ReadError(str(error)) from None
    return b"" if file is None else file.read()
