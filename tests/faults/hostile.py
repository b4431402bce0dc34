"""Folders and archives that somebody made to do harm: they are refused in a line, or do none.

What lies around the trial's place has to be as it was, and no command may take more than its memory and time.
"""

import io
import os
import random
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from inputs import MEMORY
from trial import run_command
from world import World, write_yaml

from tiny import tiny_raw  # isort: skip

PNG = b"\x89PNG\r\n\x1a\n"
TERABYTE = 10**12


def hostile(world: World, rng: random.Random, place: Path) -> list[str]:
    """A data set or samples with a few members that should not be there."""
    place.mkdir(parents=True)
    (place / "secret.png").write_bytes(_png(16, 16, b"secret"))
    kind = rng.choice(("folder", "tar", "zip"))
    source = (
        place
        / {"folder": "source", "tar": rng.choice(("source.tar", "source.tar.gz")), "zip": "source.zip"}[kind]
    )
    chosen = _BUILDERS[kind](source, rng)
    before = _around(place)
    write_yaml(
        place / "params.yaml", tiny_raw(dataset="mine", download__folders={"mine": str(source)}, **_SMALL)
    )
    run = [
        "--params",
        place / "params.yaml",
        "--run",
        place / "out" / "run",
        "--data",
        place / "out" / "data",
    ]
    words = ["download", *run]
    if kind == "folder" and rng.random() < 0.4:
        words = ["evaluate", "--samples", source / "train" / "a", "--reference", source / "test" / "a"]
        words += ["--out", place / "out" / "metrics.json"]
    outcome = run_command([*words, "--device", "cpu"], memory=MEMORY)
    told = f"{words[0]} {kind} with {', '.join(chosen)}"
    problems = [outcome.problem] if outcome.problem else []
    if outcome.status not in (0, 2):
        problems.append(f"ends with {outcome.status}: {outcome.said[-300:]}")
    if _around(place) != before:
        problems.append(f"changed what lies around: {sorted(set(_around(place)) ^ set(before))[:4]}")
    return [f"{told}: {problem}" for problem in problems]


_SMALL = {"download__image_size": 16}


def _around(place: Path) -> list[str]:
    """Names in the place but what a command may write, in the folders above it, and where commands run."""
    folders, own = (place.parent, place.parent.parent, Path.cwd()), ("out", "params.yaml")
    inside = [str(path) for path in place.rglob("*") if path.relative_to(place).parts[0] not in own]
    return sorted([*inside, *(str(path) for folder in folders for path in folder.iterdir()), *_marks()])


def _marks() -> list[str]:
    return [
        str(path)
        for folder in ("/", "/tmp", "/etc", str(Path.home()))
        for path in Path(folder).glob("*PWNED*")
    ]


def _picture(rng: random.Random) -> bytes:
    return _png(16, 16, rng.randbytes(8))


