"""Pictures without a network: random crops of photographs that ship inside scikit-image."""

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from pelap.config import DownloadParams, PhotoCrops
from pelap.core.errors import DataError
from pelap.core.files import one_line
from pelap.core.rng import generator
from pelap.data.dataset import ImageDataset, Split, make_split, pixel_checksum
from pelap.data.pictures import from_pillow

PHOTOGRAPHS = (
    *("astronaut", "chelsea", "coffee", "hubble_deep_field"),
    *("immunohistochemistry", "retina", "rocket", "stereo_motorcycle"),
)
TEST_SHARE = 0.25
"""Share of each photograph that only test crops come from: a strip across its middle, because margins
(black around the retina, sky above the rocket) look like nothing in the rest."""


class Region(NamedTuple):
    """A rectangle of a photograph, in pixels; right and bottom lie just outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def short_side(self) -> int:
        return min(self.right - self.left, self.bottom - self.top)


def build(name: str, download: DownloadParams, seed: int, data_dir: Path) -> ImageDataset:
    """Square crops of random side and place; a picture's label is its photograph.

    Crop i of a photograph depends on the seed and i alone: asking for more keeps the first ones.

    Raises:
        DataError: `min_crop` is too large for a photograph, or scikit-image lacks one.
    """
    params, image_size = download.photos, download.image_size
    photos = [_photograph(photograph) for photograph in PHOTOGRAPHS]
    limit = min(min(photo.height, photo.width, max(photo.size) // 3) for photo in photos)
    if params.min_crop > limit:
        raise DataError(
            f"download.photos.min_crop: {params.min_crop} does not fit into the train and the test "
            f"region of every photograph; use at most {limit}"
        )
    train = _crops(photos, "train", params.train_per_photo, params, image_size, seed)
    test = _crops(photos, "test", params.test_per_photo, params, image_size, seed)
    source = "photographs of scikit-image, random crops"
    return ImageDataset(name, train, test, PHOTOGRAPHS, source, pixel_checksum(train, test))


def regions(width: int, height: int, min_crop: int) -> dict[str, tuple[Region, ...]]:
    """Disjoint regions: test crops come from the middle of the longer side, train crops from both ends.

    Each is at least `min_crop` wide if the longer side holds three of that.
    """
    length = max(width, height)
    strip = max(round(length * TEST_SHARE), min_crop)
    start = (length - strip) // 2
    end = start + strip
    if width >= height:
        left, right = Region(0, 0, start, height), Region(end, 0, width, height)
        return {"train": (left, right), "test": (Region(start, 0, end, height),)}
    top, bottom = Region(0, 0, width, start), Region(0, end, width, height)
    return {"train": (top, bottom), "test": (Region(0, start, width, end),)}


def draw_crop(areas: tuple[Region, ...], params: PhotoCrops, random: torch.Generator) -> Region:
    """A square inside one of `areas`, side uniform from `min_crop` to `max_crop` or the area's limit."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    area = areas[draw(0, len(areas) - 1)]
    side = draw(params.min_crop, min(params.max_crop, area.short_side))
    left = draw(area.left, area.right - side)
    top = draw(area.top, area.bottom - side)
    return Region(left, top, left + side, top + side)


def _crops(
    photos: list[Image.Image], split: str, count: int, params: PhotoCrops, image_size: int, seed: int
) -> Split:
    """`count` crops of each photograph."""
    images, labels = [], []
    for label, (name, photo) in enumerate(zip(PHOTOGRAPHS, photos, strict=True)):
        areas = regions(photo.width, photo.height, params.min_crop)[split]
        for i in range(count):
            crop = draw_crop(areas, params, generator(seed, f"photos/{split}/{name}", i))
            images.append(from_pillow(photo.crop(crop), image_size))
            labels.append(label)
    return make_split(images, labels)


def _photograph(name: str) -> Image.Image:
    from skimage import data

    try:
        pixels = getattr(data, name)()
    except (AttributeError, ImportError, OSError) as error:  # not shipped: scikit-image would download it
        raise DataError(
            f"photos: the installed scikit-image does not hold {name!r} ({one_line(error)}); "
            "install the version in requirements.lock"
        ) from None
    return Image.fromarray(pixels[0] if name == "stereo_motorcycle" else pixels)
