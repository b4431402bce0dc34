"""Data sets from archives and folders: torchvision's, and a user's own."""

import hashlib
import io as bytes_io
import pickle
import tarfile
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import expect_error

from pelap import io
from pelap.data.dataset import (
    ImageDataset,
    pixel_checksum,
)
from pelap.data.folder import parse
from pelap.data.sources import build_dataset
from pelap.params import DownloadParams, PhotoCrops, SoundParams

Tree = dict[str, bytes]


def params(**changes: object) -> DownloadParams:
    crops = PhotoCrops(train_per_photo=1, test_per_photo=1, min_crop=48, max_crop=48)
    sounds = SoundParams(
        sample_rate=8000, num_fft=512, hop_length=128, range_db=80.0, train_per_class=1, test_per_class=1
    )
    base = DownloadParams(image_size=16, photos=crops, sounds=sounds, folders={})
    return base.model_copy(update=changes)


# --- torchvision's data sets


def fake_cifar(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A tiny archive in CIFAR-10's format, whose checksums torchvision is told to expect."""
    from torchvision.datasets import CIFAR10

    pixels = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
    batch = pickle.dumps({"data": pixels, "labels": [3, 1, 2, 0]})
    test = pickle.dumps({"data": pixels[:2] + 5, "labels": [4, 5]})
    meta = pickle.dumps({"label_names": [f"c{i}" for i in range(10)]})
    files = {"data_batch_1": batch, "test_batch": test, "batches.meta": meta}
    archive = tar_bytes({f"cifar-10-batches-py/{name}": data for name, data in files.items()}, "gz")

    def md5(data: bytes) -> str:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5(batch)]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(test)]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(meta)})
    return archive


@pytest.mark.parametrize("place", ["downloads", "PELAP_DATA_DIR", "network"])
def test_cifar10_is_read_from_wherever_it_is(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, name, data = fake_cifar(monkeypatch), "cifar-10-python.tar.gz", tmp_path / "data"

    def from_network(url: str, root: str, filename: str, md5: str) -> None:
        assert place == "network"
        assert Path(root).parent == data / "downloads"  # the same disk: the move is a rename
        (Path(root) / filename).write_bytes(archive)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", from_network)
    monkeypatch.setenv("PELAP_DATA_DIR", str(tmp_path / "shared"))
    if place != "network":
        folder = data / "downloads" if place == "downloads" else tmp_path / "shared"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(archive)
    dataset = build_dataset("cifar10", params(image_size=32), 0, data)
    assert sorted(dataset.train.labels.tolist()) == [0, 1, 2, 3]
    assert dataset.class_names[1] == "c1"
    third = dataset.train.images[dataset.train.labels == 3]
    assert third[0, :, 0, :2].tolist() == [[0, 1], [0, 1], [0, 1]]
    assert sorted(dataset.test.labels.tolist()) == [4, 5]
    fourth = dataset.test.images[dataset.test.labels == 4]
    assert fourth[0, :, 0, :2].tolist() == [[5, 6], [5, 6], [5, 6]]
    assert dataset.checksum == hashlib.sha256(archive).hexdigest()
    if place != "PELAP_DATA_DIR":
        assert [path.name for path in (data / "downloads").iterdir()] == [name]
    assert build_dataset("cifar10", params(), 0, data).train.images.shape == (4, 3, 16, 16)


def test_svhn_is_read_from_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    folder = tmp_path / "downloads"
    folder.mkdir()
    pixels = np.zeros((32, 32, 3, 3), dtype=np.uint8)  # (H, W, 3, N)
    pixels[0, 5, 1, 2] = 200
    stored = {}
    for split in ("train", "test"):
        file = folder / f"{split}_32x32.mat"
        savemat(file, {"X": pixels, "y": np.array([[10], [1], [9]])})
        md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
        stored[split] = [f"http://example.invalid/{file.name}", file.name, md5]
    monkeypatch.setattr(SVHN, "split_list", stored)
    dataset = build_dataset("svhn", params(image_size=32), 0, tmp_path)
    assert sorted(dataset.test.labels.tolist()) == [0, 1, 9]
    assert len(dataset.class_names) == 10
    (place,) = (dataset.train.labels == 9).nonzero().flatten().tolist()
    assert dataset.train.images.nonzero().tolist() == [[place, 1, 0, 5]]


def test_damaged_archive_and_lack_of_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.delenv("PELAP_DATA_DIR", raising=False)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    downloads = tmp_path / "downloads"
    md5 = "c58f30108f718f92721af3b95e74349a"
    for name, file in (("cifar10", "cifar-10-python.tar.gz"), ("svhn", "train_32x32.mat")):
        expect_error(
            lambda name=name: build_dataset(name, params(), 0, tmp_path),  # type: ignore[misc]
            *(file, str(downloads), "PELAP_DATA_DIR"),
        )
    assert list(downloads.iterdir()) == []
    archive = downloads / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half of it")
    expect_error(lambda: build_dataset("cifar10", params(), 0, tmp_path), str(archive), md5, "delete")


# --- folders


def picture(color: object, size: tuple[int, int] = (40, 24), mode: str = "RGB", kind: str = "PNG") -> bytes:
    buffer = bytes_io.BytesIO()
    Image.new(mode, size, color).save(buffer, kind)  # type: ignore[arg-type]
    return buffer.getvalue()


def tree() -> Tree:
    """Pictures of many kinds in the layout, and files to pass over."""
    wide = Image.new("RGB", (60, 20), (0, 0, 255))
    wide.paste((255, 0, 0), (20, 0, 40, 20))  # its central square is red
    buffer = bytes_io.BytesIO()
    wide.save(buffer, "PNG")
    return {
        "train/cat/1.png": buffer.getvalue(),
        "train/cat/2.JPG": picture((0, 255, 0), kind="JPEG"),
        "train/dog/1.png": picture(7, mode="L"),
        "train/dog/2.png": picture((1, 2, 3, 255), (16, 16), "RGBA"),
        "train/dog/3.png": picture(40000, mode="I;16"),
        "train/dog/notes.txt": b"none",
        "train/readme.txt": b"none",
        "train/dog/.hidden.png": b"none",
        "__MACOSX/train/dog/1.png": b"none",
        "test/cat/1.png": picture((9, 9, 9), (8, 90)),
        "test/dog/sub/1.jpeg": picture((9, 9, 9), kind="JPEG"),
    }


def tar_bytes(files: Tree, compression: str) -> bytes:
    buffer = bytes_io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:  # type: ignore[call-overload]
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, bytes_io.BytesIO(data))
    return buffer.getvalue()


