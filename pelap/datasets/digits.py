"""Pictures that need no network and that everyone can read: digits in a font that ships with matplotlib."""

from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont

from pelap.config import DownloadParams
from pelap.core.errors import DataError
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset, Split, make_split, pixel_checksum
from pelap.data.pictures import from_pillow

DIGITS = tuple("0123456789")
COUNTS = {"train": 6000, "test": 1000}
FONT = "DejaVuSans-Bold.ttf"
CANVAS = 128  # side in pixels on which a digit is drawn, before it is resized
INK, GROUND = (255, 196, 92), (20, 24, 40)


def build(name: str, download: DownloadParams, seed: int, data_dir: Path) -> ImageDataset:
    """Digits of drawn size, place and angle; a picture's label is its digit.

    They are the same for every seed, like a data set from the network; train and test are drawn alike.

    Raises:
        DataError: matplotlib lacks the font.
    """
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / FONT
    if not font.is_file():
        raise DataError(f"digits: {font} is missing; install the version of matplotlib in requirements.lock")
    train, test = (_split(split, count, font, download.image_size) for split, count in COUNTS.items())
    source = "digits in the DejaVu Sans of matplotlib"
    return ImageDataset(name, train, test, DIGITS, source, pixel_checksum(train, test))


def _split(split: str, count: int, font: Path, image_size: int) -> Split:
    images, labels = [], [i % len(DIGITS) for i in range(count)]
    for i, label in enumerate(labels):
        drawn = _draw(DIGITS[label], font, generator(0, f"digits/{split}", i))
        images.append(from_pillow(drawn, image_size))
    return make_split(images, labels)


def _draw(digit: str, font: Path, random: torch.Generator) -> Image.Image:
    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=random))

    size, right, down, angle = draw(104, 128), draw(-8, 8), draw(-6, 6), draw(-10, 10)
    shape, pen = Image.new("L", (CANVAS, CANVAS)), ImageFont.truetype(font, round(size))
    place = (CANVAS / 2 + right, CANVAS / 2 + down)
    ImageDraw.Draw(shape).text(place, digit, fill=255, font=pen, anchor="mm")
    shape = shape.rotate(angle, resample=Image.Resampling.BICUBIC)
    ink, ground = (Image.new("RGB", shape.size, colour) for colour in (INK, GROUND))
    return Image.composite(ink, ground, shape)
