"""A small network that tells the classes of a data set apart, trained on its real pictures.

What its accuracy on made pictures says: how often a small network that learnt from the same real train
pictures takes what was made for the class that was asked for. It is no CLIP score, which other people's
network gives; and a distance in its features is no FID. Both compare models of one data set with each other.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pelap.config import ClassifierParams
from pelap.core.device import autocast
from pelap.core.digests import tensors_digest
from pelap.core.errors import ConfigError, DataError, TrainingError, finite
from pelap.core.keys import code_of
from pelap.core.rng import generator
from pelap.core.terminal import progress
from pelap.data.dataset import ImageDataset, epoch_indices, gather_batch, to_float
from pelap.evaluation.features import CLASSIFIER, Extractor
from pelap.evaluation.weights import kept

_FIRST_SIDE = 16  # positions on a side of the first feature map, about: larger pictures are brought to it
_WARMUP = 0.15  # share of the steps in which the learning rate rises
_WEIGHT_DECAY = 0.02
_ACCURACY = "test_accuracy"  # name of what is kept beside the weights
_CHECK_EVERY = 25  # steps after which the loss is looked at


class Classifier(Extractor):
    """A trained network, its most likely classes and, as an extractor, its features.

    Features (N, 4 * width) are the mean over the last feature map. The reference's pictures, and those of
    the row `real`, are among those it learnt from: their distance is that of pictures it knows.

    Args:
        network: `body` and `head`, in evaluation mode.
        dataset: What it learnt from.
        test_accuracy: Share 0..1 of the test pictures that are taken for what they are.
        device: Where to compute.
    """

    name = CLASSIFIER
    input_size = None

    def __init__(
        self, network: nn.Sequential, dataset: ImageDataset, test_accuracy: float, device: torch.device
    ) -> None:
        super().__init__(device)
        self.test_accuracy, self.num_test = test_accuracy, len(dataset.test)
        self.checksum = tensors_digest(network.requires_grad_(False).state_dict())
        self._shape = dataset.train.images.shape[1:]
        body, head = network
        self._head = head.cpu()
        self._body = body.to(device).to(memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> Tensor:
        """Features; see `Extractor`.

        Raises:
            DataError: Pictures of another shape than those that it learnt from.
        """
        if images.shape[1:] != self._shape:
            raise DataError(
                f"images: {tuple(images.shape[1:])}, but the classifier learnt from pictures of "
                f"{tuple(self._shape)}; give it pictures of the data set's shape (C, H, W)"
            )
        return super().__call__(images)

    def labels_of(self, images: Tensor) -> Tensor:
        """The most likely class (N,) int64 of uint8 pictures (N, C, H, W)."""
        with torch.no_grad():
            scores: Tensor = self._head(self(images))  # (N, classes)
        return scores.argmax(dim=1)

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self._body(to_float(images).contiguous(memory_format=torch.channels_last))
        return features


def trained_classifier(
    dataset: ImageDataset,
    params: ClassifierParams,
    seed: int,
    device: torch.device,
    cache: Path | None = None,
) -> Classifier:
    """The classifier of a data set: trained on its train pictures, or as it was kept.

    The same pixels, numbers and seed give the same network on the same machine. Processes that want the same
    one wait for the first.

    Args:
        dataset: Pictures (N, C, S, S) of one or three channels, and labels.
        params: The section `evaluate.classifier`.
        seed: Names first weights and the order of the pictures.
        device: Where to compute.
        cache: Folder in which the network is kept.

    Raises:
        DataError: There are fewer train pictures than a batch holds.
        ConfigError: The data set has no two classes.
        TrainingError: The loss is not finite.
    """
    if len(dataset.class_names) < 2:
        raise ConfigError(
            f"evaluate.classifier: {dataset.name} has a single class, there is nothing to tell apart; "
            "set it to null"
        )
    if params.batch_size > len(dataset.train):
        raise DataError(
            f"evaluate.classifier.batch_size: {params.batch_size} exceeds the {len(dataset.train)} train "
            f"pictures of {dataset.name}; lower it"
        )
    channels, side = dataset.train.images.shape[1:3]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, CLASSIFIER).initial_seed())
        network = _network(channels, side, params.width, len(dataset.class_names)).eval()

    def train() -> dict[str, Tensor]:
        _train(network, dataset, params, seed, device)
        labels = Classifier(network, dataset, math.nan, device).labels_of(dataset.test.images)
        right = labels == dataset.test.labels
        state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
        return {**state, _ACCURACY: right.double().mean()}

    state = kept(
        cache,
        CLASSIFIER,
        train,
        subject=("train", "test", "num_classes", "parameters", "seed"),
        train=dataset.train,
        test=dataset.test,
        num_classes=len(dataset.class_names),
        parameters=params,
        seed=seed,
        code=code_of(__name__),
    )
    accuracy = state.pop(_ACCURACY).item()
    network.load_state_dict(state)
    return Classifier(network, dataset, accuracy, device)


def agreement(classifier: Classifier, images: Tensor, asked: Tensor) -> dict[str, float]:
    """How often made pictures are taken for what was asked for: see `share`; nothing where that is not known.

    Args:
        classifier: What takes them for something.
        images: uint8 (N, C, H, W).
        asked: Labels (N,) int64; a negative one is not known and counts for nothing.
    """
    known = asked >= 0
    if not known.any():
        return {}
    right = classifier.labels_of(images[known]) == asked[known]
    return share(right.double().mean().item(), len(right))


def share(value: float, count: int) -> dict[str, float]:
    """``prompt_agreement``, a share 0..1 of so many pictures, and its binomial standard error.

    The error is that of two more pictures of either kind (Agresti and Coull, 1998,
    https://doi.org/10.1080/00031305.1998.10480550): three pictures of three are not sure to be all.
    """
    adjusted = (value * count + 2) / (count + 4)
    error = math.sqrt(adjusted * (1 - adjusted) / (count + 4))
    return {"prompt_agreement": value, "prompt_agreement_se": error}


class _Block(nn.Module):
    """Two convolutions beside a way around them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.around: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels:
            self.around = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.inner(x) + self.around(x)
        return summed.relu_()


def _network(channels: int, side: int, width: int, num_classes: int) -> nn.Sequential:
    """Residual blocks at three resolutions: (B, C, S, S) in [-1, 1] -> (B, 4 * width) -> (B, classes).

    Source: He et al., https://arxiv.org/abs/1512.03385
    """
    stride = 2 ** max(0, int(math.log2(side / _FIRST_SIDE)))
    size, padding = (2 * stride, stride // 2) if stride > 1 else (3, 1)
    body = nn.Sequential(
        nn.Conv2d(channels, width, size, stride, padding, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        _Block(width, width, 1),
        _Block(width, 2 * width, 2),
        _Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(4 * width, num_classes)))


def _train(
    network: nn.Module, dataset: ImageDataset, params: ClassifierParams, seed: int, device: torch.device
) -> None:
    """AdamW with a rate that rises and falls once.

    On CPUs with bfloat16 but without matrix units the backward pass of so small convolutions is 2.5 times
    slower in it (46 ms a step of 128 pictures in float32, 122 in bfloat16): it is for GPUs alone.
    """
    network.train().to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), params.lr, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, params.steps))
    batches = _batches(dataset, params, seed, device)
    precision = "fp32" if device.type == "cpu" else "auto"
    # The same sums in the same order, so that the same numbers give the same network.
    with (
        torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True),
        progress(f"classifier of {dataset.name}", params.steps) as report,
    ):
        for step in range(1, params.steps + 1):
            images, labels = next(batches)
            optimiser.zero_grad()
            with autocast(device, precision):
                scores = network(images)
            loss = cross_entropy(scores.float(), labels)
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % _CHECK_EVERY == 0 or step == params.steps:
                what, remedy = f"classifier: loss at step {step}", "lower evaluate.classifier.lr"
                report(step, f"loss {finite(loss.item(), what, remedy, TrainingError):.4g}")
    network.eval()


def _batches(
    dataset: ImageDataset, params: ClassifierParams, seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures (B, C, S, S) in [-1, 1] and labels (B,) without end, epoch by epoch in other orders."""
    images, labels = dataset.train.images.to(device), dataset.train.labels.to(device)
    for epoch in count(1):
        stream = generator(seed, CLASSIFIER, epoch)
        for indices in epoch_indices(len(labels), params.batch_size, stream, params.horizontal_flip):
            here = type(indices)(*(part.to(device) for part in indices))
            batch = gather_batch(images, here).contiguous(memory_format=torch.channels_last)
            yield batch, labels[here.indices]


def _rate(step: int, steps: int) -> float:
    """Share of the highest learning rate: up in a line, down by half a cosine."""
    rise = max(1, round(_WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1)))
