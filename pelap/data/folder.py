"""A user's own pictures: a folder or an archive with ``train/<class>/*`` and ``test/<class>/*``."""

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from pelap.data.dataset import ImageDataset, Split, make_split, pixel_checksum
from pelap.data.locate import find_file, where_to_put
from pelap.data.pictures import decode
from pelap.errors import DataError
from pelap.io import one_line, sha256

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
LAYOUT = "lay it out as train/<class>/* and test/<class>/*, with PNG or JPEG pictures"
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
    images: dict[tuple[str, str, str], torch.Tensor] = field(default_factory=dict)
    """(split, class, path below) -> (3, S, S) uint8"""

    def having(self, split: str) -> set[str]:
        """Classes with pictures in a split."""
        return {label for name, label, _ in self.images if name == split}


def build_folder(name: str, location: str, image_size: int, data_dir: Path) -> ImageDataset:
    """Read a folder or archive; pictures become RGB, their central square resized to `image_size`.

    Hidden files, and files that are neither PNG nor JPEG by their name, are passed over; one folder
    around train/ and test/ does no harm. Archives are read as they are, nothing is unpacked to disk.

    Args:
        name: Of the data set.
        location: Path from `params.yaml`; if nothing is there, its file name is looked for in the
            downloads and in the folder of `PELAP_DATA_DIR`.
        image_size: Side in pixels.
        data_dir: The data folder.

    Raises:
        DataError: It is missing or damaged, has another layout, or a picture cannot be read.
    """
    source = _locate(name, location, data_dir)
    try:
        found = _read(source, image_size)
    except UNREADABLE as error:
        raise DataError(
            f"{source}: cannot be read to its end ({one_line(error)}); copy or download it again"
        ) from None
    _check_layout(source, found)
    class_names = tuple(sorted(found.classes))
    train, test = (_split(found, split, class_names) for split in SPLITS)
    checksum = sha256(source) if source.is_file() else pixel_checksum(train, test)
    return ImageDataset(name, train, test, class_names, source.name, checksum)


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


def _read(source: Path, image_size: int) -> Found:
    found = Found()
    for entry in _entries(source):
        place = parse(entry.path)
        if place is None or not (place.rest or entry.read is None):
            continue
        found.wrappers.add(place.wrapper)
        found.classes.add(place.label)
        if entry.read is not None and entry.path.lower().endswith(SUFFIXES):
            picture = _decode(source, entry.path, entry.read(), image_size)
            found.images[place.split, place.label, place.rest] = picture
    return found


def _decode(source: Path, path: str, data: bytes, image_size: int) -> torch.Tensor:
    try:
        return decode(data, image_size)
    except ValueError as error:
        raise DataError(
            f"{source}: {path} is not a readable PNG or JPEG ({one_line(error)}); repair or remove it"
        ) from None


def _check_layout(source: Path, found: Found) -> None:
    """Raise a `DataError` unless both splits have pictures of every class."""
    for split in SPLITS:
        if not found.having(split):
            raise DataError(f"{source}: no pictures in {split}/<class>/; {LAYOUT}")
    if len(found.wrappers) > 1:
        folders = ", ".join(repr(wrapper or ".") for wrapper in sorted(found.wrappers))
        raise DataError(f"{source}: more than one folder holds train/ or test/ ({folders}); keep one")
    for split in SPLITS:
        lacking = sorted(found.classes - found.having(split))
        if lacking:
            raise DataError(
                f"{source}: no pictures in {split}/ for {', '.join(lacking)}; every class needs some in "
                "train/ and in test/: add them, or remove the class from both"
            )


def _split(found: Found, split: str, class_names: tuple[str, ...]) -> Split:
    """The pictures of a split, sorted by path within their class."""
    keys = sorted(key for key in found.images if key[0] == split)
    label_of = {name: label for label, name in enumerate(class_names)}
    return make_split([found.images[key] for key in keys], [label_of[key[1]] for key in keys])


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
