"""How close pictures are to their originals: PSNR, SSIM and LPIPS, by torchmetrics."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pelap.core.errors import DataError
from pelap.evaluation.features import exact_fp32
from pelap.evaluation.weights import load_weights

_CHUNK = 128
SSIM_SIDE = 11  # pixels that SSIM needs on each side: its window
ALEXNET_SHA256 = "7be5be79"  # how the digest of torchvision's AlexNet begins, as the name of its file says
_LPIPS_SIDE = 31  # pixels that leave AlexNet's last feature map one


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over pictures of each picture's ratio.

    A picture equal to its original has an infinite ratio; it counts as if one of its values were off by
    one, the largest finite ratio that it could have (83 dB at 32 pixels). Both are uint8 (N, C, H, W), or it
    is a `DataError`.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    each = partial(peak_signal_noise_ratio, data_range=255.0, reduction="none", dim=(1, 2, 3))
    values = _by_picture(each, a, b)
    return values.clamp(max=10 * math.log10(255**2 * a[0].numel())).mean().item()


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity, the mean over pictures; 1 when equal.

    Gaussian window of 11 with sigma 1.5; borders are reflected and count, as torchmetrics does it
    (scikit-image leaves them out, which gives slightly other values).

    As `psnr`, and at least 11 pixels high and wide.

    Source: Wang et al., 2004, https://doi.org/10.1109/TIP.2003.819861
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(a.shape[-2:]) < SSIM_SIDE:
        raise DataError(f"pictures of {tuple(a.shape[-2:])} pixels: SSIM needs at least 11 on each side")
    each = partial(structural_similarity_index_measure, data_range=255.0, reduction="none")
    return _by_picture(each, a, b).mean().item()


def lpips(a: Tensor, b: Tensor, network: nn.Module) -> float:
    """Learned perceptual distance, the mean over pictures; 0 when equal.

    As `psnr`, of three channels and at least 31 pixels high and wide; the network is of `load_lpips`.

    Source: Zhang et al., https://arxiv.org/abs/1801.03924
    """
    if a.shape[1:2] != (3,) or min(a.shape[-2:]) < _LPIPS_SIDE:
        raise DataError(
            f"pictures of shape {tuple(a.shape[1:])}: LPIPS needs 3 colours and at least 31 pixels a side"
        )
    device = next(network.parameters()).device

    def each(first: Tensor, second: Tensor) -> Tensor:
        with torch.no_grad(), exact_fp32(device):
            values: Tensor = network(first.to(device) / 127.5 - 1, second.to(device) / 127.5 - 1)
        return values

    return _by_picture(each, a, b).mean().item()


def pair_metrics(a: Tensor, b: Tensor, lpips_network: nn.Module | None = None) -> dict[str, float]:
    """PSNR, SSIM where they are large enough, and LPIPS where there is a network, by name."""
    metrics = {"psnr": psnr(a, b)}
    if min(a.shape[-2:]) >= SSIM_SIDE:
        metrics["ssim"] = ssim(a, b)
    if lpips_network is not None:
        metrics["lpips"] = lpips(a, b, lpips_network)
    return metrics


def load_lpips(path: Path, device: torch.device) -> nn.Module:
    """The network of LPIPS with AlexNet; its last layers come with torchmetrics.

    The file is ``alexnet-owt-7be5be79.pth`` of torchvision, never downloaded; any other is a `ModelError`.
    """
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    state, _ = load_weights(path, ALEXNET_SHA256, "torchvision's AlexNet")
    with torch.random.fork_rng(devices=[]):
        # Its public class fetches the backbone by itself.
        network = _NoTrainLpips(net="alex", pnet_rand=True)
    # The parts of the backbone keep the numbers that they have in AlexNet, behind the name of a slice.
    backbone = {name: state[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
    network.net.load_state_dict(backbone)
    return network.to(device)


def _by_picture(measure: Callable[[Tensor, Tensor], Any], a: Tensor, b: Tensor) -> Tensor:
    """A value a picture (N,) in float64 on the CPU, in chunks of bounded memory."""
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape or a.ndim != 4 or not len(a):
        raise DataError(
            f"pictures: expected two equal shapes (N, C, H, W) of uint8, not {a.dtype} {tuple(a.shape)} "
            f"and {b.dtype} {tuple(b.shape)}"
        )
    chunks = zip(torch.split(a, _CHUNK), torch.split(b, _CHUNK), strict=True)
    values = [measure(first.float(), second.float()).reshape(-1) for first, second in chunks]
    return torch.cat(values).cpu().double()
