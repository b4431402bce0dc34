"""Frechet distance against torch-fidelity and torchmetrics: pictures to statistics, and features to distance.

    python benchmarks/frechet.py [--weights FILE.pth] [--images 256] [--device cpu] [--out FILE.json]

All three turn the same pictures into features with the Inception of 2015 and the same features into a
distance, in one process and in turns; medians count. Without weights (--weights or PELAP_INCEPTION_WEIGHTS)
the network has random ones, which take the same time; values are compared either way.
"""

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from harness import Entry, argument_parser, compare, finish, in_turns
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.utils import get_featuresdict_from_dataset
from torchmetrics.image.fid import FrechetInceptionDistance

from pelap.core.digests import sha256
from pelap.evaluation import weights as weights_module
from pelap.evaluation.features import Inception2015
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance
from pelap.evaluation.weights import INCEPTION_WEIGHTS_VARIABLE

BATCH_SIZE = 64  # torch-fidelity's own default
NAMES = ("ours", "torch-fidelity", "torchmetrics")
PACKAGES = ("torch", "torch-fidelity", "torchmetrics")
Run = Callable[[], Any]


class Pictures(torch.utils.data.Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


class First(nn.Module):
    """The first of a network's outputs, as torchmetrics wants it."""

    num_features = 2048

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)[0]
        return features


class AsTheyAre(nn.Module):
    """Features in the place of pictures."""

    num_features = 2048

    def forward(self, features: Tensor) -> Tensor:
        return features


@contextmanager
def weights_file(given: str | None) -> Iterator[tuple[Path, bool]]:
    """A file of weights, and whether it is the published one."""
    if given:
        yield Path(given), True
        return
    original = inspect.unwrap(FeatureExtractorInceptionV3)
    torch.manual_seed(0)
    with mock.patch.object(original, "load_state_dict"), mock.patch("torch.load"):
        state = original("random", ["2048"], feature_extractor_weights_path="none").state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.pth"
        torch.save(state, path)
        yield path, False


def picture_runs(images: Tensor, path: Path, device: torch.device) -> dict[str, Run]:
    """Pictures to mean and covariance, which ours and torchmetrics keep as they go."""
    network = FeatureExtractorInceptionV3("bench", ["2048"], feature_extractor_weights_path=path).to(device)
    extractor = Inception2015(path, device)
    metric = FrechetInceptionDistance(feature=First(network)).to(device)

    def ours() -> Any:
        result = FeatureStatistics.of(extractor(images))
        return result.mean, result.covariance

    def fidelity() -> Any:
        cuda = device.type == "cuda"
        features = get_featuresdict_from_dataset(Pictures(images), network, BATCH_SIZE, cuda, False, False)
        result = fid_features_to_statistics(features["2048"])
        return torch.as_tensor(result["mu"]), torch.as_tensor(result["sigma"])

    def metrics() -> Any:
        metric.reset()
        with torch.no_grad():
            for batch in images.split(BATCH_SIZE):
                metric.update(batch.to(device), real=False)
        mean = metric.fake_features_sum / len(images)
        scatter = metric.fake_features_cov_sum - len(images) * torch.outer(mean, mean)
        return mean.cpu(), scatter.cpu() / (len(images) - 1)

    return dict(zip(NAMES, (ours, fidelity, metrics), strict=True))


def feature_runs(real: Tensor, made: Tensor) -> dict[str, Run]:
    """Features of two sets to their distance."""
    metric = FrechetInceptionDistance(feature=AsTheyAre())

    def ours() -> float:
        return frechet_distance(FeatureStatistics.of(made), FeatureStatistics.of(real))

    def fidelity() -> float:
        both = [fid_features_to_statistics(features) for features in (made, real)]
        return fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]

    def metrics() -> float:
        metric.reset()
        metric.update(made, real=False)
        metric.update(real, real=True)
        return metric.compute().item()

    return dict(zip(NAMES, (ours, fidelity, metrics), strict=True))


def features_like_inceptions(count: int, seed: int) -> Tensor:
    """Rows (count, 2048) float32: not negative, of a falling spectrum, and mixed."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 2048, generator=random) * torch.logspace(0, -1.5, 2048)
    mix = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(99)) / 2048**0.5
    return (rows @ mix * (1 + 0.05 * seed) + 0.4 + 0.02 * seed).clamp(min=0)


def rows(name: str, times: dict[str, list[float]], device: torch.device) -> list[Entry]:
    medians = {who: median(values) for who, values in times.items()}
    return [
        compare(f"{name}, {other}", medians["ours"], medians[other], "s", device, PACKAGES)
        for other in NAMES[1:]
    ]


def main(arguments: Sequence[str] | None = None) -> list[Entry]:
    parser = argument_parser(__doc__, rounds=3)
    parser.add_argument("--weights", default=os.environ.get(INCEPTION_WEIGHTS_VARIABLE))
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=32, help="pixels of a picture's side")
    parser.add_argument("--counts", type=int, nargs="+", default=[3000, 500], help="pictures of a distance")
    args = parser.parse_args(arguments)
    device, entries, checks = args.device, [], {}
    random = torch.Generator().manual_seed(0)
    shape = (args.images, 3, args.side, args.side)
    images = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
    with weights_file(args.weights) as (path, published):
        known = weights_module.INCEPTION_2015_SHA256 if published else sha256(path)
        with mock.patch.object(weights_module, "INCEPTION_2015_SHA256", known):
            runs = picture_runs(images, path, device)
            times, results = in_turns(runs, args.rounds, device, "pictures")
    entries += rows(f"{args.images} pictures to statistics", times, device)
    checks["weights"] = "published" if published else "random"
    checks["largest relative difference of means"] = {
        other: ((results["ours"][0] - results[other][0]).norm() / results[other][0].norm()).item()
        for other in NAMES[1:]
    }
    checks["seconds, pictures"] = times
    for count in args.counts:
        runs = feature_runs(features_like_inceptions(count, 0), features_like_inceptions(count, 1))
        times, results = in_turns(runs, args.rounds, torch.device("cpu"), f"distance of {count}")
        entries += rows(f"distance of {count} pictures of 2048 features", times, torch.device("cpu"))
        checks[f"distance of {count}"] = results
        checks[f"seconds, distance of {count}"] = times
    return finish(entries, checks, args.out)


if __name__ == "__main__":
    main()
