"""How close pictures are to their originals: PSNR and SSIM, by torchmetrics."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pelap.errors import DataError

_CHUNK = 128
_SSIM_WINDOW = 11


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over pictures of each picture's ratio.

    A picture equal to its original has an infinite ratio; it counts as if one of its values were off by
    one, the largest finite ratio that it could have (83 dB at 32 pixels).

    Args:
        a: uint8 pictures (N, C, H, W).
        b: Their originals, of the same shape.

    Raises:
        DataError: Other types or shapes.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    def each(first: Tensor, second: Tensor) -> Tensor:
        return peak_signal_noise_ratio(first, second, data_range=255.0, reduction="none", dim=(1, 2, 3))

    values = _by_picture(each, a, b)
    return values.clamp(max=10 * math.log10(255**2 * a[0].numel())).mean().item()


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity, the mean over pictures; 1 when equal.

    Gaussian window of 11 with sigma 1.5; borders are reflected and count, as torchmetrics does it
    (scikit-image leaves them out, which gives slightly other values).

    Args:
        a: uint8 pictures (N, C, H, W), at least 11 pixels high and wide.
        b: Their originals, of the same shape.

    Raises:
        DataError: Other types or shapes, or smaller pictures.

    Source: Wang et al., 2004, https://doi.org/10.1109/TIP.2003.819861
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    def each(first: Tensor, second: Tensor) -> Tensor:
        values = structural_similarity_index_measure(first, second, data_range=255.0, reduction="none")
        return torch.as_tensor(values)

    if min(a.shape[-2:]) < _SSIM_WINDOW:
        raise DataError(f"pictures of {tuple(a.shape[-2:])} pixels: SSIM needs at least 11 on each side")
    return _by_picture(each, a, b).mean().item()


def _by_picture(measure: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """A value a picture (N,) in float64 on the CPU, in chunks of bounded memory."""
    _check(a, b)
    chunks = zip(torch.split(a, _CHUNK), torch.split(b, _CHUNK), strict=True)
    values = [measure(first.float(), second.float()).reshape(-1) for first, second in chunks]
    return torch.cat(values).cpu().double()


def _check(a: Tensor, b: Tensor) -> None:
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape or a.ndim != 4 or not len(a):
        raise DataError(
            f"pictures: expected two equal shapes (N, C, H, W) of uint8, not {a.dtype} {tuple(a.shape)} "
            f"and {b.dtype} {tuple(b.shape)}"
        )
