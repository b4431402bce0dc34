"""Extractors, Frechet distance, PSNR and SSIM."""

import inspect
import os
import time
import zipfile

import numpy as np
import pytest
import torch
from torch import Tensor

from pelap.errors import DataError, ModelError
from pelap.evaluation import features as features_module
from pelap.evaluation.features import METRIC_NAMES, EffNetLite0, Inception2015
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance
from pelap.evaluation.quality import psnr, ssim

CPU = torch.device("cpu")


def statistics(features: Tensor, batch_size: int = 10**6) -> FeatureStatistics:
    result = FeatureStatistics()
    for batch in features.split(batch_size):
        result.update(batch)
    return result


def sample(num: int, dim: int, seed: int = 0) -> Tensor:
    """Features with correlations, a wide spectrum and a mean far from zero, as networks give."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    scale = torch.logspace(0, -3, dim, dtype=torch.float64)
    rows = torch.randn(num, dim, generator=random, dtype=torch.float64) * scale * (1 + 0.3 * seed)
    return rows @ mix + 5 + 0.1 * seed


def pictures(num: int, size: int = 32, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (num, 3, size // 4, size // 4), generator=random, dtype=torch.uint8)
    return coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


# --- statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
def test_statistics_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    rows = sample(200, 16)
    streamed = statistics(rows, batch_size)
    assert streamed.count == 200
    torch.testing.assert_close(streamed.mean, rows.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(streamed.covariance, torch.cov(rows.T), rtol=1e-10, atol=1e-12)


def test_statistics_keep_digits_far_from_zero() -> None:
    rows = torch.randn(300, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = statistics(rows + 1e6, 32).covariance
    torch.testing.assert_close(moved, torch.cov(rows.T), rtol=1e-7, atol=1e-8)


def test_update_leaves_the_features_alone() -> None:
    rows = torch.ones(4, 3, dtype=torch.float64)
    statistics(rows).update(rows)
    assert torch.equal(rows, torch.ones(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_numbers_are_refused(bad: float) -> None:
    rows = sample(8, 4)
    rows[3, 1] = bad
    with pytest.raises(DataError, match=r"NaN or infinite for 1 of 8 pictures"):
        FeatureStatistics().update(rows)


@pytest.mark.parametrize("shape", [(4,), (0, 3), (2, 3, 4)])
def test_features_that_are_no_rows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected rows"):
        FeatureStatistics().update(torch.zeros(shape))


def test_features_of_two_extractors_do_not_mix() -> None:
    one, other = statistics(sample(8, 4)), statistics(sample(8, 5))
    with pytest.raises(DataError, match="5 a picture, 4 before"):
        one.update(sample(8, 5))
    with pytest.raises(DataError, match="4 against 5 a picture"):
        frechet_distance(one, other)


@pytest.mark.parametrize("num", [0, 1])
def test_one_picture_is_too_few(num: int) -> None:
    few = statistics(sample(num, 4)) if num else FeatureStatistics()
    with pytest.raises(DataError, match=f"features of {num} pictures"):
        frechet_distance(few, statistics(sample(8, 4)))


# --- distance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [20, 400])
def test_distance_to_itself_is_zero(num: int) -> None:
    rows = sample(num, 64)
    assert 0 <= frechet_distance(statistics(rows), statistics(rows, 7)) < 1e-9


def test_distance_is_never_below_zero() -> None:
    for seed in range(10):
        rows = sample(60, 24, seed)
        assert 0 <= frechet_distance(statistics(rows), statistics(rows, 7)) < 1e-9


def test_distance_is_symmetric() -> None:
    one, other = statistics(sample(90, 32)), statistics(sample(20, 32, seed=1))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-12)


def test_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    # Rows +-s_i e_i have mean 0 and covariance diag(2 s_i^2 / (n - 1)), exactly.
    s = torch.tensor([3.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    t = torch.tensor([1.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=torch.float64)
    one = statistics(torch.cat([s.diag(), -s.diag()]))
    other = statistics(torch.cat([t.diag(), -t.diag()]) + shift)
    expected = shift.square().sum() + 2 / 7 * (s - t).square().sum()
    assert frechet_distance(one, other) == pytest.approx(expected.item(), rel=1e-12)


def references(x: Tensor, y: Tensor) -> list[float]:
    """What torchmetrics and torch-fidelity say."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    moments = [(rows.mean(0), torch.cov(rows.T)) for rows in (x, y)]
    as_numpy = [{"mu": mean.numpy(), "sigma": cov.numpy()} for mean, cov in moments]
    fidelity = fid_statistics_to_metric(*as_numpy, verbose=False)["frechet_inception_distance"]
    return [_compute_fid(*moments[0], *moments[1]).item(), fidelity]