def _png(width: int, height: int, colours: bytes, rows: int | None = None) -> bytes:
    """A grey picture that says it has this size; `rows` of it are there."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    pixels = b"".join(b"\0" + (colours * width)[:width] for _ in range(height if rows is None else rows))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def _good(rng: random.Random) -> dict[str, bytes]:
    names = [
        f"{split}/{label}/{number}.png"
        for split in ("train", "test")
        for label in "ab"
        for number in range(6)
    ]
    return {name: _picture(rng) for name in names}


BYTES: dict[str, Callable[[random.Random], bytes]] = {
    "a picture that claims 100,000 x 100,000": lambda rng: _png(100_000, 100_000, b"\0", rows=1),
    "a picture of 30,000 x 30,000": lambda rng: _png(30_000, 30_000, b"\0"),
    "a picture of 1 x 60,000": lambda rng: _png(1, 60_000, b"\0"),
    "text": lambda rng: b"no picture",
    "nothing": lambda rng: b"",
    "half a picture": lambda rng: _picture(rng)[:50],
    "a sound": lambda rng: b"RIFF\xff\xff\xff\xffWAVEfmt ",
    "an SVG": lambda rng: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "PostScript": lambda rng: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch PWNED) (w) file\n"
    ),
}
"""What a file called z.png may hold."""


# --- folders


def _folder(source: Path, rng: random.Random) -> list[str]:
    for name, content in _good(rng).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    chosen = rng.sample(sorted(_IN_FOLDER), rng.choice((1, 1, 2)))
    for what in chosen:
        spot = (
            source / rng.choice(("train/a", "test/a", "train", "")) / rng.choice(("z.png", "0z.jpg", "z.wav"))
        )
        if not os.path.lexists(spot):
            _IN_FOLDER[what](spot, rng)
    return chosen


def _sparse(spot: Path, rng: random.Random) -> None:
    spot.write_bytes(_picture(rng))
    os.truncate(spot, 100 * 2**30)


def _socket(spot: Path, rng: random.Random) -> None:
    here = Path.cwd()
    os.chdir(spot.parent)  # an address has at most 108 characters
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(spot.name)
    os.chdir(here)


def _deep(spot: Path, rng: random.Random) -> None:
    below = spot.parent / "/".join(["d"] * 300)
    below.mkdir(parents=True)
    (below / "z.png").write_bytes(_picture(rng))


def _odd_name(spot: Path, rng: random.Random) -> None:
    name = rng.choice(
        (
            "=cmd|' /C calc'!A0",
            "a\nb",
            "\x1b[31mred",
            "<script>alert(1)</script>",
            "-rf",
            "\u202egnp",
            "é" * 100,
        )
    )
    folder = spot.parent / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "z.png").write_bytes(_picture(rng))


_IN_FOLDER: dict[str, Callable[[Path, random.Random], object]] = {
    "a pipe": lambda spot, rng: os.mkfifo(spot),
    "a socket": _socket,
    "a link to itself": lambda spot, rng: spot.symlink_to(spot.name),
    "a link to the folder": lambda spot, rng: spot.symlink_to(spot.parent),
    "a link to /dev/zero": lambda spot, rng: spot.symlink_to("/dev/zero"),
    "a link to nowhere": lambda spot, rng: spot.symlink_to("/nowhere/at/all"),
    "a link to a secret": lambda spot, rng: spot.symlink_to("../../../secret.png"),
    "a sparse file": _sparse,
    "a folder": lambda spot, rng: spot.mkdir(),
    "a deep folder": _deep,
    "an odd name": _odd_name,
    "a file that nobody may read": lambda spot, rng: (spot.write_bytes(b""), spot.chmod(0)),
    **{what: lambda spot, rng, make=make: spot.write_bytes(make(rng)) for what, make in BYTES.items()},
}


# --- archives


def _tar(source: Path, rng: random.Random) -> list[str]:
    chosen = rng.sample(sorted(_IN_TAR), rng.choice((1, 1, 2)))
    with tarfile.open(source, "w:gz" if source.suffix == ".gz" else "w") as archive:
        good = [*_good(rng).items()]
        for number, (name, content) in enumerate(good):
            if number == rng.randrange(len(good)) or number == len(good) - 1:
                for what in chosen:
                    _IN_TAR[what](archive, rng)
            _add(archive, name, content)
    if source.suffix == ".tar" and rng.random() < 0.1:
        source.write_bytes(source.read_bytes()[: rng.randrange(20_000)])
        chosen.append("cut short")
    return chosen


def _add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content) if content else None)


def _claims(archive: tarfile.TarFile, rng: random.Random) -> None:
    member = tarfile.TarInfo("train/a/z.png")
    member.size = TERABYTE
    archive.fileobj.write(member.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]


def _sparse_member(archive: tarfile.TarFile, rng: random.Random) -> None:
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "train/a/z.png"}
    headers["GNU.sparse.realsize"] = str(100 * 2**30)
    _add(archive, "train/a/GNUSparseFile.0/z.png", b"1\n0\n0\n".ljust(512, b"\0"), pax_headers=headers)


_IN_TAR: dict[str, Callable[[tarfile.TarFile, random.Random], object]] = {
    "a name with ..": lambda tar, rng: _add(tar, "train/a/../../../PWNED.png", _picture(rng)),
    "an absolute name": lambda tar, rng: _add(tar, "/tmp/PWNED.png", _picture(rng)),
    "a link to itself": lambda tar, rng: _add(tar, "train/a/z.png", type=tarfile.SYMTYPE, linkname="z.png"),
    "a hard link to itself": lambda tar, rng: _add(
        tar, "train/a/z.png", type=tarfile.LNKTYPE, linkname="train/a/z.png"
    ),
    "a link out": lambda tar, rng: _add(
        tar, "train/a/z.png", type=tarfile.SYMTYPE, linkname="../../../secret.png"
    ),
    "a link to /dev/zero": lambda tar, rng: _add(
        tar, "train/a/z.png", type=tarfile.SYMTYPE, linkname="/dev/zero"
    ),
    "a device": lambda tar, rng: _add(tar, "train/a/z.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "a pipe": lambda tar, rng: _add(tar, "train/a/z.png", type=tarfile.FIFOTYPE),
    "a member that claims a terabyte": _claims,
    "a sparse member": _sparse_member,
    "a member twice": lambda tar, rng: [_add(tar, "train/a/z.png", _picture(rng)) for _ in range(2)],
    "a folder called so": lambda tar, rng: _add(tar, "train/a/z.png", type=tarfile.DIRTYPE),
    "many empty members": lambda tar, rng: [_add(tar, f"train/a/{i}z.txt") for i in range(20_000)],
    **{
        what: lambda tar, rng, make=make: _add(tar, "train/a/z.png", make(rng))
        for what, make in BYTES.items()
    },
}


def _zip(source: Path, rng: random.Random) -> list[str]:
    chosen = rng.sample(sorted(_IN_ZIP), rng.choice((1, 1, 2)))
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _good(rng).items():
            archive.writestr(name, content)
        for what in chosen:
            _IN_ZIP[what](archive, rng)
    if rng.random() < 0.2:
        content = bytearray(source.read_bytes())
        content[rng.randrange(len(content) * 4 // 5, len(content))] ^= 1 << rng.randrange(8)
        source.write_bytes(bytes(content))
        chosen.append("a flipped bit")
    return chosen


def _bomb(archive: zipfile.ZipFile, rng: random.Random) -> None:
    with archive.open("train/a/z.png", "w", force_zip64=True) as member:
        for _ in range(3000):
            member.write(bytes(2**20))


def _zip_link(archive: zipfile.ZipFile, rng: random.Random) -> None:
    member = zipfile.ZipInfo("train/a/z.png")
    member.external_attr = 0o120777 << 16
    archive.writestr(member, "../../../secret.png")


_IN_ZIP: dict[str, Callable[[zipfile.ZipFile, random.Random], object]] = {
    "a name with ..": lambda archive, rng: archive.writestr("train/a/../../../PWNED.png", _picture(rng)),
    "an absolute name": lambda archive, rng: archive.writestr("/tmp/PWNED.png", _picture(rng)),
    "a bomb": _bomb,
    "a link": _zip_link,
    "a folder called so": lambda archive, rng: archive.writestr("train/a/z.png/", b""),
    "many empty members": lambda archive, rng: [
        archive.writestr(f"train/a/{i}z.txt", b"") for i in range(5000)
    ],
    **{
        what: lambda a, rng, make=make: a.writestr("train/a/z.png", make(rng)) for what, make in BYTES.items()
    },
}
_BUILDERS = {"folder": _folder, "tar": _tar, "zip": _zip}
