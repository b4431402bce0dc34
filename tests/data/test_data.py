"""Data sets: photographs, the packed file, batches, the stage."""

from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CROPS, SOUNDS, expect_error, tiny_download, tiny_params

from pelap.config import Params, PhotoCrops, SoundParams
from pelap.core import files
from pelap.core.errors import BusyError, DataError
from pelap.core.paths import RunPaths, packed_dataset, packed_key
from pelap.core.rng import generator
from pelap.data.dataset import (
    ImageDataset,
    Split,
    epoch_indices,
    gather_batch,
    load_dataset,
    made_by,
    make_split,
    pixel_checksum,
    save_dataset,
    to_float,
    to_uint8,
)
from pelap.data.pictures import decode
from pelap.datasets import digits
from pelap.datasets.photos import draw_crop, regions
from pelap.datasets.sources import build_dataset
from pelap.stages import download
from pelap.stages.shared import Context


def small_dataset(channels: int = 3) -> ImageDataset:
    images = torch.randint(0, 256, (12, channels, 8, 8), generator=generator(0, "test"), dtype=torch.uint8)
    train, test = (Split(each, torch.arange(12) % 3) for each in (images, 255 - images))
    return ImageDataset("x", train, test, ("a", "b", "c"), "here", pixel_checksum(train, test))


# --- photographs


@pytest.mark.parametrize(
    ("name", "section", "num_train"), [("photos", "train_per_photo", 6), ("sounds", "train_per_class", 3)]
)
def test_what_is_made_depends_on_the_seed_alone_and_more_keep_the_first(
    name: str, section: str, num_train: int
) -> None:
    first, again, other = (build_dataset(name, tiny_download(), seed, Path("nowhere")) for seed in (0, 0, 1))
    assert torch.equal(first.train.images, again.train.images)
    assert first.checksum == again.checksum == pixel_checksum(first.train, first.test) != other.checksum
    assert first.train.images.shape == (8 * num_train, 3 if name == "photos" else 1, 16, 16)
    assert first.train.images.dtype == torch.uint8
    assert first.train.labels.bincount().tolist() == [num_train] * 8
    assert first.test.labels.bincount().tolist() == [2] * 8
    assert len(first.class_names) == 8
    assert first.sound == (None if name == "photos" else SOUNDS)
    pictures = torch.cat([first.train.images, first.test.images])
    same = len(pictures) - len(pictures.flatten(1).unique(dim=0))
    assert same <= (name == "photos")  # test differs from train; a crop may be all black
    more = getattr(tiny_download(), name).model_copy(update={section: num_train + 2})
    many = build_dataset(name, tiny_download(**{name: more}), 0, Path("nowhere")).train
    for label in range(8):
        few = first.train.images[first.train.labels == label]
        assert torch.equal(many.images[many.labels == label][:num_train], few)


def test_digits_are_the_same_for_every_seed_and_differ_from_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digits, "COUNTS", {"train": 30, "test": 10})
    made, other = (build_dataset("digits", tiny_download(), seed, Path("nowhere")) for seed in (0, 1))
    assert made.checksum == other.checksum == pixel_checksum(made.train, made.test)
    assert made.train.images.shape == (30, 3, 16, 16)
    assert made.train.labels.bincount().tolist() == [3] * 10
    assert made.test.labels.bincount().tolist() == [1] * 10
    assert len(torch.cat([made.train.images, made.test.images]).flatten(1).unique(dim=0)) == 40
    red = made.train.images[:, 0]
    assert (red[:, 4:12, 4:12].amax(dim=(1, 2)) > 200).all()  # ink in the middle
    assert (red[:, 0, 0] < 50).all()  # ground in the corner


def test_digits_without_their_font_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    expect_error(lambda: build_dataset("digits", tiny_download(), 0, tmp_path), "DejaVuSans-Bold", "install")


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (512, 512), (150, 96)])
def test_regions_are_disjoint_and_hold_their_crops(size: tuple[int, int]) -> None:
    pixels = np.zeros(size, dtype=int)
    for split, areas in regions(*size, min_crop=48).items():
        for area in areas:
            pixels[area.left : area.right, area.top : area.bottom] += 1
            assert area.short_side >= CROPS.min_crop
        for i in range(200):
            left, top, right, bottom = draw_crop(areas, CROPS, generator(0, split, i))
            assert right - left == bottom - top >= CROPS.min_crop
            assert any(
                area.left <= left < right <= area.right and area.top <= top < bottom <= area.bottom
                for area in areas
            )
    assert (pixels == 1).all()