@pytest.mark.parametrize(("num", "rel"), [(500, 1e-6), (40, 1e-5)], ids=["full rank", "rank deficient"])
def test_distance_agrees_with_torchmetrics_and_torch_fidelity(num: int, rel: float) -> None:
    x, y = sample(num, 128), sample(num - 8, 128, seed=1)
    distance = frechet_distance(statistics(x, 64), statistics(y, 64))
    for reference in references(x, y):
        assert distance == pytest.approx(reference, rel=rel)


@pytest.mark.parametrize("num", [40, 400])
def test_distance_is_exact(num: int) -> None:
    # With X and Y the centred rows, the trace of the root is the sum of the singular values of X Y'.
    x, y = sample(num, 128), sample(num - 10, 128, seed=1)
    cross = torch.linalg.svdvals((x - x.mean(0)) @ (y - y.mean(0)).T).sum() / ((num - 1) * (num - 11)) ** 0.5
    moved = (x.mean(0) - y.mean(0)).square().sum()
    expected = moved + x.var(0).sum() + y.var(0).sum() - 2 * cross
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected.item(), rel=1e-11)


def test_distance_of_1280_features_takes_seconds() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = (statistics(torch.randn(num, 1280, generator=random)) for num in (1300, 200))
    start = time.process_time()
    assert frechet_distance(one, other) > 0
    assert time.process_time() - start < 30  # about 0.6 s; a general matrix root takes ten times as long


# --- extractors -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def effnet() -> EffNetLite0:
    return EffNetLite0(CPU)


def test_effnet_says_what_it_is(effnet: EffNetLite0) -> None:
    assert (effnet.name, effnet.num_features, effnet.input_size) == ("effnet-lite0", 1280, 112)
    assert effnet._network.feature_output_image_size == [4, 4]  # padded for 112 pixels at every stride
    assert effnet.checksum.startswith("57934424")  # as the name of its file promises
    assert METRIC_NAMES[effnet.name] == "fd_effnet_lite0"


def test_effnet_features_do_not_depend_on_the_batch(
    effnet: EffNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EffNetLite0, "chunk_size", 8)
    images = pictures(19)
    together = effnet(images)
    assert together.shape == (19, 1280)
    assert together.dtype == torch.float32
    apart = torch.cat([effnet(chunk) for chunk in images.split(3)])
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)
    assert frechet_distance(statistics(together), statistics(apart)) < 1e-6


