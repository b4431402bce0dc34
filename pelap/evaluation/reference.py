"""What made pictures are compared with, and every figure of the comparison."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelap.core.errors import ConfigError, DataError
from pelap.core.files import load_tensors, save_tensors
from pelap.core.keys import Key, code_of, key
from pelap.core.rng import generator
from pelap.data.dataset import all_equal
from pelap.evaluation.features import Extractor, check_images, metric_name
from pelap.evaluation.frechet import (
    NUM_GROUPS,
    FeatureStatistics,
    frechet_distance,
    jackknife,
    mean_distance,
    standard_error,
)
from pelap.evaluation.kid import NUM_SUBSETS, SUBSET_SIZE, kid
from pelap.evaluation.prdc import NUM_NEIGHBOURS, coverage, radii

REAL_ROW = "real"
"""Row of another draw of real pictures: what no model can be expected to go below."""

NUM_KEPT = 10_000
"""Pictures of a set, drawn at random, whose features are kept for what compares pictures one by one."""

_CHUNK = 1000
"""Pictures that an extractor is given at once."""


@dataclass(frozen=True)
class ImageMetrics:
    """What was measured of a set of pictures."""

    metrics: dict[str, float]
    """By name."""
    replicates: dict[str, tuple[float, ...]]
    """Of the jackknife of each Frechet distance, by its name, the first extractor's first."""
    notes: tuple[str, ...] = ()
    """What has to be said beside them."""


class Reference:
    """Real pictures that others are compared with.

    Args:
        images: uint8 pictures (N, C, H, W), C 3 or 1, N at least 2.
        extractors: What turns pictures into features.
        cache: Folder for what is computed of `images`, shared by everything that compares with the same
            pictures; None keeps it in memory alone.

    Raises:
        DataError: Not such pictures.
        ConfigError: Two extractors whose figures would have the same name.
    """

    def __init__(self, images: Tensor, extractors: Sequence[Extractor], cache: Path | None = None) -> None:
        check_images(images)
        _demand_two(images)
        if all_equal(images):
            raise DataError(f"reference: all {len(images)} pictures are the same; give those of a data set")
        names = [metric_name("fd", extractor.name) for extractor in extractors]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"extractors: two of them would both give {', '.join(twice)}; rename one")
        self._images = images
        self._extractors = tuple(extractors)
        self._cache = cache

    @cached_property
    def _sides(self) -> list["_Side"]:
        """One an extractor, in their order; computed or read when first asked for."""
        return [self._side(extractor) for extractor in self._extractors]

    def measure(
        self, images: Tensor, only_frechet: bool = False, strata: Tensor | None = None
    ) -> ImageMetrics:
        """Every figure of a set of pictures.

        Args:
            images: uint8 pictures (N, C, H, W) of the reference's channels and size, N at least 2.
            only_frechet: Leave out what compares pictures one by one.
            strata: What each picture is of (N,), where each has its share by design: classes or prompts that
                were asked for in turn. It makes the standard errors those of such pictures.

        Returns:
            Of each extractor the Frechet distance, its standard error (left out where there are two
            pictures alone) and the part of it that is a shift of the means, and unless `only_frechet` the
            kernel distance and its deviation, precision,
            recall, density and coverage of at most `NUM_KEPT` pictures of either side, drawn at random, the
            same at every call. See `metric_name` for names.

        Raises:
            DataError: Other pictures than these, or features that are no numbers.
        """
        self._check(images)
        figures = ImageMetrics({}, {})
        for extractor, side in zip(self._extractors, self._sides, strict=True):
            name = metric_name("fd", extractor.name)
            features = torch.cat([extractor(chunk) for chunk in images.split(_CHUNK)])
            statistics = FeatureStatistics.of(features)
            figures.metrics[name] = frechet_distance(statistics, side.statistics)
            shift = mean_distance(statistics, side.statistics)
            figures.metrics[metric_name("shift", extractor.name)] = shift
            replicates = figures.replicates[name] = jackknife(features, side.statistics, strata)
            if len(replicates) > 1:
                figures.metrics[f"{name}_se"] = standard_error(replicates)
            if not only_frechet:
                figures.metrics.update(_one_by_one(features[_drawn(len(features))], side, extractor.name))
        return figures

    def describe(self, num_images: int) -> dict[str, Any]:
        """What figures of `num_images` pictures are measured with, as a JSON object."""
        fewest = min(num_images, len(self._images), NUM_KEPT)
        return {
            "num_images": num_images,
            "num_reference": len(self._images),
            "extractors": {
                extractor.name: {
                    "metric": metric_name("fd", extractor.name),
                    "input_size": extractor.input_size,
                    "num_features": side.features.shape[1],
                    "sha256": extractor.checksum,
                }
                for extractor, side in zip(self._extractors, self._sides, strict=True)
            },
            "kid_subsets": NUM_SUBSETS,
            "kid_subset_size": min(fewest, SUBSET_SIZE),
            "neighbours": min(fewest - 1, NUM_NEIGHBOURS),
            "most_compared_one_by_one": NUM_KEPT,
            "jackknife_groups": NUM_GROUPS,
        }

    def notes(self, num_images: int) -> list[str]:
        """What has to be said beside figures of `num_images` pictures; a line each, often none."""
        num_reference, lines = len(self._images), []
        for extractor, side in zip(self._extractors, self._sides, strict=True):
            name, width = metric_name("fd", extractor.name), side.features.shape[1]
            if min(num_images, num_reference) <= width:
                lines.append(
                    f"{name}: {num_images} pictures and {num_reference} reference pictures for {width} "
                    "features: a covariance has not full rank and the distance lies above that of more "
                    "pictures; compare it only among sets of these numbers"
                )
        if min(num_images, num_reference) <= SUBSET_SIZE:
            lines.append(
                f"KID: a subset of {SUBSET_SIZE} holds all of the smaller side, so that its deviation says "
                "nothing of that side"
            )
        sides = {"pictures": num_images, "reference pictures": num_reference}
        drawn = [f"{NUM_KEPT} of {num} {noun}" for noun, num in sides.items() if num > NUM_KEPT]
        if drawn:
            lines.append(
                f"KID, precision, recall, density, coverage: of {' and '.join(drawn)}, drawn at random"
            )
        return lines

    def _side(self, extractor: Extractor) -> "_Side":
        if self._cache is None:
            return _compute(extractor, self._images)
        made_of = key(
            pictures=self._images,
            extractor=extractor.name,
            weights=extractor.checksum,
            input_size=extractor.input_size,
            kept=NUM_KEPT,
            code=[code_of(__name__), code_of(type(extractor).__module__)],
        )
        stem = metric_name("fd", extractor.name)
        path = self._cache / f"{stem}-{made_of.name}.safetensors"
        side = _read(path, made_of, len(self._images))
        if side is None:
            _say_anew(self._cache, stem, made_of)
            side = _compute(extractor, self._images)
            _write(path, side, made_of)
        return side

    def _check(self, images: Tensor) -> None:
        check_images(images)
        _demand_two(images)
        if images.shape[1:] != self._images.shape[1:]:
            raise DataError(
                f"images: {_shape(images)}, but the reference has {_shape(self._images)}; "
                "compare pictures of one size, made from the data set that the model was trained on"
            )


