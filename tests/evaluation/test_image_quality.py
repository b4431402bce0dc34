"""PSNR, SSIM and LPIPS."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pelap.core.digests import sha256
from pelap.core.errors import DataError, ModelError
from pelap.evaluation import image_quality as quality_module
from pelap.evaluation.image_quality import load_lpips, lpips, psnr, ssim

CPU = torch.device("cpu")


def pictures(num: int, size: int = 32, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (num, 3, size // 4, size // 4), generator=random, dtype=torch.uint8)
    return coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


def test_psnr_by_hand() -> None:
    a = pictures(2) // 2
    b = a.clone()
    b[0] += 10  # mean squared error 100
    b[1] += 1  # mean squared error 1
    expected = np.mean([10 * np.log10(255**2 / 100), 10 * np.log10(255**2)])
    assert psnr(a, b) == pytest.approx(expected, rel=1e-6)
    assert psnr(b, a) == pytest.approx(expected, rel=1e-6)  # uint8 does not wrap around
    nearly = a.clone()
    nearly[:, 0, 0, 0] ^= 1
    assert psnr(a, a) == pytest.approx(10 * np.log10(255**2 * 3 * 32 * 32))  # finite and the largest
    assert psnr(a, nearly) == pytest.approx(psnr(a, a), rel=1e-6)


def test_psnr_and_ssim_are_means_over_pictures() -> None:
    a, b = pictures(130), pictures(130, seed=1)
    b[:50] = (a[:50].float() * 0.9 + b[:50].float() * 0.1).to(torch.uint8)
    for measure in (psnr, ssim):
        each = [measure(a[i : i + 1], b[i : i + 1]) for i in range(130)]
        assert measure(a, b) == pytest.approx(np.mean(each), rel=1e-5)


def ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """One channel (H, W), in float64."""
    from scipy.ndimage import gaussian_filter

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, sigma=1.5, truncate=3.5, mode="mirror")

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ratio = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    return float((ratio / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def test_ssim_by_hand() -> None:
    a, b = pictures(2), pictures(2, seed=1)
    b = (a.float() * 0.7 + b.float() * 0.3).to(torch.uint8)
    rows = zip(a.double().flatten(0, 1).numpy(), b.double().flatten(0, 1).numpy(), strict=True)
    assert ssim(a, b) == pytest.approx(np.mean([ssim_by_hand(x, y) for x, y in rows]), rel=1e-5)
    assert ssim(a, a) == pytest.approx(1)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_quality_refuses_what_it_cannot_compare(measure: Callable[[Tensor, Tensor], float]) -> None:
    a = pictures(2)
    for other in (a.float(), a[:1], a[:, :, :16]):
        with pytest.raises(DataError, match="expected two equal shapes"):
            measure(a, other)
    with pytest.raises(DataError, match="at least 11"):
        ssim(a[..., :8, :8], a[..., :8, :8])


# --- LPIPS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alexnet() -> nn.Module:
    """Torchvision's AlexNet with random weights."""
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # not that of every test, which other random weights would have too
        return alexnet(weights=None).eval()


@pytest.fixture
def weights(alexnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its weights, in the place of the published ones."""
    path = tmp_path / "alexnet.pth"
    state = {name: value for name, value in alexnet.state_dict().items() if name.startswith("features")}
    torch.save(state, path)  # its classifier is large and not used
    monkeypatch.setattr(quality_module, "ALEXNET_SHA256", sha256(path))
    return path


def lpips_by_hand(alexnet: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """The definition: channels normalised at every pixel, squared differences weighed and averaged."""
    import torchmetrics.functional.image.lpips as packaged

    heads = torch.load(
        Path(packaged.__file__).parent / "lpips_models/alex.pth", map_location="cpu", weights_only=True
    )
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, y = ((images.float() / 127.5 - 1 - shift) / scale for images in (a, b))
    total, block = torch.zeros(len(a)), 0
    for layer in alexnet.features:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
        x, y = layer(x), layer(y)
        if isinstance(layer, nn.ReLU):
            unit = [maps / maps.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12) for maps in (x, y)]
            weight = heads[f"lin{block}.model.1.weight"]  # (1, channels, 1, 1)
            total += ((unit[0] - unit[1]).square() * weight).sum(1).mean(dim=(1, 2))
            block += 1
        if block == 5:
            break  # the last pooling has nothing to pool in 32 pixels
    return total


def test_lpips_is_the_definition(weights: Path, alexnet: nn.Module) -> None:
    state = torch.get_rng_state()
    network = load_lpips(weights, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    network.train(True)  # no dropout
    a, b = pictures(5), pictures(5, seed=1)
    with torch.no_grad():
        expected = lpips_by_hand(alexnet, a, b).mean().item()
    assert expected > 1e-4
    assert lpips(a, b, network) == pytest.approx(expected, rel=1e-3)
    assert lpips(a, a, network) == 0


def test_lpips_weights_are_the_published_ones(tmp_path: Path) -> None:
    other = tmp_path / "alexnet.pth"
    other.write_bytes(b"404: not found")
    with pytest.raises(ModelError, match=r"SHA-256 \w{12}, but torchvision's AlexNet has 7be5be79"):
        load_lpips(other, CPU)
    with pytest.raises(ModelError, match="no such file of weights"):
        load_lpips(tmp_path / "none.pth", CPU)


def test_lpips_refuses_what_it_cannot_compare(weights: Path) -> None:
    network, a = load_lpips(weights, CPU), pictures(2)
    for small in (a[..., :30, :], a[:, :1]):
        with pytest.raises(DataError, match="LPIPS needs 3 colours and at least 31 pixels"):
            lpips(small, small, network)
    assert lpips(a[..., :31, :31], a[..., :31, :31], network) == 0
    with pytest.raises(DataError, match="expected two equal shapes"):
        lpips(a, a.float(), network)
