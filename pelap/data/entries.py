"""What a user brings: files in a folder or archive, the same for everything that reads one; prompts."""

import lzma
import os
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pelap.core.errors import DataError
from pelap.core.files import one_line, read_text
from pelap.core.paths import GRID

Remark = Callable[[str], None]
"""Takes what was changed or left out while a file was read, in words that a count can follow."""


class Remarks:
    """What was passed over or changed while files were read: how often, and where first."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, what: str, path: str) -> None:
        """Count `what` once more."""
        self._counts[what] += 1
        self._first.setdefault(what, path)

    def about(self, path: str) -> Remark:
        """A function that counts what it is called with, of the file at `path`."""
        return lambda what: self.add(what, path)

    def lines(self) -> list[str]:
        """One line each, in the order in which they came up."""
        lines = (f"{what}: {count}, first {self._first[what]}" for what, count in self._counts.items())
        return [line.encode(errors="backslashreplace").decode() for line in lines]


def unsaid(what: str) -> None:
    """The remark that nobody hears."""


# What a file holds, by the end of its name in small letters.
KINDS = {".png": "pictures", ".jpg": "pictures", ".jpeg": "pictures", ".wav": "sounds"}
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # Python reads others without a limit of memory
ZIP_STEP = 2**20  # bytes read at once: all at once would be decompressed whatever the size that was claimed
UTF8_NAME = 0x800  # of a zip's entry; without it old tools mean code page 437, newer ones anything
LINKED = "links in the archive not followed (pack it with `tar --dereference`, or with `zip` without -y)"
# What reading an archive raises that is damaged, or made to harm: its headers lie about sizes and offsets.
UNREADABLE = (
    *(OSError, EOFError, lzma.LZMAError, zlib.error, struct.error, tarfile.TarError, zipfile.BadZipFile),
    *(RecursionError, OverflowError, MemoryError, ValueError, LookupError, NotImplementedError),
)
# Bytes of a picture or sound: the largest picture that `pelap.data.pictures` reads has 270 MB without any
# compression; of sound it is 50 minutes in stereo at 44.1 kHz.
LARGEST = 512 * 2**20
# Members of a tar that are notes on the next one, a long name say, and their bytes.
NOTES = (*(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK), *(tarfile.XHDTYPE, tarfile.XGLTYPE, b"X"))
LARGEST_NOTES = 2**20
MOST_ENTRIES = 1_500_000  # files and folders of a source; ImageNet has 1.3 million pictures


@dataclass(frozen=True)
class Entry:
    """A file or folder of the source: its path inside, and how to read it (None for a folder)."""

    path: str
    read: Callable[[], bytes] | None


def entries(source: Path, remarks: Remarks) -> Iterator[Entry]:
    """Everything in a folder or archive, at all depths; links in a folder are followed.

    The remarks are told what cannot be followed or read as it is written.

    Raises:
        OSError: Something may not be read, or, as others of `UNREADABLE`, an archive is damaged.
        DataError: There are too many; or, once it is read, what should be a file is none, or is too large.
    """
    if not source.is_dir() and not source.is_file():
        raise DataError(f"{source}: is no folder and no file, but a pipe or a device; give one of them")
    kinds = {True: _folder_entries, False: _zip_entries if source.suffix.lower() == ".zip" else _tar_entries}
    for number, entry in enumerate(kinds[source.is_dir()](source, remarks), start=1):
        if number > MOST_ENTRIES:
            raise DataError(f"{source}: holds more than {MOST_ENTRIES:,} files and folders; make it smaller")
        yield entry


def _folder_entries(
    source: Path, remarks: Remarks, inside: str = "", around: tuple[str, ...] = ()
) -> Iterator[Entry]:
    real = os.path.realpath(source / inside)
    if real in around:  # it would go round for ever
        remarks.add("links to a folder around themselves not followed", inside)
        return
    for name in sorted(item.name for item in (source / inside).iterdir()):
        path = f"{inside}/{name}" if inside else name
        leads_nowhere = (source / path).is_symlink() and not (source / path).exists()
        if leads_nowhere and kind_of(path) is None and not is_hidden(path):
            remarks.add("links that lead nowhere passed over (a class folder may be one)", path)
        elif not (source / path).is_dir():
            yield Entry(path, partial(_file_bytes, source, path))
        elif is_hidden(name):
            remarks.add("hidden folders passed over", path)
        else:
            yield Entry(path, None)
            yield from _folder_entries(source, remarks, path, (*around, real))


def _file_bytes(source: Path, path: str) -> bytes:
    if not (source / path).is_file():
        raise DataError(f"{source}: {path} is no file: a link that leads nowhere, or a pipe; remove it")
    _demand_size((source / path).stat().st_size, source, path)
    return (source / path).read_bytes()


def _demand_size(size: int, source: Path, path: str, largest: int = LARGEST) -> None:
    if size > largest:
        raise DataError(
            f"{source}: {path} has, or claims, {size:,} bytes, more than the {largest:,} of the largest file "
            "that is read; take it out, or make it smaller"
        )


def _zip_entries(source: Path, remarks: Remarks) -> Iterator[Entry]:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            path = _zip_path(info, remarks)
            if _is_link(info) and kind_of(path) is None:
                remarks.add(LINKED, path)
            else:
                yield Entry(path, None if path.endswith("/") else partial(_zip_bytes, archive, info))


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)


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
    if _is_link(info):
        raise DataError(f"{archive.filename}: {info.filename} is a link; pack it with `zip` without -y")
    if info.compress_type not in ZIP_METHODS:
        raise DataError(f"{archive.filename}: {info.filename} is not compressed as `zip` does it; pack it so")
    _demand_size(info.file_size, Path(str(archive.filename)), info.filename)
    try:
        with archive.open(info) as file:
            return b"".join(iter(partial(file.read, ZIP_STEP), b""))
    except RuntimeError as error:  # encrypted, or a compression that Python lacks
        raise zipfile.BadZipFile(str(error)) from None


def _tar_entries(source: Path, remarks: Remarks) -> Iterator[Entry]:
    """Members in the order of the archive: reading on and on decompresses it once.

    One that is too large is refused even where it would be passed over: that would decompress it.
    """

    class Member(tarfile.TarInfo):
        """Its header; those of types of their own are notes on the next one, read at once and whole."""

        @classmethod
        def frombuf(cls, *args: Any) -> "Member":
            found = super().frombuf(*args)
            largest = LARGEST_NOTES if found.type in NOTES else LARGEST
            _demand_size(found.size, source, found.name, largest)
            return found

    with tarfile.open(source, tarinfo=Member) as archive:
        for member in archive:
            _demand_size(member.size, source, member.name)  # a sparse one has more than it takes
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


def is_hidden(path: str) -> bool:
    """Whether a path inside a source is of a hidden file or folder, or of what a Mac adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts_of(path))


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
    """Raise a one-line `DataError` where `source`, or something in it, cannot be read."""
    try:
        yield
    except PermissionError as error:
        where = error.filename or source
        raise DataError(f"{where}: may not be read; give yourself the right, or remove it") from None
    except UNREADABLE as error:
        raise DataError(
            f"{source}: cannot be read to its end ({one_line(error)}); copy or download it again"
        ) from None


def parts_of(path: str) -> list[str]:
    """The names in a path inside a source."""
    return [part for part in path.split("/") if part not in ("", ".")]


def read_prompts(path: Path) -> list[str]:
    """Prompts from a UTF-8 file, one a line; blank lines do not count.

    Accents take the form NFC, so that a file from a Mac has the prompts of one from elsewhere.

    Raises:
        DataError: It is missing, unreadable, no text, or holds no prompt.
    """
    try:
        lines = read_text(path).split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of prompts; correct the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); give one prompt a line") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file of prompts") from None
    prompts = [unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{path}: holds no prompt; give one a line")
    return prompts
