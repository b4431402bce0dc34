"""SHA-256 of values and files, and what a folder says of its own, so that no other is taken for them."""

import codecs
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelap.core import files
from pelap.core.errors import DataError, PelapError
from pelap.core.paths import DIGESTS

if TYPE_CHECKING:
    import torch

RESULTS = (".csv", ".json")  # what a stage's folder says it of; pictures may be left elsewhere


def digest(value: Any) -> str:
    """Short name for a JSON-like value: equal values have equal digests."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def tensors_digest(tensors: Mapping[str, "torch.Tensor"]) -> str:
    """Hexadecimal SHA-256 of tensors with their names, types and shapes, in their order."""
    import torch

    sha = hashlib.sha256()
    for name, tensor in tensors.items():
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def result_dir(final: Path) -> Iterator[Path]:
    """`pelap.core.files.atomic_dir` for a stage's results, which are left with their digests."""
    with files.atomic_dir(final) as partial:
        yield partial
        write_digests(partial, RESULTS)


def write_digests(folder: Path, suffixes: Collection[str] | None = None) -> None:
    """Note what the files of a folder are, of these suffixes; folders below that note theirs are left out."""
    found: dict[str, str] = {}
    for place, below, names in os.walk(folder):
        if DIGESTS in names and Path(place) != folder:
            below.clear()
            continue
        every = (Path(place, name) for name in names if name != DIGESTS)
        kept = (path for path in every if suffixes is None or path.suffix in suffixes)
        found |= {path.relative_to(folder).as_posix(): _of_file(path) for path in kept}
    files.write_json(folder / DIGESTS, dict(sorted(found.items())))


def demand_unchanged(folder: Path, error: type[PelapError] = DataError) -> None:
    """Refuse, with an `error`, a folder with a file that is not the one it was left with, or without it.

    One that says nothing of its files, as those of version 0.1, may have any; what else lies there is not
    looked at.
    """
    said = folder / DIGESTS
    for name, digest_then in files.read_mapping(said, kind=dict[str, str]).items() if said.is_file() else ():
        path, below = folder / name, Path(name)
        if "\0" in name or ".." in below.parts or below.is_absolute():
            raise error(f"{said}: names {name[:40]!r}, which is no file below; delete {said}")
        mended = f"make it again, or, if that was on purpose, delete {said}"
        if not path.is_file():
            raise error(f"{path}: is missing; {mended}")
        if _of_file(path) != digest_then:
            raise error(f"{path}: is not the file that was left here; {mended}")


def _of_file(path: Path) -> str:
    """That of a text is of its lines: Git gives them other ends on some machines, spreadsheets a mark."""
    if path.suffix not in RESULTS or path.stat().st_size > files.LARGEST:
        return sha256(path)
    text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    return hashlib.sha256(text.replace(b"\r\n", b"\n")).hexdigest()
