"""Data sets from archives and folders: torchvision's, and a user's own."""

import hashlib
import io as bytes_io
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from tiny import expect_error, tiny_download

from pelap.core import digests, files
from pelap.data.dataset import ImageDataset, pixel_checksum
from pelap.data.entries import read_prompts
from pelap.data.pictures import decode
from pelap.datasets.folder import parse
from pelap.datasets.sources import build_dataset

Tree = dict[str, bytes]


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


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
    dataset = build_dataset("cifar10", tiny_download(image_size=32), 0, data)
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
    assert build_dataset("cifar10", tiny_download(), 0, data).train.images.shape == (4, 3, 16, 16)


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
        stored[split] = [f"http://example.invalid/{file.name}", file.name, md5(file.read_bytes())]
    monkeypatch.setattr(SVHN, "split_list", stored)
    dataset = build_dataset("svhn", tiny_download(image_size=32), 0, tmp_path)
    assert sorted(dataset.test.labels.tolist()) == [0, 1, 9]
    assert len(dataset.class_names) == 10
    (place,) = (dataset.train.labels == 9).nonzero().flatten().tolist()
    assert dataset.train.images.nonzero().tolist() == [[place, 1, 0, 5]]


def test_damaged_archive_and_lack_of_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.delenv("PELAP_DATA_DIR", raising=False)
    monkeypatch.setattr("torchvision.datasets.utils.download_url", offline)
    downloads = tmp_path / "downloads"
    for name, file in (("cifar10", "cifar-10-python.tar.gz"), ("svhn", "train_32x32.mat")):
        expect_error(
            lambda name=name: build_dataset(name, tiny_download(), 0, tmp_path),  # type: ignore[misc]
            *(file, str(downloads), "PELAP_DATA_DIR"),
        )
    assert list(downloads.iterdir()) == []
    archive = downloads / "cifar-10-python.tar.gz"
    archive.write_bytes(b"half of it")
    expect_error(
        lambda: build_dataset("cifar10", tiny_download(), 0, tmp_path),
        str(archive),
        CIFAR10.tgz_md5,
        "delete",
    )


# --- folders


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = bytes_io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def picture(color: object, size: tuple[int, int] = (40, 24), mode: str = "RGB", kind: str = "PNG") -> bytes:
    return encoded(Image.new(mode, size, color), kind)  # type: ignore[arg-type]