def _shape(images: Tensor) -> str:
    channels, height, width = images.shape[1:]
    return f"{height}x{width} pixels" + " of one channel" * (channels == 1)


class _Side:
    """What is known of the reference by one extractor."""

    def __init__(self, statistics: FeatureStatistics, features: Tensor) -> None:
        self.statistics = statistics
        """Of all pictures."""
        self.features = features
        """Of those that are kept (n, num_features) float32."""

    @cached_property
    def radii(self) -> Tensor:
        return radii(self.features)


def _drawn(num: int) -> Tensor:
    """Which of `num` pictures are compared one by one, (num,) bool; the same at every call.

    At random: the first ones of a sorted list are of the first classes.
    """
    return torch.randperm(num, generator=generator(0, "one by one")) < NUM_KEPT


def _compute(extractor: Extractor, images: Tensor) -> _Side:
    statistics, kept = FeatureStatistics(), []
    for chunk, drawn in zip(images.split(_CHUNK), _drawn(len(images)).split(_CHUNK), strict=True):
        features = extractor(chunk)
        statistics.update(features)
        kept.append(features[drawn])
    # As it is read from a file, so that a cached reference gives the same figures to the last digit.
    moments = (statistics.count, statistics.mean, statistics.covariance)
    return _Side(FeatureStatistics.from_moments(*moments), torch.cat(kept))


def _one_by_one(features: Tensor, side: _Side, extractor: str) -> dict[str, float]:
    mean, std = kid(features, side.features)
    values = {"kid": mean, "kid_std": std, **coverage(features, side.features, side.radii)}
    return {metric_name(quantity, extractor): value for quantity, value in values.items()}


def _say_anew(cache: Path, stem: str, made_of: Key) -> None:
    """Where features of the same pictures are kept that are no longer right, in a line why."""
    for path in sorted(cache.glob(f"{stem}-*.safetensors")):
        with suppress(DataError):
            differing = made_of.differences(load_tensors(path)[1])
            if "pictures" not in differing and "extractor" not in differing:
                others = ", ".join(differing)
                print(f"{stem}: features anew; those kept are of other {others} ({path})", file=sys.stderr)


def _write(path: Path, side: _Side, made_of: Key) -> None:
    tensors = {
        "mean": side.statistics.mean,
        "covariance": side.statistics.covariance,
        "features": side.features,
    }
    save_tensors(path, tensors, dict(made_of.parts))


def _read(path: Path, made_of: Key, count: int) -> _Side | None:
    """What `_write` wrote of the same; None where there is nothing or anything else."""
    try:
        tensors, metadata = load_tensors(path)
    except DataError:
        return None
    if metadata != made_of.parts or not _fit(tensors, count):
        return None
    statistics = FeatureStatistics.from_moments(count, tensors["mean"], tensors["covariance"])
    return _Side(statistics, tensors["features"])


def _fit(tensors: Mapping[str, Tensor], count: int) -> bool:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    width = shapes.get("mean", (0,))[0]
    wanted = {
        "mean": (width,),
        "covariance": (width, width),
        "features": (min(count, NUM_KEPT), width),
    }
    return shapes == wanted and all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def _demand_two(images: Tensor) -> None:
    if len(images) < 2:
        raise DataError("images: a single picture has no distance to a set; give at least 2")
