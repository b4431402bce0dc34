"""Folders and archives that are made to harm: one line, without the time and the memory that they ask for."""

import gzip
import io
import os
import resource
import socket
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny import expect_error, tiny_download

from pelap.data import entries
from pelap.datasets.sources import build_dataset

PATH = "train/a/z.png"
TERA = 2**40
Made = Callable[[Path], Path]


def build(source: Path) -> None:
    build_dataset("mine", tiny_download(folders={"mine": str(source)}), 0, source.parent / "data")


def header(path: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(path)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def png(width: int, height: int, *more: bytes) -> bytes:
    """One that claims to be so large; with chunks more."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [chunk(b"IHDR", size), *(chunk(b"zTXt", each) for each in more)]
    chunks += [chunk(b"IDAT", zlib.compress(b"\0" * 9999)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def folder(put: Callable[[Path], object]) -> Made:
    def make(at: Path) -> Path:
        (at / "train" / "a").mkdir(parents=True)
        put(at / PATH)
        return at

    return make


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, TERA)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as each:
        here = os.open(path.parent, os.O_RDONLY)
        each.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def claims(path: str, kind: bytes = tarfile.REGTYPE, squeeze: bool = False) -> Made:
    """A tar whose second member claims a terabyte."""

    def make(at: Path) -> Path:
        content = header("train/a/readme.txt", 0) + header(path, TERA, kind) + b"\0" * 10240
        at.write_bytes(gzip.compress(content) if squeeze else content)
        return at

    return make


def members(*found: tuple[str, bytes, str]) -> Made:
    def make(at: Path) -> Path:
        with tarfile.open(at, "w") as archive:
            for path, kind, leads_to in found:
                member = tarfile.TarInfo(path)
                member.type, member.linkname = kind, leads_to
                archive.addfile(member)
        return at

    return make


def sparse_member(at: Path) -> Path:
    source = folder(sparse)(at.with_name("source"))
    subprocess.run(["tar", "--sparse", "-cf", at, "-C", source, "train"], check=True)
    return at


def nested_notes(at: Path) -> Path:
    note = header("note", 3, tarfile.GNUTYPE_LONGNAME) + b"abc".ljust(512, b"\0")
    at.write_bytes(note * 3000 + b"\0" * 1024)
    return at


def zipped(size: int, method: int, claimed: int | None = None) -> Made:
    """A zip of a picture of zeros, that claims another size."""

    def make(at: Path) -> Path:
        with zipfile.ZipFile(at, "w", method) as archive, archive.open(PATH, "w") as file:
            for _ in range(size // 2**20):
                file.write(b"\0" * 2**20)
        content = bytearray(at.read_bytes())
        for mark, place in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
            start = content.rfind(mark) + place
            content[start : start + 4] = struct.pack("<I", size if claimed is None else claimed)
        at.write_bytes(content)
        return at

    return make


LARGE, NO_FILE = "bytes, more than the", "is no file"
HARMFUL: dict[str, tuple[Made, str]] = {
    "a pipe": (folder(os.mkfifo), NO_FILE),
    "a socket": (folder(bound), NO_FILE),
    "a link to a device": (folder(lambda path: path.symlink_to("/dev/zero")), NO_FILE),
    "a link to itself": (folder(lambda path: path.symlink_to(path.name)), NO_FILE),
    "a sparse file": (folder(sparse), LARGE),
    "a picture of 400 million pixels": (folder(lambda path: path.write_bytes(png(20000, 20000))), "pixels"),
    "a picture of 95 million pixels": (folder(lambda path: path.write_bytes(png(9500, 10000))), "pixels"),
    "notes in a picture": (
        folder(lambda path: path.write_bytes(png(16, 16, b"a\0\0" + zlib.compress(b"\0" * 2**26)))),
        "not a readable PNG",
    ),
    "a.tar": (os.mkfifo, "is no folder and no file"),  # type: ignore[dict-item]
    "claim.tar": (claims(PATH), LARGE),
    "claim of what is passed over.tar": (claims("train/a/z.txt"), LARGE),
    "claim of a long name.tar": (claims("x", tarfile.GNUTYPE_LONGNAME), LARGE),
    "claim of notes.tar": (claims("x", tarfile.XHDTYPE), LARGE),
    "claim.tar.gz": (claims(PATH, squeeze=True), LARGE),
    "claim of notes.tar.gz": (claims("x", tarfile.XHDTYPE, squeeze=True), LARGE),
    "sparse.tar": (sparse_member, LARGE),
    "device.tar": (members((PATH, tarfile.CHRTYPE, "")), "not a readable PNG"),
    "link to a device.tar": (members((PATH, tarfile.SYMTYPE, "/dev/zero")), "not found"),
    "link to itself.tar": (members((PATH, tarfile.LNKTYPE, PATH)), "not found"),
    "links.tar": (
        members(*((f"train/a/{i}.png", tarfile.SYMTYPE, f"{i + 1}.png") for i in range(2000))),
        "recursion",
    ),
    "notes on notes.tar": (nested_notes, "recursion"),
    "bomb.zip": (zipped(600 * 2**20, zipfile.ZIP_DEFLATED), LARGE),
    "claim.zip": (zipped(2**20, zipfile.ZIP_DEFLATED, 2**32 - 2), LARGE),
    "lie.zip": (zipped(300 * 2**20, zipfile.ZIP_DEFLATED, 100), "cannot be read to its end"),
    "lie of another compression.zip": (
        zipped(300 * 2**20, zipfile.ZIP_BZIP2, 100),
        "not compressed as `zip`",
    ),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_what_harms_is_refused(name: str, tmp_path: Path) -> None:
    make, said = HARMFUL[name]
    source = tmp_path / name
    make(source)
    Image.init()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    expect_error(lambda: build(source), str(source), said)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # of kB on Linux
    assert more < 150_000


@pytest.mark.parametrize("name", ["many", "many.tar", "many.zip"])
def test_there_may_be_too_many(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "PNG")
    paths = [f"{split}/a/{number}.png" for split in ("train", "test") for number in range(3)]
    for path in paths:
        (tmp_path / "many" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "many" / path).write_bytes(content.getvalue())
    with (
        tarfile.open(tmp_path / "many.tar", "w") as tar,
        zipfile.ZipFile(tmp_path / "many.zip", "w") as packed,
    ):
        for path in paths:
            tar.add(tmp_path / "many" / path, path)
            packed.write(tmp_path / "many" / path, path)
    build(tmp_path / name)
    monkeypatch.setattr(entries, "MOST_ENTRIES", 5)
    expect_error(lambda: build(tmp_path / name), name, "more than 5 files")
