"""Frechet distances of made pictures to real ones: what they are taken to, and with which extractors."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pelap.data.dataset import Split
from pelap.errors import DataError
from pelap.evaluation.features import METRIC_NAMES, EffNetLite0, Extractor, Inception2015
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance
from pelap.params import EvaluateParams
from pelap.progress import progress
from pelap.sampling import Source, sample_from

FLOOR = "real"
"""Row of another draw of real train pictures: what no model can be expected to go below."""

CHUNK = 256
"""Pictures whose features are held at once."""


class Reference:
    """Real train pictures that made ones are compared with.

    Args:
        train: The first `num_reference` pictures are the reference, the `num_images` after them the floor.
        params: The section `evaluate`.
        device: Where features are computed.

    Raises:
        DataError: There are fewer pictures than that.
    """

    def __init__(self, train: Split, params: EvaluateParams, device: torch.device) -> None:
        wanted = params.num_reference + params.num_images
        if wanted > len(train):
            raise DataError(
                f"evaluate: num_reference + num_images is {wanted}, but there are {len(train)} train "
                "pictures to take the reference and the floor from; lower one of them"
            )
        self.params = params
        self.device = device
        self.floor = train.images[params.num_reference : wanted]  # (num_images, 3, H, W) uint8
        self._images = train.images[: params.num_reference]

    @cached_property
    def extractors(self) -> list[Extractor]:
        """The packaged one, and the Inception where weights are given."""
        extractors: list[Extractor] = [EffNetLite0(self.device)]
        if self.params.inception_weights is not None:
            extractors.append(Inception2015(Path(self.params.inception_weights), self.device))
        return extractors

    @cached_property
    def _statistics(self) -> list[FeatureStatistics]:
        return [_statistics(extractor, self._images) for extractor in self.extractors]

    def distances(self, images: torch.Tensor) -> dict[str, float]:
        """Frechet distance of pictures (N, 3, H, W) uint8, by the metric's name."""
        return {
            METRIC_NAMES[extractor.name]: frechet_distance(_statistics(extractor, images), statistics)
            for extractor, statistics in zip(self.extractors, self._statistics, strict=True)
        }

    def describe(self) -> dict[str, Any]:
        """What distances are taken to and with, as a JSON object."""
        return {
            "reference_split": "train",
            "num_reference": self.params.num_reference,
            "num_images": self.params.num_images,
            "extractors": {
                e.name: {"input_size": e.input_size, "sha256": e.checksum} for e in self.extractors
            },
        }


def measure_distances(
    sources: Mapping[str, Source],
    reference: Reference,
    seed: int,
    show: Callable[[str, torch.Tensor], None] = lambda name, images: None,
) -> dict[str, dict[str, float]]:
    """Distances of every source's samples, and of the floor, by name.

    Args:
        sources: What makes pictures, by name.
        reference: What they are compared with; its parameters say how many are made.
        seed: Names the noise.
        show: Called with every name and its pictures (num_images, 3, H, W) uint8.
    """
    params, result = reference.params, {}
    _ = reference.extractors  # weights that cannot be read are told of before an hour of sampling
    with progress("evaluate samples", len(sources) + 1) as report:
        for done, name in enumerate([*sources, FLOOR], start=1):
            images = (
                reference.floor
                if name == FLOOR
                else sample_from(sources[name], params.num_images, seed, params.batch_size)
            )
            show(name, images)
            result[name] = reference.distances(images)
            report(done, name)
    return result


def _statistics(extractor: Extractor, images: torch.Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics()
    for chunk in images.split(CHUNK):
        statistics.update(extractor(chunk))
    return statistics
