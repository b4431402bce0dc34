"""evaluate, for any two folders of pictures: no model, no parameters."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from pelap.core import files
from pelap.core.device import environment
from pelap.core.errors import DataError
from pelap.core.replacing import is_folder
from pelap.core.terminal import visible
from pelap.data.dataset import all_equal
from pelap.data.entries import Remarks, entries, kind_of, passed_over, reading
from pelap.data.pictures import read_picture
from pelap.evaluation.features import make_extractor
from pelap.evaluation.image_quality import pair_metrics
from pelap.evaluation.reference import Reference

SPREADS = ("_se", "_std")  # of names of metrics: standard errors of others, deviations over subsets
DRAWN_ONE_BY_ONE = "standard errors: of pictures drawn one by one; put classes of chosen shares into folders"
DRAWN_BY_CLASS = "standard errors: of folders whose shares of the pictures are chosen, not drawn"


@dataclass(frozen=True)
class Pictures:
    """What a folder holds."""

    folder: Path
    paths: tuple[str, ...]  # inside the folder, sorted
    images: torch.Tensor  # (N, 3, H, W) uint8
    notes: tuple[str, ...]  # what was passed over or changed in reading them

    @property
    def size(self) -> str:
        """Of each picture."""
        return "{2}x{1}".format(*self.images.shape[1:])

    def by_name(self) -> dict[str, torch.Tensor]:
        """Pictures by their paths without endings, so that a PNG can be the pair of a JPEG.

        However accents are written: those of a Mac are two characters each.
        """
        named = {
            unicodedata.normalize("NFC", str(Path(path).with_suffix(""))): image
            for path, image in zip(self.paths, self.images, strict=True)
        }
        if len(named) < len(self.paths):
            raise DataError(
                f"{self.folder}: pictures that differ by their endings alone, or by the form of accents; "
                "--paired needs other names"
            )
        return named

    def classes(self) -> torch.Tensor | None:
        """The class folder of each picture (N,); None unless all are in folders, and these are several."""
        above = [str(Path(path).parent) for path in self.paths]
        names = sorted(set(above))
        if len(names) < 2 or "." in names:
            return None
        return torch.tensor([names.index(name) for name in above])

    def digest(self) -> str:
        """Hexadecimal SHA-256 of size and pixels, in the order of the paths."""
        sha = hashlib.sha256(str(tuple(self.images.shape)).encode())
        sha.update(self.images.numpy().data)
        return sha.hexdigest()


def evaluate_folders(
    samples: Path,
    reference: Path,
    extractors: Sequence[str],
    out: Path,
    device: torch.device,
    inception_weights: str | None = None,
    paired: bool = False,
) -> None:
    """Compare the pictures of two folders: write ``{metric: number, "protocol": {...}}`` and print a table.

    Args:
        samples: Folder of PNG or JPEG files, searched to its depths.
        reference: Folder of what they are compared with.
        extractors: See `make_extractor`.
        out: The JSON file.
        device: Where features are computed.
        inception_weights: See `make_extractor`.
        paired: Compare equally named pictures one by one as well.

    Raises:
        DataError: No pictures, just one, or all the same; sizes differ; one cannot be read; with `paired`
            names differ.
        ConfigError: An extractor is unknown, or lacks its weights.
        ModelError: Weights of an extractor cannot be used.
    """
    with files.exclusive(out):
        made = [make_extractor(name, device, inception_weights) for name in extractors]
        ours, theirs = _read(samples), _read(reference)
        if ours.size != theirs.size:
            raise DataError(
                f"{samples}: pictures of {ours.size} pixels, those of {reference} have {theirs.size}; "
                "compare pictures of one size"
            )
        pairs = _pairs(ours, theirs) if paired else {}
        real, classes = Reference(theirs.images, made), ours.classes()
        metrics = real.measure(ours.images, strata=classes).metrics | pairs
        drawn = DRAWN_ONE_BY_ONE if classes is None else DRAWN_BY_CLASS
        notes = [drawn, *real.notes(len(ours.images)), *dict.fromkeys((*ours.notes, *theirs.notes))]
        counts = {"num_images": len(ours.images), "num_reference": len(theirs.images)}
        protocol = {
            **real.describe(len(ours.images)),
            "samples_sha256": ours.digest(),
            "reference_sha256": theirs.digest(),
            "picture_size": ours.size,
            "notes": notes,
            **environment(device),
        }
        files.write_json(out, {**metrics, **counts, "protocol": protocol})
    _show(metrics, counts, notes)
    print(f"figures in {out}")


def _read(folder: Path) -> Pictures:
    """All pictures below a folder that training would read, too."""
    if not is_folder(folder):
        raise DataError(f"{folder}: no such folder; correct the path")
    remarks = Remarks()
    found = {}
    with reading(folder):
        for entry in entries(folder, remarks):
            reason = passed_over(entry.path)
            if reason is None and kind_of(entry.path) != "pictures":
                reason = "sounds passed over"
            if entry.read is not None and reason is None:
                found[entry.path] = _decode(folder, entry.path, entry.read(), remarks)
            elif entry.read is not None:
                remarks.add(str(reason), entry.path)
    paths, notes = tuple(sorted(found)), tuple(f"{folder}: {line}" for line in remarks.lines())
    if len(paths) < 2:
        for note in notes:  # which may explain why
            print(f"note: {note}")
        there = "just one picture" if paths else "no pictures"
        raise DataError(f"{folder}: {there}; give a folder with PNG or JPEG files")
    images = [found[path] for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            sizes = ["{2}x{1}".format(*each.shape) for each in (images[0], image)]
            raise DataError(
                f"{folder}: {paths[0]} has {sizes[0]} pixels, {path} {sizes[1]}; bring all to one size"
            )
    pictures = Pictures(folder, paths, torch.stack(images), notes)
    if all_equal(pictures.images):
        raise DataError(f"{folder}: all {len(paths)} pictures are the same; there is nothing to compare")
    return pictures


def _decode(folder: Path, path: str, content: bytes, remarks: Remarks) -> torch.Tensor:
    """A picture as RGB, upright and whole, (3, H, W) uint8."""
    try:
        picture = read_picture(content, remarks.about(path))
    except ValueError as error:
        said = f"is not a readable PNG or JPEG ({files.one_line(error)}); repair or remove it"
        raise DataError(f"{folder}: {path} {said}") from None
    return torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def _pairs(ours: Pictures, theirs: Pictures) -> dict[str, float]:
    """PSNR and SSIM of equally named pictures."""
    mine, others = ours.by_name(), theirs.by_name()
    alone = sorted(mine.keys() ^ others.keys())
    if alone:
        where = ours.folder if alone[0] in mine else theirs.folder
        many = f"in all {len(alone)} names are in one folder alone"
        raise DataError(
            f"--paired: {alone[0]} is in {where} alone ({many}); give equal names to what belongs together"
        )
    return pair_metrics(ours.images, torch.stack([others[name] for name in mine]))


def _show(metrics: Mapping[str, float], counts: Mapping[str, int], notes: Sequence[str]) -> None:
    """A line a metric, with its error, and the notes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", overflow="fold")
    for heading in ("value", "+/-"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, value in metrics.items():
        if not name.endswith(SPREADS):
            spread = next((metrics[name + end] for end in SPREADS if name + end in metrics), None)
            table.add_row(name, f"{value:.4f}", "" if spread is None else f"{spread:.4f}")
    console = Console()
    console.print(table)
    console.print("{num_images} pictures, {num_reference} in the reference".format(**counts))
    for note in notes:
        console.print(visible(f"note: {note}"), markup=False, highlight=False)
