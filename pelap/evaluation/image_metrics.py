"""What was measured of a set of pictures, and by how much two sets differ for certain."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_

import pandas as pd

from pelap.core.paths import REAL_ROW
from pelap.evaluation.frechet import standard_error

DIFFERENCE_COLUMNS = ("model", "against", "metric", "difference", "se")

CERTAIN = 2  # standard errors that a gap must exceed before shares of it are stated


@dataclass(frozen=True)
class ImageMetrics:
    """What was measured of a set of pictures."""

    metrics: dict[str, float]  # by name
    replicates: dict[str, tuple[float, ...]]
    """Of the jackknife of each Frechet distance, by its name, the first extractor's first."""
    notes: tuple[str, ...] = ()  # what has to be said beside them


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
    return pd.DataFrame(table, columns=list(DIFFERENCE_COLUMNS))


def recovered(pruned: ImageMetrics, tuned: ImageMetrics, dense: ImageMetrics, metric: str) -> float | None:
    """Share of what pruning cost in a Frechet distance that fine-tuning brought back; 1 is all of it.

    None where pruning cost nothing that could be told from chance, at twice the standard error.
    """
    cost, error = difference(pruned, dense, metric)
    return difference(pruned, tuned, metric)[0] / cost if cost > CERTAIN * error else None


def shares_recovered(
    figures: Mapping[str, ImageMetrics], tuned_from: Mapping[str, str], dense: str | None
) -> dict[str, dict[str, float]]:
    """What `recovered` says of each row of `tuned_from`, whose values are the pruned ones."""
    result = {}
    for name, pruned in tuned_from.items() if dense else ():
        share = recovered(figures[pruned], figures[name], figures[str(dense)], main_metric(figures))
        if share is not None:
            result[name] = {"recovered": share}
    return result


def with_metrics(
    figures: Mapping[str, ImageMetrics], *tables: Mapping[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """All metrics of each row: its figures, and what each of the tables has of it."""
    return {
        name: reduce(or_, (table.get(name, {}) for table in tables), measured.metrics)
        for name, measured in figures.items()
    }
