"""What is kept of earlier runs: made once, and again where it is damaged or made of anything else."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pelap.core.errors import DataError
from pelap.core.files import load_tensors, save_tensors
from pelap.evaluation.weights import kept

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones((), dtype=torch.float64)}


def made(cache: Path | None, **parts: Any) -> int:
    """How often it was made in one call."""
    calls: list[str] = []
    found = kept(
        cache,
        "it",
        lambda: (calls.append("made"), dict(TENSORS))[1],
        ["of"],
        **({"of": 1, "code": "x"} | parts),
    )
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    return len(calls)


def test_it_is_made_once_of_the_same(tmp_path: Path) -> None:
    assert [made(tmp_path / "cache"), made(tmp_path / "cache"), made(None)] == [1, 0, 1]
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    assert file.name.startswith("it-")


def test_what_is_made_of_anything_else_is_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [made(tmp_path), made(tmp_path, of=2)] == [1, 1]
    assert not capsys.readouterr().err  # of something else there may be one too
    assert made(tmp_path, code="y") == 1
    assert capsys.readouterr().err.startswith("it: made anew; kept is one of other code (")
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def changed(file: Path, tensors: dict[str, Tensor], **said: str) -> bytes:
    """Bytes of such a file with other content."""
    other = file.with_name("other")
    save_tensors(other, tensors, load_tensors(file)[1] | said)
    return other.read_bytes()


def test_a_damaged_or_foreign_file_is_made_again(tmp_path: Path) -> None:
    made(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    contents = {
        "half": file.read_bytes()[:-5],
        "empty": b"",
        "text": b"404: not found",
        "values": changed(file, TENSORS | {"b": TENSORS["b"] + 1}),
        "nan": changed(file, TENSORS | {"b": TENSORS["b"] * torch.nan}),
        "shape": changed(file, TENSORS | {"b": TENSORS["b"].view(3, 2)}),
        "missing": changed(file, {"a": TENSORS["a"]}),
        "foreign": changed(file, TENSORS, of="0" * 12),
    }
    for name, content in contents.items():
        file.write_bytes(content)
        assert [made(tmp_path), made(tmp_path)] == [1, 0], name


@pytest.mark.parametrize("how", ["a file in its place", "no lock", "no space", "a folder in its place"])
def test_a_cache_that_fails_is_a_warning(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if how == "a file in its place":
        cache.touch()
    elif how == "a folder in its place":
        made(cache)
        (file,) = cache.glob("*.safetensors")
        file.unlink()
        (file / "inside").mkdir(parents=True)
    else:
        name = "filelock.FileLock.acquire" if how == "no lock" else "safetensors.torch.save_file"
        monkeypatch.setattr(name, fails)
    for _ in range(2):
        assert made(cache) == 1
        said = capsys.readouterr().err
        assert said.startswith(f"warning: {cache}: nothing is kept there (")
        assert said.count("\n") == 1
    assert not list(tmp_path.rglob("*.partial"))


def test_what_the_making_of_it_raises_is_no_matter_of_the_cache(tmp_path: Path) -> None:
    def fails() -> dict[str, Tensor]:
        raise DataError("no pictures")

    with pytest.raises(DataError, match="no pictures"):
        kept(tmp_path, "it", fails, ["of"], of=1)