def test_too_large_a_crop_is_refused(tmp_path: Path) -> None:
    large = CROPS.model_copy(update={"min_crop": 151, "max_crop": 300})
    expect_error(lambda: build_dataset("photos", tiny_download(photos=large), 0, tmp_path), "min_crop", "150")


# --- the packed file and batches


def test_uint8_survives_float() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    floats = to_float(values)
    assert floats.dtype == torch.float32
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(to_uint8(floats), values)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_every_prefix_of_a_split_is_balanced() -> None:
    labels = [0] * 8 + [1] * 4
    split = make_split([torch.full((3, 1, 1), i) for i in range(12)], labels)
    assert split.labels[:6].bincount().tolist() == [4, 2]
    assert split.images[:, 0, 0, 0][split.labels == 1].tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize("order", [range(200), range(199, -1, -1)], ids=["by class", "backwards"])
def test_a_prefix_of_a_drawn_split_says_nothing_of_where_a_picture_stood(order: Iterable[int]) -> None:
    images = [torch.full((1, 1, 1), i) for i in order]
    labels = [i // 2 for i in order]  # a hundred classes of two
    split = make_split(images, labels, generator(0, "test"))
    assert sorted(split.images.flatten().tolist()) == list(range(200))
    assert split.labels.tolist() == [i // 2 for i in split.images.flatten().tolist()]
    assert split.labels[:100].bincount(minlength=100).tolist() == [1] * 100
    few = split.labels[:25].float()  # not the first of the classes, nor the last
    assert abs(few.mean() - 49.5) < 4 * 29 / 25**0.5
    assert few.std() > 15
    again = make_split(images, labels, generator(0, "test"))
    assert torch.equal(again.images, split.images)


@pytest.mark.parametrize("sound", [None, SOUNDS])
def test_packed_file_round_trip(tmp_path: Path, sound: SoundParams | None) -> None:
    dataset, path = small_dataset(1 if sound else 3), tmp_path / "x.safetensors"
    dataset = replace(dataset, sound=sound, made_by={"seed": "0123"})
    save_dataset(dataset, path)
    loaded = load_dataset(path)
    for split, kept in ((dataset.train, loaded.train), (dataset.test, loaded.test)):
        assert torch.equal(kept.images, split.images)
        assert torch.equal(kept.labels, split.labels)
    assert replace(loaded, train=dataset.train, test=dataset.test) == dataset


def test_unusable_packed_files_are_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "x.safetensors", small_dataset()
    expect_error(lambda: load_dataset(path), str(path), "pelap download")
    save_dataset(good, path)
    path.write_bytes(path.read_bytes()[:-100])
    expect_error(lambda: load_dataset(path), str(path))
    files.save_tensors(path, {"weights": torch.zeros(2)})
    expect_error(lambda: load_dataset(path), "class_names")
    images, labels = good.test.images, good.test.labels
    for bad in (
        Split(images, labels + 1),
        Split(images, labels - 1),
        Split(images.float(), labels),
        Split(images[:, :1], labels),
        Split(images[:, :, :4], labels),
        Split(images, labels[:-1]),
        Split(images, labels.int()),
        Split(images[:0], labels[:0]),
    ):
        save_dataset(ImageDataset("x", good.train, bad, ("a", "b", "c"), "", ""), path)
        expect_error(lambda: load_dataset(path), "test", "pelap download")
    for shaped in (images[:, :1], images[:, :, :4]):  # alike in train and test
        split, again = Split(shaped, labels), Split(shaped.clone(), labels.clone())
        save_dataset(ImageDataset("x", split, again, ("a", "b", "c"), "", ""), path)
        expect_error(lambda: load_dataset(path), "(N, 3, 8, 8)")


def test_an_epoch_shows_every_picture_once() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 3, 4, 4)

    def epoch(index: int, size: int) -> list[int]:
        indices = epoch_indices(12, size, generator(0, "order", index), flip=True)
        batches = [gather_batch(images, chosen) for chosen in indices]
        assert all(batch.shape == (size, 3, 4, 4) and batch.dtype == torch.float32 for batch in batches)
        return to_uint8(torch.cat(batches))[:, 0, 0, 0].tolist()

    assert sorted(epoch(0, 4)) == list(range(12))
    assert epoch(0, 4) == epoch(0, 4) != epoch(1, 4)
    assert len(set(epoch(0, 5))) == 10
    with pytest.raises(DataError, match="13"):
        epoch_indices(12, 13, generator(0, "order"), flip=False)


def test_flips_mirror_about_half_of_the_pictures() -> None:
    images = torch.zeros(400, 3, 2, 2, dtype=torch.uint8)
    images[:, :, 0, 0] = 255  # bright at the top left
    (indices,) = epoch_indices(400, 400, generator(0, "flip"), flip=True)
    flipped = gather_batch(images, indices)
    at_left, at_right = flipped[:, 0, 0, 0] == 1, flipped[:, 0, 0, 1] == 1
    assert torch.equal(at_left, ~at_right)
    assert 150 < at_right.sum() < 250
    (indices,) = epoch_indices(400, 400, generator(0, "flip"), flip=False)
    assert torch.equal(to_uint8(gather_batch(images, indices)), images)


def test_pictures_are_turned_upright() -> None:
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    buffer = BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert decode(buffer.getvalue(), 8)[:, :, 0].tolist() == [[0] * 4 + [255] * 4] * 3


# --- the stage


def test_the_stage_packs_and_notices_other_parameters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = Params.model_construct(dataset="photos", seed=0, download=tiny_download())
    context = Context(chosen, RunPaths(tmp_path / "run"), tmp_path, torch.device("cpu"))
    path = packed_dataset(tmp_path, "photos")
    assert not download.is_packed(chosen, tmp_path)
    download.run(context)
    out = capsys.readouterr().out
    assert out.startswith("photos: 48 train and 16 test pictures 16x16, 8 classes, sha256 ")
    assert out.endswith(f" -> {path}\n")
    assert len(context.dataset().train) == 48
    with files.exclusive(path), pytest.raises(BusyError):
        download.run(context)
    assert download.is_packed(chosen, tmp_path)
    assert capsys.readouterr().out == ""
    for name, changes in (("image_size", {"download": tiny_download(image_size=32)}), ("seed", {"seed": 1})):
        assert not download.is_packed(chosen.model_copy(update=changes), tmp_path)
        assert f"made of other {name}" in capsys.readouterr().out
    packed_key(tmp_path, "photos").unlink()  # somebody else's: nothing is known of it
    assert download.is_packed(chosen, tmp_path)


def test_a_packed_file_of_pictures_that_are_gone_is_taken_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    folders = {"mine": str(tmp_path / "mine")}
    chosen = Params.model_construct(dataset="mine", seed=0, download=tiny_download(folders=folders))
    packed_dataset(tmp_path, "mine").touch()
    files.write_json(packed_key(tmp_path, "mine"), download.made_of(chosen, tmp_path))
    assert download.is_packed(chosen, tmp_path)
    assert capsys.readouterr().out == ""
    (tmp_path / "mine").rmdir()
    assert download.is_packed(chosen, tmp_path)
    assert "download.folders.mine: not to be seen from here" in capsys.readouterr().out


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    expect_error(lambda: build_dataset("stl", tiny_download(), 0, tmp_path), "'stl'", "download.folders")


@pytest.mark.parametrize(
    ("name", "made_of"),
    [("photos", {"seed", "photos"}), ("sounds", {"seed", "sounds"}), ("mine", {"sounds"})],
)
def test_a_data_set_is_made_of_the_section_of_its_name(name: str, made_of: set[str]) -> None:
    given = tiny_download(folders={"mine": "somewhere"})
    others = {
        "seed": (given, 1),
        "photos": (given.model_copy(update={"photos": PhotoCrops()}), 0),
        "sounds": (given.model_copy(update={"sounds": SoundParams()}), 0),
        "elsewhere": (given.model_copy(update={"folders": {"mine": "elsewhere"}}), 0),
    }
    first = made_by(name, given, 0)
    assert {part for part, other in others.items() if made_by(name, *other) != first} == made_of


def test_packed_data_of_other_parameters_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def context(**overrides: Any) -> Context:
        return Context(tiny_params(**overrides), RunPaths(tmp_path / "run"), tmp_path, torch.device("cpu"))

    small = {"train_per_photo": 2, "test_per_photo": 1, "min_crop": 48, "max_crop": 96}
    same = {"download__photos": small, "evaluate__num_images": 4, "evaluate__num_reference": 8}
    same |= {"evaluate__classifier": None}
    download.run(context(**same))
    capsys.readouterr()
    context(**same, download__folders={"mine": "somewhere"}).dataset()
    assert capsys.readouterr().out == ""
    context(**(same | {"download__photos": small | {"max_crop": 80}, "seed": 7})).dataset()
    assert "made with another seed, photos than the parameters have now" in capsys.readouterr().out
