"""One picture: decoding, squaring, resizing. Pillow's integer arithmetic gives the same on every machine."""

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from PIL import Image


def decode(data: bytes, image_size: int) -> torch.Tensor:
    """A PNG or JPEG as RGB (transparency dropped), upright, its central square resized.

    Returns:
        (3, image_size, image_size) uint8.

    Raises:
        ValueError: The bytes are not a complete picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(BytesIO(data), formats=("PNG", "JPEG")) as image:
            upright = ImageOps.exif_transpose(image)
            return from_pillow(_central_square(to_rgb(upright)), image_size)
    except UnidentifiedImageError:
        raise ValueError("its content is of another kind") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None


def from_pillow(image: "Image.Image", image_size: int) -> torch.Tensor:
    """A square RGB picture, resized with antialiasing (bicubic), as (3, image_size, image_size) uint8."""
    from PIL import Image

    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # (H, W, 3)
    return pixels.permute(2, 0, 1).contiguous()


def resize_all(pixels: npt.NDArray[np.uint8], image_size: int) -> torch.Tensor:
    """Square pictures (N, H, W, 3) as (N, 3, image_size, image_size) uint8."""
    from PIL import Image

    if pixels.shape[1] == image_size:
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return torch.stack([from_pillow(Image.fromarray(picture), image_size) for picture in pixels])


def to_rgb(image: "Image.Image") -> "Image.Image":
    """A picture of any mode in colour, 8 bits a channel; 16-bit grey keeps its range."""
    if image.mode.startswith("I"):  # 16-bit grey: Pillow would clip it at 255
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image.convert("RGB")


def _central_square(image: "Image.Image") -> "Image.Image":
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
