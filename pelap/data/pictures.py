"""One picture: decoding, squaring, resizing. Pillow's integer arithmetic gives the same on every machine."""

import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from pelap.core import files
from pelap.data.entries import Remark, unsaid

ORIENTATION, TURNED = 0x0112, range(2, 9)  # the entry of EXIF, and its values for what is not upright
TOO_LARGE = (Image.DecompressionBombWarning, Image.DecompressionBombError, OverflowError, MemoryError)
PNG_BIT_DEPTH = 24  # where a PNG has its bits a colour: the header is the first chunk, always


def decode(data: bytes, image_size: int, remark: Remark = unsaid) -> torch.Tensor:
    """A PNG or JPEG as `read_picture` reads it, its central square resized: (3, size, size) uint8."""
    image = read_picture(data, remark)
    if image.width != image.height:
        remark("pictures that are not square cut to their central squares")
    if min(image.size) < image_size:
        remark(f"pictures of fewer than {image_size}x{image_size} pixels enlarged")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return from_pillow(image.crop((left, top, left + side, top + side)), image_size)


def read_picture(data: bytes, remark: Remark = unsaid) -> Image.Image:
    """A PNG or JPEG as RGB, whole and upright, what is transparent in it laid on white.

    The remark is called with everything that the picture loses or gains in this.

    Raises:
        ValueError: The bytes are not a complete picture, or its transparency cannot be told.
    """
    try:
        # Of more than 89 million pixels, as many as a camera has, Pillow warns: 300 kB may hold them all.
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = Image.open(BytesIO(data), formats=("PNG", "JPEG"))
        with image:
            bits = data[PNG_BIT_DEPTH] if image.format == "PNG" else 8
            for what in _changes(image, bits):
                remark(what)
            return _on_white(ImageOps.exif_transpose(image), bits, remark)
    except UnidentifiedImageError:
        raise ValueError("its content is of another kind") from None
    except (OSError, SyntaxError, ValueError, *TOO_LARGE) as error:
        raise ValueError(str(error)) from None


def _changes(image: Image.Image, bits: int) -> Iterator[str]:
    """What becoming upright RGB of 8 bits changes in a picture, transparency aside."""
    profile = image.info.get("icc_profile", b"")
    if bits > 8:
        yield "pictures of 16 bits a colour brought to 8"
    if image.mode == "CMYK":
        yield "CMYK pictures brought to RGB by the plain formula"
    if profile and b"sRGB" not in profile.replace(b"\0", b""):
        yield "colour profiles other than sRGB not applied"
    if getattr(image, "n_frames", 1) > 1:
        yield "pictures of several frames read as their first"
    if image.getexif().get(ORIENTATION) in TURNED:
        yield "pictures turned upright as their EXIF says"
    if image.mode[0] in "1LI":
        yield "grey pictures read as RGB"


def from_pillow(image: Image.Image, image_size: int) -> torch.Tensor:
    """A square RGB picture, resized with antialiasing (bicubic), as (3, image_size, image_size) uint8."""
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # (H, W, 3)
    return pixels.permute(2, 0, 1).contiguous()


def resize_all(pixels: npt.NDArray[np.uint8], image_size: int) -> torch.Tensor:
    """Square pictures (N, H, W, 3) as (N, 3, image_size, image_size) uint8."""
    if pixels.shape[1] == image_size:
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return torch.stack([from_pillow(Image.fromarray(picture), image_size) for picture in pixels])


def _on_white(image: Image.Image, bits: int, remark: Remark) -> Image.Image:
    """RGB; the hidden colours of transparent pixels do not count."""
    if not image.has_transparency_data:
        return _to_8_bits(image).convert("RGB")
    rgba = _with_alpha(image, bits)
    if rgba.getchannel("A").getextrema()[0] != 255:
        remark("transparent pictures laid on white")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _with_alpha(image: Image.Image, bits: int) -> Image.Image:
    """RGBA. Pillow compares a transparent grey of 2, 4 or 16 bits with pixels of 8 bits."""
    key = image.info.get("transparency")
    if key is not None and image.mode == "RGB" and bits > 8:
        raise ValueError("16 bits a colour, one of them transparent: save it with 8 bits")
    if key is None or image.mode[0] not in "1LI":
        return image.convert("RGBA")
    scale = 255 // (2**bits - 1) if 1 < bits < 8 else 1
    opaque = np.asarray(image.convert("I")) != key * scale
    rgba = _to_8_bits(image).convert("RGBA")
    rgba.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return rgba


def _to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey keeps its range: Pillow would clip it at 255."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")


def save_grid(images: torch.Tensor, path: Path) -> None:
    """Write pictures (N, 3, H, W) uint8 as one PNG, row by row on white, atomically."""
    from torchvision.utils import make_grid

    save_png(make_grid(images, nrow=8, padding=2, pad_value=255), path)


def save_png(image: torch.Tensor, path: Path) -> None:
    """Write one picture (3, H, W) uint8 as PNG, atomically."""
    with files.atomic_path(path) as partial:
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(partial, format="PNG")
