"""A user's own pictures or sounds: a folder or archive with ``train/<class>/*`` and ``test/<class>/*``."""

import lzma
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import torch

from pelap.data.dataset import ImageDataset, Split, make_split, pixel_checksum
from pelap.data.locate import DATA_DIR_VARIABLE, download_name, find_file, where_to_put
from pelap.data.pictures import decode
from pelap.data.remarks import Remark, Remarks
from pelap.data.spectrogram import to_spectrograms
from pelap.data.wav import read_wav
from pelap.errors import DataError
from pelap.io import one_line, sha256
from pelap.params import SoundParams
from pelap.paths import GRID
from pelap.seeding import generator

SPLITS = ("train", "test")
KINDS = {**dict.fromkeys((".png", ".jpg", ".jpeg"), "pictures"), ".wav": "sounds"}
"""What a file holds, by the end of its name in small letters."""
NUMBER = re.compile(r"[0-9]+")
UTF8_NAME = 0x800
"""Flag of a zip's entry: its name is UTF-8; without it old tools mean the code page 437, newer ones anything."""
LAYOUT = "lay it out as train/<class>/* and test/<class>/*, with PNG or JPEG pictures, or WAV sounds"
LINKED = "links in the archive not followed (pack it with `tar --dereference`, or with `zip` without -y)"
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
    images: dict[tuple[str, ...], torch.Tensor] = field(default_factory=dict)
    """(split, class, path below, path as written) -> uint8 (1, 3, S, S), of a sound (windows, 1, S, S)"""
    spellings: dict[str, str] = field(default_factory=dict)
    """Class -> its name as it was first written."""
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
    source = _locate(name, location, data_dir)
    with reading(source):
        found = _read(source, _decoders(image_size, sounds))
    _check_layout(source, found)
    class_names = _in_order(source, found.classes)
    for line in found.remarks.lines():
        print(f"{name}: {line}")
    train, test = (_split(found, split, class_names) for split in SPLITS)
    checksum = sha256(source) if source.is_file() else pixel_checksum(train, test)
    sound = sounds if "sounds" in found.examples else None
    return ImageDataset(name, train, test, class_names, source.name, checksum, sound)


def parse(path: str) -> Place | None:
    """Take a path inside the source apart; None for hidden files and what lies outside the layout."""
    parts = _parts(path)
    if is_hidden(path):
        return None
    for depth in (0, 1):
        if len(parts) > depth + 1 and parts[depth] in SPLITS:
            split, label, *rest = parts[depth:]
            return Place("/".join(parts[:depth]), split, label, "/".join(rest))
    return None


def is_hidden(path: str) -> bool:
    """Whether a path inside a source is of a hidden file or folder, or of what a Mac adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in _parts(path))


def kind_of(path: str) -> str | None:
    """What a file holds by its name; None for what is no picture and no sound."""
    return KINDS.get(PurePosixPath(path.lower()).suffix)


def passed_over(path: str) -> str | None:
    """Why a file is not read, by its name alone; None for pictures and sounds."""
    if is_hidden(path):
        return "hidden files passed over"
    if kind_of(path) is None:
        return f"files named {PurePosixPath(path).suffix or 'without an ending'} passed over"
    if PurePosixPath(path).name == GRID:
        return f"overviews that `pelap sample` writes, {GRID} left out"
    return None


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Say in one line that `source`, or something in it, could not be read.

    Raises:
        DataError: In the place of what Python raises.
    """
    try:
        yield
    except PermissionError as error:
        where = error.filename or source
        raise DataError(f"{where}: may not be read; give yourself the right, or remove it") from None
    except UNREADABLE as error:
        raise DataError(
            f"{source}: cannot be read to its end ({one_line(error)}); copy or download it again"
        ) from None


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _locate(name: str, location: str, data_dir: Path) -> Path:
    path = Path(location).expanduser()
    if path.exists():
        return path
    wanted = download_name(path, data_dir)
    found = find_file(wanted, data_dir) if wanted is not None else None
    if found is None:
        raise DataError(
            f"{path}: no such file or folder{_seen_from(path)}; correct download.folders.{name}, or "
            + (where_to_put(wanted, data_dir) if wanted is not None else _how_to_name(path))
        )
    print(f"{name}: {path} is read from {found}")
    return found


