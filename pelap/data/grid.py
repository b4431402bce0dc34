"""Pictures as PNG files."""

from pathlib import Path

import torch
from PIL import Image

from pelap.core import files

PADDING = 2
"""Pixels between the pictures of a grid."""


def save_grid(images: torch.Tensor, path: Path, columns: int = 8) -> None:
    """Write pictures (N, 3, H, W) uint8 as one PNG, row by row on white, atomically."""
    from torchvision.utils import make_grid

    save_png(make_grid(images, nrow=columns, padding=PADDING, pad_value=255), path)


def save_png(image: torch.Tensor, path: Path) -> None:
    """Write one picture (3, H, W) uint8 as PNG, atomically."""
    with files.atomic_path(path) as partial:
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(partial, format="PNG")