def tree() -> Tree:
    """Pictures of many kinds in the layout, and files to pass over."""
    wide = Image.new("RGB", (60, 20), (0, 0, 255))
    wide.paste((255, 0, 0), (20, 0, 40, 20))  # its central square is red
    return {
        "train/cat/1.png": encoded(wide),
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
    return build_dataset("mine", tiny_download(image_size=size, folders={"mine": str(path)}), 0, data_dir)


@pytest.mark.parametrize("name", ["dir", "a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.xz"])
def test_folder_and_archives_hold_the_same(name: str, tmp_path: Path) -> None:
    wrapper = "wrapped/" if name in ("dir", "a.zip", "a.tar") else ""
    content = {wrapper + path: data for path, data in reversed(tree().items())}
    dataset = read(store(content, tmp_path / name))
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
    expected = digests.sha256(archive) if archive.is_file() else pixel_checksum(dataset.train, dataset.test)
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


@pytest.mark.parametrize("written", ["a.zip", "data/downloads/a.zip", "{data}/downloads/a.zip"])
def test_an_archive_in_the_downloads_is_found_where_downloads_are(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, shared = tmp_path / "data of a grid", tmp_path / "shared"
    location = Path(written.format(data=data))
    shared.mkdir()
    store(tree(), shared / "a.zip")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PELAP_DATA_DIR", raising=False)
    where = (str(location), "download.folders.mine", "PELAP_DATA_DIR", str(data / "downloads"))
    expect_error(lambda: read(location, data_dir=data), *where)
    monkeypatch.setenv("PELAP_DATA_DIR", str(shared))
    assert len(read(location, data_dir=data).train) == 5
    assert f"mine: {location} is read from {shared / 'a.zip'}" in capsys.readouterr().out
    (data / "downloads").mkdir(parents=True)
    store({**tree(), "train/cat/3.png": picture(3, mode="L")}, data / "downloads" / "a.zip")
    assert len(read(location, data_dir=data).train) == 6


def test_a_path_that_leads_nowhere_is_not_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder may have the same last name: pictures of 2023 in the place of those of 2024."""
    store(tree(), tmp_path / "shared" / "pictures")
    store(tree(), tmp_path / "downloads" / "pictures")
    monkeypatch.setenv("PELAP_DATA_DIR", str(tmp_path / "shared"))
    monkeypatch.chdir(tmp_path)
    for path in (Path("mine/pictures"), tmp_path / "2024" / "pictures", Path("../pictures")):
        said = [str(path), "folders.mine", "PELAP_DATA_DIR and name it pictures"]
        if not path.is_absolute():
            said.append(f"in {tmp_path} (an absolute path is the same everywhere)")
        expect_error(lambda path=path: read(path, data_dir=tmp_path), *said)  # type: ignore[misc]
    assert len(read(Path("pictures"), data_dir=tmp_path / "none").train) == 5


def noise(mode: str = "RGB", side: int = 16, seed: int = 0) -> Image.Image:
    size = (len(Image.new(mode, (1, 1)).getbands()), side, side)
    values = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return Image.merge(mode, [Image.fromarray(band) for band in values])


def with_alpha(mode: str, hidden: int) -> bytes:
    """A picture whose left half is transparent, with `hidden` colours there, and 100 at the right."""
    image = Image.new("L", (16, 16), 100)
    image.paste(hidden, (0, 0, 8, 16))
    if mode == "L;16":
        wide = Image.fromarray(np.asarray(image).astype(np.uint16) * 256 + 7)
        return encoded(wide, transparency=hidden * 256 + 7)
    if mode in ("L", "P"):
        return encoded(image.convert(mode), transparency=hidden)
    if mode == "RGB":
        return encoded(image.convert("RGB"), transparency=(hidden,) * 3)
    alpha = Image.new("L", (16, 16), 255)
    alpha.paste(0, (0, 0, 8, 16))
    image = image.convert(mode)
    image.putalpha(alpha)
    return encoded(image)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "P", "L;16"])
def test_colours_under_transparency_do_not_matter(mode: str) -> None:
    heard: list[str] = []
    pictures = [decode(with_alpha(mode, hidden), 16, heard.append) for hidden in (3, 200)]
    assert torch.equal(*pictures)
    assert (pictures[0][..., :8] == 255).all()
    assert (pictures[0][..., 8:] == 100).all()
    assert heard.count("transparent pictures laid on white") == 2


def test_half_transparent_is_half_white_and_opaque_is_as_it_was() -> None:
    heard: list[str] = []
    image = noise()
    image.putalpha(255)
    assert torch.equal(decode(encoded(image), 16, heard.append), decode(encoded(noise()), 16))
    assert heard == []
    assert decode(picture((0, 0, 0, 128), (8, 8), "RGBA"), 8).unique().tolist() == [127]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_transparent_grey_of_few_bits_is_found(bits: int) -> None:
    """Written by hand: Pillow writes greys of 8 bits alone."""
    rows = b"".join(b"\0" + bytes([0x0F] * bits) for _ in range(8))  # 8 pixels a row

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = {
        b"IHDR": struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0),
        b"tRNS": struct.pack(">H", 2**bits - 1),  # white; black is seen
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())
    heard: list[str] = []
    assert decode(png, 8, heard.append).unique().tolist() == [0, 255]
    assert "transparent pictures laid on white" in heard


TURNED = Image.Exif()
TURNED[0x0112] = 6
CHANGES = {
    "16 bits": encoded(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 250)),
    "CMYK": encoded(noise("CMYK"), "JPEG"),
    "grey": encoded(noise("L")),
    "several frames": encoded(noise(), save_all=True, append_images=[noise(seed=1)]),
    "upright": encoded(noise(), "JPEG", exif=TURNED),
    "profiles other than sRGB": encoded(noise(), icc_profile=b"Adobe RGB (1998)"),
    "central square": encoded(noise().crop((0, 0, 16, 8)).resize((32, 16))),
    "enlarged": encoded(noise(side=8)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_becomes_of_a_picture_is_said(what: str) -> None:
    heard: list[str] = []
    decode(CHANGES[what], 16, heard.append)
    assert [words for words in heard if what in words]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for plain in (encoded(noise()), encoded(noise(), icc_profile=srgb)):
        assert decode(plain, 16, pytest.fail).shape == (3, 16, 16)


def test_what_is_passed_over_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {
        "train/cat/9.webp": b"x",
        "train/cat/10.webp": b"x",
        "train/cat/grid.png": b"x",
        "val/cat/1.png": b"x",
        "train/lost.png": b"x",
        "train/.git/a/1.png": b"x",
    }
    for target in ("a.zip", "dir"):
        dataset = read(store({**tree(), **more}, tmp_path / target))
        assert len(dataset.train) == 5
        said = capsys.readouterr().out
        outside = "mine: pictures and sounds outside train/<class>/ and test/<class>/ passed over: 2, first "
        webp = "mine: files named .webp passed over: 2, first train/cat/"
        for words in (outside, webp, "grid.png left out: 1", "hidden", "central squares: 6, first "):
            assert words in said


def test_links_are_followed_but_not_round_and_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store({"pool/1.png": encoded(noise()), "pool/2.png": encoded(noise(seed=1))}, tmp_path)
    for split in ("train", "test"):
        (tmp_path / "mine" / split).mkdir(parents=True)
        for label in ("a", "b"):  # all four are the same folder
            (tmp_path / "mine" / split / label).symlink_to(tmp_path / "pool", target_is_directory=True)
    (tmp_path / "pool" / "3.png").symlink_to(tmp_path / "pool" / "1.png")
    (tmp_path / "pool" / "round").symlink_to(tmp_path / "mine", target_is_directory=True)
    dataset = read(tmp_path / "mine")
    assert (len(dataset.train), len(dataset.test), dataset.class_names) == (6, 6, ("a", "b"))
    assert "links to a folder around themselves not followed" in capsys.readouterr().out
    (tmp_path / "pool" / "4.png").symlink_to("nowhere")
    expect_error(lambda: read(tmp_path / "mine"), "4.png", "leads nowhere")
    (tmp_path / "pool" / "4.png").unlink()
    os.mkfifo(tmp_path / "pool" / "4.png")
    expect_error(lambda: read(tmp_path / "mine"), "4.png", "a pipe")


def test_what_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tree(), tmp_path / "dir")
    listed = os.listdir

    def denied(folder: Path) -> list[str]:
        if Path(folder).name == "dog":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "listdir", denied)  # whoever runs the tests may read everything
    expect_error(lambda: read(tmp_path / "dir"), "dir/test/dog", "may not be read")


def test_a_link_to_itself_and_links_to_folders_in_archives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, target in (("train/cat/1.png", "1.png"), ("train/cat", "../cats")):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        expect_error(lambda: read(tmp_path / "a.tar"), "a.tar", "train/")
    store(tree(), tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as zipped:
        info = zipfile.ZipInfo("train/bird")
        info.external_attr = 0o120777 << 16
        zipped.writestr(info, "../birds")
    assert len(read(tmp_path / "b.zip").train) == 5
    assert "links in the archive not followed" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as zipped:
        info.filename = "train/cat/5.png"
        zipped.writestr(info, "../../1.png")
    expect_error(lambda: read(tmp_path / "b.zip"), "b.zip", "train/cat/5.png is a link")


def test_links_to_folders_that_are_gone_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = store(tree(), tmp_path / "mine")
    for split in ("train", "test"):
        (mine / split / "v1.bird").symlink_to(tmp_path / "gone", target_is_directory=True)
    assert read(mine).class_names == ("cat", "dog")
    line = "mine: links that lead nowhere passed over (a class folder may be one): 2, first test/v1.bird"
    assert line in capsys.readouterr().out.splitlines()


# --- strangers' ways of writing


def named(*labels: str, splits: tuple[str, ...] = ("train", "test")) -> Tree:
    return {f"{split}/{label}/1.png": picture(9, (8, 8), "L") for label in labels for split in splits}


@pytest.mark.parametrize("name", ["dir", "a.zip", "a.tar"])
def test_accents_of_a_mac_are_the_same_names(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    composed, split = "caf\u00e9", "cafe\u0301"
    files = {**named(composed, "th\u00e9", splits=("train",)), **named(split, "the\u0301", splits=("test",))}
    dataset = read(store(files, tmp_path / name))
    assert dataset.class_names == (composed, "th\u00e9")
    assert "(Unicode NFC, NFD) joined: 2, first " in capsys.readouterr().out
    both = {**files, f"train/{split}/1.png": picture(7, (8, 8), "L")}  # nothing of the two is lost
    both |= {f"test/{composed}/2.png": picture(7, (8, 8), "L")}
    assert len(read(store(both, tmp_path / f"both-{name}")).train) == 3
    assert "(Unicode NFC, NFD) joined: 2, first " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("cat ", "'cat '"),
        ("cat\u00a0", r"'cat\xa0'"),
        ("cat\u200b", r"'cat\u200b'"),
        ("c\u0430t", "'c\u0430t' = " + r"'c\u0430t'"),
    ],
)
def test_names_alike_to_the_eye_are_told_apart(
    label: str, shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {**named("cat", splits=("train",)), **named(label, splits=("test",)), **named("dog")}
    files["train/dog/2.webp"] = b"x"
    expect_error(lambda: read(store(files, tmp_path / "a.zip")), f"in train/ for {shown}; every class")
    assert "mine: files named .webp passed over: 1" in capsys.readouterr().out


def test_zips_of_other_systems_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train\\empty\\", b"")  # a folder
        for name, data in named("empty", "caf\u00e9").items():
            archive.writestr(name.replace("/", "\\"), data)
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):  # forget that the names are UTF-8
        for match in re.finditer(re.escape(mark), bytes(data)):
            data[match.start() + offset] &= ~8
    path.write_bytes(data)
    assert read(path).class_names == ("caf\u00e9", "empty")
    assert "backslashes" in capsys.readouterr().out
    path.write_bytes(data.replace("\u00e9".encode(), b"\xe9\xe9"))  # no UTF-8 at all
    assert read(path).class_names == ("caf\u0398\u0398", "empty")
    assert "code page 437" in capsys.readouterr().out


def test_a_name_that_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    files = {path.replace("bad", os.fsdecode(b"bad\xe9")): data for path, data in named("a", "bad").items()}
    expect_error(lambda: read(store(files, tmp_path / "dir")), r"'bad\udce9'", "UTF-8")


def test_classes_that_are_numbers_have_the_order_of_numbers(tmp_path: Path) -> None:
    numbers = read(store(named(*map(str, range(12))), tmp_path / "numbers"))
    assert numbers.class_names == tuple(map(str, range(12)))
    assert sorted(numbers.train.labels.tolist()) == list(range(12))
    assert read(store(named("002", "010", "1"), tmp_path / "padded")).class_names == ("1", "002", "010")
    assert read(store(named("10", "9", "a"), tmp_path / "text")).class_names == ("10", "9", "a")
    expect_error(lambda: read(store(named("1", "01", "2"), tmp_path / "twice")), "01 and 1", "same number")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"train/": None}, ["no pictures or sounds in train/<class>"]),
        ({"test/": None}, ["no pictures or sounds in test/<class>"]),
        ({"test/dog/": None}, ["test/ for 'dog'"]),
        ({"train/dog/": None}, ["train/ for 'dog'"]),
        ({"test/dog/": None, "test/dog/notes.txt": b"x"}, ["test/ for 'dog'"]),
        ({"train/bird/notes.txt": b"x"}, ["train/ for 'bird'"]),
        ({"other/train/cat/1.png": picture(1, mode="L")}, ["more than one folder", "'other'"]),
        ({"train/cat/3.png": b"not a picture"}, ["train/cat/3.png", "not a readable"]),
        ({"train/cat/3.jpg": picture(1, (90, 90), "L", "JPEG")[:200]}, ["train/cat/3.jpg"]),
    ],
)
@pytest.mark.parametrize("name", ["dir", "a.tar.xz"])
def test_each_fault_of_a_folder_is_named(
    name: str, change: dict[str, bytes | None], parts: list[str], tmp_path: Path
) -> None:
    gone = tuple(path for path, data in change.items() if data is None)
    files = {path: data for path, data in tree().items() if not path.startswith(gone or ("?",))}
    files |= {path: data for path, data in change.items() if data is not None}
    expect_error(lambda: read(store(files, tmp_path / name)), str(tmp_path / name), *parts)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
def test_a_truncated_archive_is_refused(name: str, tmp_path: Path) -> None:
    path = store(tree(), tmp_path / name)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 200 if name != "a.tar" else 1024):
        path.write_bytes(whole[:length])
        expect_error(lambda: read(path), str(path), "again")
    if name == "a.tar":  # between two members
        path.write_bytes(whole)
        with tarfile.open(path) as archive:
            last = archive.getmembers()[-1]
        path.write_bytes(whole[: last.offset])
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


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_prompts_and_plans_of_other_systems_are_read(newline: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(newline.join(["", " a cafe\u0301 ", " ", "a dog", "last"]).encode("utf-8-sig"))
    assert read_prompts(file) == ["a caf\u00e9", "a dog", "last"]
    file.write_bytes(newline.join(["{", '"operators": []', "}"]).encode("utf-8-sig"))
    assert files.read_json(file) == {"operators": []}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no prompt"),
        (b" \n\n", "holds no prompt"),
        (b"\xff\xfe\x00a", "not UTF-8 text"),
        (None, "no such file of prompts"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(content: bytes | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    expect_error(lambda: read_prompts(file), f"{file}: {words}")
    expect_error(lambda: read_prompts(tmp_path), "is no file")
