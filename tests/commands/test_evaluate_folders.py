"""Two folders of pictures, whoever made them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_dataset
from torch import nn

from pelap.cli import main
from pelap.core import files
from pelap.data.pictures import save_png
from pelap.evaluation.features import make_extractor
from pelap.evaluation.image_quality import psnr, ssim
from pelap.evaluation.reference import Reference

CPU = torch.device("cpu")
COARSE, BRIGHT = "test_evaluate_folders:Coarse", "test_evaluate_folders:Bright"
FIGURES = {
    "fd_{}", "fd_{}_se", "shift_{}", "kid_{}", "kid_{}_std",
    "precision_{}", "recall_{}", "density_{}", "coverage_{}",
}  # fmt: skip


class Coarse(nn.Module):
    """A few features that take no time."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)


class Bright(Coarse):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images)[:, :3]


def pictures(num: int, first: int = 0, side: int = 16) -> torch.Tensor:
    return tiny_dataset(first + num, side=side).train.images[first:]


def write(folder: Path, images: torch.Tensor) -> Path:
    for index, image in enumerate(images):
        path = folder / str(index % 2) / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(image, path)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "samples", pictures(30)), write(tmp_path / "real", pictures(40, 30))


def argv(samples: Path, reference: Path, *options: str, extractor: str = COARSE) -> list[str]:
    out = samples.parent / "figures.json"
    paths = ["--samples", str(samples), "--reference", str(reference), "--out", str(out)]
    return ["evaluate", *paths, "--extractor", extractor, *options, "--device", "cpu"]


def compared(samples: Path, reference: Path, *options: str, **keywords: str) -> dict[str, Any]:
    assert main(argv(samples, reference, *options, **keywords)) == 0
    return files.read_mapping(samples.parent / "figures.json")


CLASSES = torch.arange(30) // 15  # of the samples, as they are read


def in_order(num: int, first: int = 0) -> torch.Tensor:
    """As they are read from the folders: 0/000, 0/002, ... 1/001, ..."""
    images = pictures(num, first)
    return torch.cat([images[::2], images[1::2]])


