"""SHA-256 of values and files, and what a folder says of its own, so that no other is taken for them."""

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
    files.write_json(folder / DIGESTS, _digests(folder, suffixes))


def demand_unchanged(folder: Path, error: type[PelapError] = DataError) -> None:
    """Refuse, with an `error`, a folder with a file that is not the one it was left with, or without it.

    One that says nothing of its files, as those of version 0.1, may have any.
    """
    if not (folder / DIGESTS).is_file():
        return
    saved, found = files.read_mapping(folder / DIGESTS), _digests(folder)
    for name in saved:
        if found.get(name) != saved[name]:
            raise error(
                f"{folder / name}: is not the file that was left here; make it again, or, if you changed it "
                f"on purpose, delete {folder / DIGESTS}"
            )


def _digests(folder: Path, suffixes: Collection[str] | None = None) -> dict[str, str]:
    found: dict[str, str] = {}
    for place, below, names in os.walk(folder):
        if DIGESTS in names and Path(place) != folder:
            below.clear()
            continue
        every = (Path(place, name) for name in names if name != DIGESTS)
        kept = (path for path in every if suffixes is None or path.suffix in suffixes)
        found |= {path.relative_to(folder).as_posix(): _of_file(path) for path in kept}
    return dict(sorted(found.items()))


def _of_file(path: Path) -> str:
    """That of a text is of its lines: Git gives them other ends on some machines."""
    if path.suffix not in RESULTS or path.stat().st_size > files.LARGEST:
        return sha256(path)
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