def store(files: Tree, target: Path) -> Path:
    """Write the files as what the target's suffix says: a folder, a zip or a tar."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path, data in files.items():
                archive.writestr(path, data)
    elif ".tar" in target.name or target.suffix == ".tgz":
        target.write_bytes(tar_bytes(files, {".xz": "xz", ".tar": ""}.get(target.suffix, "gz")))
    else:
        for path, data in files.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(data)
    return target


def read(path: Path, size: int = 8, data_dir: Path = Path("nowhere")) -> ImageDataset:
    return build_dataset("mine", params(image_size=size, folders={"mine": str(path)}), 0, data_dir)


@pytest.mark.parametrize("wrapper", ["", "wrapped/"])
@pytest.mark.parametrize("name", ["dir", "a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz"])
def test_folder_and_archives_hold_the_same(name: str, wrapper: str, tmp_path: Path) -> None:
    files = {wrapper + path: data for path, data in reversed(tree().items())}
    dataset = read(store(files, tmp_path / name))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.train.labels.tolist() == [1, 0, 1, 0, 1]
    assert dataset.train.images.shape == (5, 3, 8, 8)
    assert dataset.test.images.shape == (2, 3, 8, 8)
    cats, dogs = (dataset.train.images[dataset.train.labels == label] for label in (0, 1))
    assert sorted(dogs[:, :, 4, 4].tolist()) == [[1, 2, 3], [7, 7, 7], [156] * 3]
    (striped,) = (cat for cat in cats if cat[:, 4, 4].tolist() == [255, 0, 0])
    assert (striped[2] == 0).all()  # nothing of the blue sides
    assert cats[:, 1, 4, 4].max() > 250
    archive = tmp_path / name
    expected = io.sha256(archive) if archive.is_file() else pixel_checksum(dataset.train, dataset.test)
    assert dataset.checksum == expected


def test_the_first_pictures_of_a_folder_stand_for_all(tmp_path: Path) -> None:
    # Sorted by time, and named by it: the first ones are the darkest.
    files = {
        f"{split}/{label}/{i:03}.png": picture((i, i, i))
        for split in ("train", "test")
        for label in "ab"
        for i in range(200)
    }
    first, again = (read(store(files, tmp_path / name)) for name in ("dir", "a.zip"))
    assert torch.equal(first.train.images, again.train.images)
    for split in (first.train, first.test):
        assert split.labels[:40].bincount().tolist() == [20, 20]
        values = split.images[:40, 0, 0, 0].float()
        assert abs(values.mean() - 99.5) < 4 * 58 / 40**0.5
        assert values.std() > 40
    assert not torch.equal(first.train.images, first.test.images)


def test_a_moved_archive_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shared").mkdir()
    store(tree(), tmp_path / "shared" / "a.zip")
    monkeypatch.delenv("PELAP_DATA_DIR", raising=False)
    expect_error(lambda: read(Path("gone/a.zip")), "gone/a.zip", "download.folders.mine", "PELAP_DATA_DIR")
    monkeypatch.setenv("PELAP_DATA_DIR", str(tmp_path / "shared"))
    assert len(read(Path("gone/a.zip")).train) == 5
    (tmp_path / "downloads").mkdir()
    store({**tree(), "train/cat/3.png": picture(3, mode="L")}, tmp_path / "downloads" / "a.zip")
    assert len(read(Path("gone/a.zip"), data_dir=tmp_path).train) == 6


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"train/": None}, ["no pictures or sounds in train/<class>"]),
        ({"test/": None}, ["no pictures or sounds in test/<class>"]),
        ({"test/dog/": None}, ["test/ for dog"]),
        ({"train/dog/": None}, ["train/ for dog"]),
        ({"test/dog/": None, "test/dog/notes.txt": b"x"}, ["test/ for dog"]),
        ({"train/bird/notes.txt": b"x"}, ["train/ for bird"]),
        ({"other/train/cat/1.png": picture(1, mode="L")}, ["more than one folder", "'other'"]),
        ({"train/cat/3.png": b"not a picture"}, ["train/cat/3.png", "not a readable"]),
        ({"train/cat/3.jpg": picture(1, (90, 90), "L", "JPEG")[:200]}, ["train/cat/3.jpg"]),
    ],
)
@pytest.mark.parametrize("name", ["dir", "a.zip", "a.tar.xz"])
def test_each_fault_of_a_folder_is_named(
    name: str, change: dict[str, bytes | None], parts: list[str], tmp_path: Path
) -> None:
    files = {
        path: d
        for path, d in tree().items()
        if not any(path.startswith(p) and change[p] is None for p in change)
    }
    files |= {path: data for path, data in change.items() if data is not None}
    expect_error(lambda: read(store(files, tmp_path / name)), str(tmp_path / name), *parts)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_a_truncated_archive_is_refused(name: str, tmp_path: Path) -> None:
    path = store(tree(), tmp_path / name)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 200 if name != "a.tar" else 1024):
        path.write_bytes(whole[:length])
        expect_error(lambda: read(path), str(path), "again")


def test_a_tar_cut_between_members_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    store(tree(), path)
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    expect_error(lambda: read(path), "end mark")


def test_an_encrypted_zip_and_a_dangling_link_are_refused(tmp_path: Path) -> None:
    path = store(tree(), tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # flags of local and central headers
        data[data.index(mark) + offset] |= 1
    path.write_bytes(data)
    expect_error(lambda: read(path), str(path), "encrypted")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("train/cat/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../../elsewhere.png"
        archive.addfile(link)
    expect_error(lambda: read(tmp_path / "a.tar"), "a.tar", "elsewhere.png")


def test_members_outside_the_layout_are_passed_over() -> None:
    for path in ("../train/a/1.png", "train/a/../../x.png", "a/b/train/c/1.png", "readme", "train"):
        assert parse(path) is None
    place = parse("./top/test/a/b/1.png")
    assert place is not None
    assert (place.wrapper, place.split, place.label, place.rest) == ("top", "test", "a", "b/1.png")