def test_effnet_sees_a_bounded_number_of_pictures_at_once(
    effnet: EffNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def features(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return torch.zeros(len(images), 1280)

    monkeypatch.setattr(effnet, "_features", features)
    assert effnet(pictures(150)).shape == (150, 1280)
    assert sizes == [64, 64, 22]


def test_effnet_recognises_photographs(effnet: EffNetLite0) -> None:
    # Wrong normalisation, channel order or padding show here. 285: Egyptian cat, 849: teapot, 967: espresso.
    from skimage import data

    head = effnet._network._fc
    for photo, classes in ((data.cat(), {281, 282, 285}), (data.coffee(), {849, 967, 968})):
        side = min(photo.shape[:2])
        top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
        image = torch.from_numpy(photo[top : top + side, left : left + side].copy()).permute(2, 0, 1)
        probabilities = head(effnet(image[None])).softmax(1)[0]
        assert probabilities.argmax().item() in classes
        assert probabilities[list(classes)].sum() > 0.9


def test_effnet_is_silent_and_leaves_random_numbers_alone(capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    EffNetLite0(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")


def test_effnet_computes_in_fp32_whatever_the_caller_does(effnet: EffNetLite0) -> None:
    images = pictures(4)
    precision = torch.backends.cudnn.conv.fp32_precision
    with torch.autocast("cpu", torch.bfloat16):
        inside = effnet(images)
    torch.testing.assert_close(inside, effnet(images), rtol=1e-4, atol=1e-5)
    assert torch.backends.cudnn.conv.fp32_precision == precision


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 1, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(0, 3, 32, 32, dtype=torch.uint8),
    ],
    ids=["float", "grey", "one", "channels last", "none"],
)
def test_what_is_no_batch_of_pictures_is_refused(effnet: EffNetLite0, images: Tensor) -> None:
    with pytest.raises(DataError, match=r"expected uint8 pictures \(N, 3, H, W\)"):
        effnet(images)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> os.PathLike[str]:
    """Weights that fit the 2015 Inception, but random."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    source = inspect.unwrap(FeatureExtractorInceptionV3)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(source, "load_state_dict", lambda *_: None)
        patch.setattr("torch.load", lambda *_, **__: None)
        network = source("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(stand_in: os.PathLike[str]) -> Inception2015:
    return Inception2015(stand_in, CPU)


def test_inception_gives_pooled_features(inception: Inception2015) -> None:
    images = pictures(3)
    features = inception(images)
    assert features.shape == (3, inception.num_features) == (3, 2048)
    assert features.std(dim=0).max() > 0
    torch.testing.assert_close(features[1:2], inception(images[1:2]), rtol=1e-3, atol=1e-5)


def test_only_the_published_weights_are_called_fid(
    stand_in: os.PathLike[str], inception: Inception2015, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert METRIC_NAMES[inception.name] == "fd_inception_other"
    monkeypatch.setattr(features_module, "INCEPTION_2015_SHA256", inception.checksum)
    assert METRIC_NAMES[Inception2015(stand_in, CPU).name] == "fid"


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_inception_refuses_what_is_no_weights(tmp_path: os.PathLike[str]) -> None:
    cases = {"text": b"404: not found", "empty": b"", "half": b"PK\x03\x04" + b"\0" * 99}
    for name, content in cases.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"not a complete file of PyTorch weights") as caught:
            Inception2015(path, CPU)
        assert "\n" not in str(caught.value)


def test_inception_runs_no_code_of_its_file(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"fc.bias": Evil()}, path)
    assert zipfile.is_zipfile(path)
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("unpickled"))
    with pytest.raises(ModelError, match=r"evil\.pth: not a complete file"):
        Inception2015(path, CPU)


@pytest.mark.parametrize("state", [{"fc.bias": torch.zeros(3)}, torch.zeros(3), [1, 2]])
def test_inception_refuses_other_weights(tmp_path: os.PathLike[str], state: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(ModelError, match="does not fit the 2015 Inception") as caught:
        Inception2015(path, CPU)
    assert "\n" not in str(caught.value)


def test_inception_is_never_downloaded(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(ModelError, match="no such file of weights"):
        Inception2015(tmp_path / "weights-inception-2015-12-05-6726825d.pth", CPU)


# --- reconstructions --------------------------------------------------------------------------------


def test_psnr_by_hand() -> None:
    a = pictures(2) // 2
    b = a.clone()
    b[0] += 10  # mean squared error 100
    b[1] += 1  # mean squared error 1
    expected = np.mean([10 * np.log10(255**2 / 100), 10 * np.log10(255**2)])
    assert psnr(a, b) == pytest.approx(expected, rel=1e-6)
    assert psnr(b, a) == pytest.approx(expected, rel=1e-6)  # uint8 does not wrap around


def test_psnr_of_equal_pictures_is_finite_and_the_largest() -> None:
    a = pictures(3)
    nearly = a.clone()
    nearly[:, 0, 0, 0] ^= 1
    assert psnr(a, a) == pytest.approx(10 * np.log10(255**2 * 3 * 32 * 32))
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


def test_quality_refuses_what_it_cannot_compare() -> None:
    a = pictures(2)
    for other in (a.float(), a[:1], a[:, :, :16]):
        for measure in (psnr, ssim):
            with pytest.raises(DataError, match="expected two equal shapes"):
                measure(a, other)
    with pytest.raises(DataError, match="at least 11"):
        ssim(a[..., :8, :8], a[..., :8, :8])