@pytest.mark.slow
def test_figures_are_those_of_the_reference(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    figures = compared(*folders, BRIGHT)
    protocol = figures.pop("protocol")
    expected = {name.format(extractor) for name in FIGURES for extractor in ("coarse", "bright")}
    assert set(figures) == expected | {"num_images", "num_reference"}
    assert (figures.pop("num_images"), figures.pop("num_reference")) == (30, 40)
    reference = Reference(in_order(40, 30), [make_extractor(name, CPU) for name in (COARSE, BRIGHT)])
    assert figures == pytest.approx(reference.measure(in_order(30), strata=CLASSES).metrics)
    assert list(protocol["extractors"]) == ["coarse", "bright"]
    assert protocol["extractors"]["coarse"]["sha256"]
    assert {"versions", "device", "git_revision", "notes", "kid_subsets", "neighbours"} <= set(protocol)
    assert protocol["picture_size"] == "16x16"
    # In the table errors stand beside what they belong to.
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fd_coarse", f"{figures['fd_coarse']:.4f}", f"{figures['fd_coarse_se']:.4f}"] in lines
    assert ["kid_coarse", f"{figures['kid_coarse']:.4f}", f"{figures['kid_coarse_std']:.4f}"] in lines
    assert ["recall_coarse", f"{figures['recall_coarse']:.4f}"] in lines
    assert not any(name.endswith(("_se", "_std")) for name, *_ in filter(None, lines))


def test_errors_are_of_chosen_shares_where_pictures_lie_in_class_folders(tmp_path: Path) -> None:
    """Half of the pictures are dark, by design: no chance is in how many are."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 9, (400, 1, 1, 1)) + 200 * (np.arange(400) % 2)[:, None, None, None]
    images = torch.from_numpy(np.broadcast_to(grey, (400, 3, 4, 4)).astype(np.uint8).copy())
    real = write(tmp_path / "real", images[200:])
    figures = {}
    for name in ("deep/{}", "of/classes/{}", "{}", "mixed/{}"):
        samples = write(tmp_path / name.format("samples"), images[:200])
        if "classes" not in name and "deep" not in name:
            for path in sorted(samples.rglob("*.png"))[:: 200 if "mixed" in name else 1]:
                path.rename(samples / path.name)
        figures[name] = compared(samples, real)
    folders, again, flat, mixed = figures.values()
    assert folders["fd_coarse_se"] == again["fd_coarse_se"] < flat["fd_coarse_se"] / 3
    assert flat["fd_coarse_se"] == pytest.approx(mixed["fd_coarse_se"], rel=1)
    said = [each["protocol"]["notes"][0] for each in (folders, flat, mixed)]
    assert ["shares of the pictures are chosen" in note for note in said] == [True, False, False]
    assert ["drawn one by one" in note for note in said] == [False, True, True]


def test_a_folder_against_itself_is_at_zero(folders: tuple[Path, Path]) -> None:
    samples, _ = folders
    figures = compared(samples, samples, "--paired")
    assert 0 <= figures["fd_coarse"] < 1e-4
    assert figures["precision_coarse"] == figures["recall_coarse"] == figures["coverage_coarse"] == 1
    assert figures["ssim"] == pytest.approx(1)
    assert figures["psnr"] > 75
    protocol = figures["protocol"]
    assert protocol["samples_sha256"] == protocol["reference_sha256"]


def test_the_packaged_extractor_is_the_default(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = argv(folders[0], folders[0])
    command.remove("--extractor")
    command.remove(COARSE)
    assert main(command) == 0
    figures = files.read_mapping(folders[0].parent / "figures.json")
    assert 0 <= figures["fd_effnet_lite0"] < 1e-4
    printed = capsys.readouterr().out
    few = "fd_effnet_lite0: 30 pictures and 30 reference pictures for 1280"
    assert any(note.startswith(few) for note in figures["protocol"]["notes"])
    assert f"note: {few}" in " ".join(printed.split())
    assert all(len(line) <= 80 for line in printed.splitlines() if str(folders[0].parent) not in line)


def test_digests_are_of_the_pixels(folders: tuple[Path, Path], tmp_path: Path) -> None:
    samples, real = folders
    before = compared(samples, real)["protocol"]
    copied = write(tmp_path / "copy", pictures(30))
    (copied / "0" / "000.png").rename(copied / "0" / "0000.png")  # which stays the first
    assert compared(copied, real)["protocol"]["samples_sha256"] == before["samples_sha256"]
    changed = pictures(30)
    changed[3, 0, 0, 0] ^= 1
    after = compared(write(tmp_path / "changed", changed), real)["protocol"]
    assert after["samples_sha256"] != before["samples_sha256"]
    assert after["reference_sha256"] == before["reference_sha256"]


def test_equally_named_pictures_are_paired(tmp_path: Path) -> None:
    ours, originals = pictures(6), pictures(6, 6)
    samples, real = write(tmp_path / "samples", ours), tmp_path / "real"
    for index, image in enumerate(originals):
        path = real / str(index % 2) / f"{index:03d}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=100, subsampling=0)
    figures = compared(samples, real, "--paired")
    assert figures["psnr"] == pytest.approx(psnr(ours, originals), abs=0.05)  # of which JPEG changes little
    assert figures["ssim"] == pytest.approx(ssim(ours, originals), abs=0.02)
    shuffled = psnr(ours, originals.roll(1, 0))
    assert abs(figures["psnr"] - psnr(ours, originals)) < abs(figures["psnr"] - shuffled)


def test_pictures_need_not_be_square_nor_in_colour(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 24, 16), dtype=np.uint8)
    for name in ("samples", "real"):
        (tmp_path / name).mkdir()
        for index, grey in enumerate(values):
            Image.fromarray(grey).save(tmp_path / name / f"{index}.png")
    figures = compared(tmp_path / "samples", tmp_path / "real")
    assert figures["protocol"]["picture_size"] == "16x24"
    images = torch.from_numpy(values)[:, None].expand(-1, 3, -1, -1).contiguous()
    other = Reference(images, [make_extractor(COARSE, CPU)])
    assert figures["density_coarse"] == pytest.approx(other.measure(images).metrics["density_coarse"])


def test_what_is_no_picture_is_passed_over(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    samples, real = folders
    before = compared(samples, real)
    for name in ("notes.txt", ".hidden.png", ".folder/a.png", "sound.wav"):
        (samples / name).parent.mkdir(exist_ok=True)
        (samples / name).write_text("no picture")
    save_png(torch.zeros(3, 50, 90, dtype=torch.uint8), samples / "grid.png")  # of `pelap sample`
    capsys.readouterr()
    after = compared(samples, real)
    notes = after["protocol"].pop("notes")
    hidden, file, overview, *said = notes[len(before["protocol"].pop("notes")) :]
    assert after == before
    assert [hidden, file, *said] == [
        f"{samples}: hidden folders passed over: 1, first .folder",
        f"{samples}: hidden files passed over: 1, first .hidden.png",
        f"{samples}: files named .txt passed over: 1, first notes.txt",
        f"{samples}: sounds passed over: 1, first sound.wav",
    ]
    assert "grid.png left out" in overview
    assert "grid.png left out" in " ".join(capsys.readouterr().out.split())


def test_linked_folders_are_measured_as_they_are_trained_on(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    samples, real = folders
    before = compared(samples, real)
    (real / "0").rename(tmp_path / "elsewhere")
    (real / "0").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (real / "1" / "round").symlink_to(real, target_is_directory=True)
    after = compared(samples, real)
    assert after["num_reference"] == 40
    assert after["protocol"]["reference_sha256"] == before["protocol"]["reference_sha256"]
    assert "around themselves not followed: 1, first 1/round" in after["protocol"]["notes"][-1]


def test_colours_under_full_transparency_are_not_measured(folders: tuple[Path, Path]) -> None:
    samples, real = folders
    random = np.random.default_rng(0)
    for folder in folders:
        for file in folder.rglob("*.png"):
            pixels = np.array(Image.open(file).convert("RGBA"))
            pixels[:8] = [*random.integers(0, 256, 3), 0]  # another colour in every picture, none to see
            Image.fromarray(pixels).save(file)
    figures = compared(samples, real)
    assert (
        f"{samples}: transparent pictures laid on white: 30, first 0/000.png" in figures["protocol"]["notes"]
    )
    measured, seen = in_order(30), in_order(40, 30)
    measured[:, :, :8] = seen[:, :, :8] = 255
    expected = Reference(seen, [make_extractor(COARSE, CPU)]).measure(measured, strata=CLASSES).metrics
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


def test_pairs_are_found_however_accents_are_written(folders: tuple[Path, Path]) -> None:
    for folder, name in zip(folders, ("caf\u00e9", "cafe\u0301"), strict=True):
        replace(folder, pictures(6))
        (folder / "0").rename(folder / name)
    assert compared(*folders, "--paired")["psnr"] > 75


def replace(folder: Path, images: torch.Tensor) -> None:
    for file in folder.rglob("*.png"):
        file.unlink()
    write(folder, images)


def broken(folder: Path, content: bytes) -> None:
    (folder / "0" / "000.png").write_bytes(content)


def rename(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.rename(file.with_suffix(".webp"))


INCEPTION = ("--extractor", "inception-2015")
BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...], str]] = {
    "none": (lambda at: replace(at, pictures(1)[:0]), (), "samples: no pictures"),
    "one": (lambda at: replace(at, pictures(1)), (), "samples: just one picture"),
    "equal": (lambda at: replace(at, pictures(1).repeat(5, 1, 1, 1)), (), "samples: all 5 pictures are the"),
    "mixed": (lambda at: save_png(pictures(1, side=20)[0], at / "z.png"), (), "z.png 20x20"),
    "size": (lambda at: replace(at, pictures(9, side=20)), (), "samples: pictures of 20x20"),
    "text": (lambda at: broken(at, b"text"), (), "0/000.png is not a readable PNG"),
    "cut": (lambda at: broken(at, (at / "0/002.png").read_bytes()[:200]), (), "0/000.png is not a readable"),
    "twice": (lambda at: save_png(pictures(1)[0], at / "0/000.jpg"), ("--paired",), "by their endings"),
    "names": (lambda at: None, ("--paired",), "0/030 is in"),
    "prompts": (lambda at: None, ("--prompts", "p.txt"), "--prompts"),
    "extractor": (lambda at: None, ("--extractor", "vgg"), "vgg"),
    "no weights": (lambda at: None, INCEPTION, "inception"),
    "weights": (lambda at: None, (*INCEPTION, "--inception-weights", "none.pth"), "none.pth"),
    "nowhere": (lambda at: (at.parent / "real").rename(at / "0" / "a"), (), "real: no such folder"),
    "unknown": (lambda at: rename(at.parent / "real"), (), "real: no pictures"),
    "reference": (lambda at: replace(at.parent / "real", pictures(1).repeat(3, 1, 1, 1)), (), "real: all 3"),
    "out": (lambda at: (at.parent / "figures.json").mkdir(), (), "is a folder; name a file"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_compared_is_one_line(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.delenv("PELAP_INCEPTION_WEIGHTS", raising=False)
    change, options, words = BROKEN[what]
    change(folders[0])
    assert main(argv(*folders, *options)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("pelap: error: ")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert not (folders[0].parent / "figures.json").is_file()
    assert what != "unknown" or "files named .webp passed over: 40" in said.out