def _seen_from(path: Path) -> str:
    return "" if path.is_absolute() else f" in {Path.cwd()}"


def _how_to_name(path: Path) -> str:
    return f"give its absolute path, or the bare name {path.name} and its folder in {DATA_DIR_VARIABLE}"


def _in_order(source: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Numbers by size, other names as text."""
    names = sorted(names)
    if not all(NUMBER.fullmatch(name) for name in names):
        return tuple(names)
    by_size = sorted(names, key=int)
    for one, other in zip(by_size, by_size[1:], strict=False):
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
        raise DataError(f"{source}: the name of the class {ascii(label)} is not UTF-8; rename it") from None
    if found.spellings.setdefault(name, label) != label:
        found.spellings[name] = label
        found.remarks.add("class folders whose accents are written in two ways (Unicode NFC, NFD) joined", name)
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


def entries(source: Path, remarks: Remarks) -> Iterator[Entry]:
    """Everything in a folder or archive, at all depths; links in a folder are followed.

    Args:
        source: The folder or archive.
        remarks: Told what cannot be followed or read as it is written.

    Raises:
        OSError: Something may not be read, or, as others of `UNREADABLE`, an archive is damaged.
        DataError: What should be a file is none, once it is read.
    """
    if source.is_dir():
        return _folder_entries(source, remarks)
    if source.suffix.lower() == ".zip":
        return _zip_entries(source, remarks)
    return _tar_entries(source, remarks)


def _folder_entries(
    source: Path, remarks: Remarks, inside: str = "", around: tuple[str, ...] = ()
) -> Iterator[Entry]:
    real = os.path.realpath(source / inside)
    if real in around:  # it would go round for ever
        remarks.add("links to a folder around themselves not followed", inside)
        return
    for name in sorted(os.listdir(source / inside)):
        path = f"{inside}/{name}" if inside else name
        if not os.path.isdir(source / path):
            yield Entry(path, partial(_file_bytes, source, path))
        elif is_hidden(name):
            remarks.add("hidden folders passed over", path)
        else:
            yield Entry(path, None)
            yield from _folder_entries(source, remarks, path, (*around, real))


def _file_bytes(source: Path, path: str) -> bytes:
    if not os.path.isfile(source / path):
        raise DataError(f"{source}: {path} is no file: a link that leads nowhere, or a pipe; remove it")
    return (source / path).read_bytes()


def _zip_entries(source: Path, remarks: Remarks) -> Iterator[Entry]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            path = _zip_path(info, remarks)
            if stat.S_ISLNK(info.external_attr >> 16) and kind_of(path) is None:
                remarks.add(LINKED, path)
            else:
                yield Entry(path, None if path.endswith("/") else partial(_zip_bytes, archive, info))


def _zip_path(info: zipfile.ZipInfo, remarks: Remarks) -> str:
    """Its name, with the separators and the encoding that its writer meant."""
    path = info.filename
    if not info.flag_bits & UTF8_NAME and not path.isascii():
        try:
            path = path.encode("cp437").decode()  # as a Mac writes it, and does not say so
        except UnicodeDecodeError:
            remarks.add("names that are not UTF-8 read in code page 437", path)
    if "\\" in path:
        path = path.replace("\\", "/")
        remarks.add("names with backslashes read as paths", path)
    return path


def _zip_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except RuntimeError as error:  # encrypted, or a compression that Python lacks
        raise zipfile.BadZipFile(str(error)) from None


def _tar_entries(source: Path, remarks: Remarks) -> Iterator[Entry]:
    """Members in the order of the archive: reading on and on decompresses it once."""
    with tarfile.open(source) as archive:
        for member in archive:
            if member.issym() and kind_of(member.name) is None:
                remarks.add(LINKED, member.name)
            else:
                yield Entry(member.name, None if member.isdir() else partial(_tar_bytes, archive, member))
        if archive.fileobj is None or archive.fileobj.tell() == archive.offset:
            # Python takes a tar cut between two members for a whole one; the end mark tells.
            raise tarfile.ReadError("the end mark is missing")


def _tar_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = archive.extractfile(member)
    except (KeyError, RecursionError) as error:  # a link to what the archive does not hold, or to itself
        raise tarfile.ReadError(f"{member.name}: {one_line(error)}") from None
    return b"" if file is None else file.read()
