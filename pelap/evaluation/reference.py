"""What made pictures are compared with, every figure of the comparison, and by how much two sets differ."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from pelap.core.errors import ConfigError, DataError
from pelap.core.keys import code_of
from pelap.core.paths import REAL_ROW
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
from pelap.evaluation.one_by_one import NUM_NEIGHBOURS, NUM_SUBSETS, SUBSET_SIZE, coverage, kid, radii
from pelap.evaluation.weights import kept

NUM_KEPT = 10_000  # pictures of a set, drawn at random, whose features are compared one by one
_CHUNK = 1000  # pictures that an extractor is given at once
CERTAIN = 2  # standard errors that a gap must exceed before shares of it are stated


@dataclass(frozen=True)
class ImageMetrics:
    """What was measured of a set of pictures."""

    metrics: dict[str, float]  # by name
    replicates: dict[str, tuple[float, ...]]
    """Of the jackknife of each Frechet distance, by its name, the first extractor's first."""
    notes: tuple[str, ...] = ()  # what has to be said beside them


@dataclass(frozen=True)
class _Side:
    """What is known of the reference by one extractor."""

    statistics: FeatureStatistics  # of all pictures
    features: Tensor  # of those that are kept (n, num_features) float32

    @cached_property
    def radii(self) -> Tensor:
        return radii(self.features)


# What compares pictures one by one, from features (N, num_features) to figures by name.
ONE_BY_ONE: tuple[Callable[[Tensor, _Side], dict[str, float]], ...] = (
    lambda features, real: kid(features, real.features),
    lambda features, real: coverage(features, real.features, real.radii),
)


class Reference:
    """Real pictures that others are compared with.

    Args:
        images: uint8 pictures (N, C, H, W), C 3 or 1, N at least 2.
        extractors: What turns pictures into features.
        cache: Folder to keep what is computed of `images`; None keeps it in memory alone.

    Raises:
        DataError: Not such pictures.
        ConfigError: Two extractors whose figures would have the same name.
    """

    def __init__(self, images: Tensor, extractors: Sequence[Extractor], cache: Path | None = None) -> None:
        _check(images)
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
    def _sides(self) -> list[_Side]:
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
            Of each extractor the Frechet distance, its standard error (of more than two pictures), the part
            of it that is a shift of the means, and unless `only_frechet` the metrics of `ONE_BY_ONE`, of at
            most `NUM_KEPT` pictures of either side. See `metric_name` for names.

        Raises:
            DataError: Other pictures than these, or features that are no numbers.
        """
        _check(images)
        if images.shape[1:] != self._images.shape[1:]:
            raise DataError(
                f"images: {_shape(images)}, but the reference has {_shape(self._images)}; "
                "compare pictures of one size, made from the data set that the model was trained on"
            )
        figures = ImageMetrics({}, {})
        for extractor, side in zip(self._extractors, self._sides, strict=True):
            name = metric_name("fd", extractor.name)
            features = _features(extractor, images)
            statistics = FeatureStatistics.of(features)
            figures.metrics[name] = frechet_distance(statistics, side.statistics)
            shift = mean_distance(statistics, side.statistics)
            figures.metrics[metric_name("shift", extractor.name)] = shift
            replicates = figures.replicates[name] = jackknife(features, side.statistics, strata)
            if len(replicates) > 1:
                figures.metrics[f"{name}_se"] = standard_error(replicates)
            drawn = features[_drawn(len(features))]
            for metric in () if only_frechet else ONE_BY_ONE:
                values = metric(drawn, side).items()
                figures.metrics.update({metric_name(key, extractor.name): value for key, value in values})
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
        """What has to be said beside figures of `num_images` pictures."""
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

    def _side(self, extractor: Extractor) -> _Side:
        def compute() -> dict[str, Tensor]:
            features = _features(extractor, self._images)
            statistics = FeatureStatistics.of(features)
            return {
                "mean": statistics.mean,
                "covariance": statistics.covariance,
                "features": features[_drawn(len(features))],
            }

        tensors = kept(
            self._cache,
            metric_name("fd", extractor.name),
            compute,
            subject=("pictures", "extractor"),
            pictures=self._images,
            extractor=extractor.name,
            weights=extractor.checksum,
            input_size=extractor.input_size,
            kept=NUM_KEPT,
            code=[code_of(__name__), code_of(type(extractor).__module__)],
        )
        # From the covariance where nothing was kept, too: figures are the same to the last digit.
        statistics = FeatureStatistics(len(self._images), tensors["mean"], tensors["covariance"])
        return _Side(statistics, tensors["features"])


def _check(images: Tensor) -> None:
    check_images(images)
    if len(images) < 2:
        raise DataError("images: a single picture has no distance to a set; give at least 2")


def _shape(images: Tensor) -> str:
    channels, height, width = images.shape[1:]
    return f"{height}x{width} pixels" + " of one channel" * (channels == 1)


def _features(extractor: Extractor, images: Tensor) -> Tensor:
    return torch.cat([extractor(chunk) for chunk in images.split(_CHUNK)])


def _drawn(num: int) -> Tensor:
    """Which of `num` pictures are compared one by one, (num,) bool; the same at every call.

    At random: the first ones of a sorted list are of the first classes.
    """
    return torch.randperm(num, generator=generator(0, "one by one")) < NUM_KEPT


def main_metric(figures: Mapping[str, ImageMetrics]) -> str:
    """The Frechet distance of the first extractor, by its name."""
    return next(iter(figures[REAL_ROW].replicates))


def difference(one: ImageMetrics, other: ImageMetrics, metric: str) -> tuple[float, float]:
    """How much larger a Frechet distance is, and the standard error of that.

    Both are of pictures from the same noise, whose chances are the same in part: they are taken away
    together, group by group of the jackknife.
    """
    pairs = zip(one.replicates[metric], other.replicates[metric], strict=True)
    error = standard_error([mine - theirs for mine, theirs in pairs])
    return one.metrics[metric] - other.metrics[metric], error


def differences(
    figures: Mapping[str, ImageMetrics], rows: Collection[str], against: Collection[str]
) -> pd.DataFrame:
    """The first Frechet distance of each of `rows`, less that of each of `against` other than itself."""
    metric = main_metric(figures)
    table = [
        (row, other, metric, *difference(figures[row], figures[other], metric))
        for row in rows
        for other in against
        if row != other
    ]
    return pd.DataFrame(table, columns=["model", "against", "metric", "difference", "se"])


def shares_recovered(
    figures: Mapping[str, ImageMetrics], tuned_from: Mapping[str, str], dense: str | None, control: str | None
) -> dict[str, dict[str, float]]:
    """Of each row of `tuned_from`, by name, the share of what pruning cost that fine-tuning brought back.

    That is of the first Frechet distance; 1 is all of it. Left out where pruning cost nothing that could be
    told from chance.

    Args:
        figures: Of all rows.
        tuned_from: The pruned rows that they were trained from.
        dense: What the cost is against, for ``recovered``; None: nothing was pruned.
        control: The dense network trained as long, for ``recovered_as_long``.

    Returns:
        Both shares and their standard errors (``_se``): the jackknife's of the ratio, of these pictures.
    """
    result: dict[str, dict[str, float]] = {name: {} for name in tuned_from}
    against = {"recovered": dense, "recovered_as_long": control}
    for name, pruned in tuned_from.items():
        for key, other in against.items():
            if other is not None:
                whole = figures[other]
                result[name] |= _share(key, figures[pruned], figures[name], whole, main_metric(figures))
    return {name: shares for name, shares in result.items() if shares}


def _share(
    key: str, pruned: ImageMetrics, tuned: ImageMetrics, whole: ImageMetrics, metric: str
) -> dict[str, float]:
    cost, error = difference(pruned, whole, metric)
    if not cost > CERTAIN * error:
        return {}
    triples = zip(*(each.replicates[metric] for each in (pruned, tuned, whole)), strict=True)
    shares = [(before - after) / (before - dense) for before, after, dense in triples if before != dense]
    share = difference(pruned, tuned, metric)[0] / cost
    return {key: share, f"{key}_se": standard_error(shares)}


def with_metrics(
    figures: Mapping[str, ImageMetrics], *tables: Mapping[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """All metrics of each row: its figures, and what each of the tables has of it."""
    return {
        name: reduce(or_, (table.get(name, {}) for table in tables), measured.metrics)
        for name, measured in figures.items()
    }
