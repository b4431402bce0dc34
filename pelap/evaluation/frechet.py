"""Frechet distance between two sets of features, features -> statistics -> distance, and its error."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pelap.core.errors import DataError, finite
from pelap.core.rng import generator

NUM_GROUPS = 10  # groups of the jackknife
_TOLERANCE = 1e-7  # relative error that the quick way may have at worst; what it has is far less


class FeatureStatistics:
    """Number, mean and covariance of features, in float64 on the CPU.

    The covariance, unbiased, or a factor F (num_features, at most that) of it, covariance = F F', is given.
    Where there are no more pictures than features the centred rows are such a factor: they take less room,
    and nothing is squared and rooted again.
    """

    def __init__(
        self, count: int, mean: Tensor, covariance: Tensor | None = None, factor: Tensor | None = None
    ) -> None:
        if count < 2:
            raise DataError(f"features of {count} pictures have no covariance; give at least 2")
        self.count, self.mean = count, mean
        self._covariance, self._factor = covariance, factor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of rows (N, num_features), of any float type on any device.

        Raises:
            DataError: Not a table of at least two rows, or NaN or infinite features.
        """
        if features.ndim != 2 or not features.numel():
            raise DataError(f"features: expected rows (N, num_features), not shape {tuple(features.shape)}")
        finite(features, "features", "look at the weights of the extractor that made them", DataError)
        rows = features.detach().to("cpu", torch.float64, copy=True)  # (N, D)
        count, mean = len(rows), rows.mean(dim=0)
        rows -= mean  # before they are squared, which loses no digits when features are far from zero
        if count <= rows.shape[1]:
            return cls(count, mean, factor=rows.T / math.sqrt(max(1, count - 1)))
        return cls(count, mean, rows.T @ rows / (count - 1))

    def without(self, features: Tensor) -> "FeatureStatistics":
        """Statistics of the others, where `features` (N, num_features) are some of the rows given here."""
        part = features.double()
        num_left = self.count - len(part)
        mean = part.mean(dim=0)
        centred, shift = part - mean, mean - self.mean
        # No digits are lost: the scatter of a part is never larger than that of the whole.
        scatter = self.covariance * (self.count - 1) - centred.T @ centred
        scatter -= torch.outer(shift, shift) * (self.count * len(part) / num_left)
        left = self.mean - shift * (len(part) / num_left)
        return FeatureStatistics(num_left, left, scatter / (num_left - 1))

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (num_features, num_features)."""
        return self.factor @ self.factor.T if self._covariance is None else self._covariance

    @property
    def variance(self) -> float:
        """Trace of the covariance."""
        if self._covariance is None:
            return self.factor.square().sum().item()
        return self._covariance.trace().item()

    @property
    def factor(self) -> Tensor:
        """F of shape (num_features, at most that) with covariance = F F'; computed once."""
        if self._factor is None:
            self._factor = _factor(self.covariance)
        return self._factor


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet distance of two Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

    With A = F F' and B = G G' the trace of the root is the sum of the singular values of F'G. Nothing is
    squared and rooted again, so that covariances of deficient rank (fewer pictures than features) cost
    no digits: the error is about 1e-14 of the traces, where the usual ways have 1e-8.

    At full rank the roots of the eigenvalues of G'AG are four times as fast. A bound of their error is
    computed with them, and they are taken only where it is below 1e-7 of the distance.

    The factor of `b` is computed once and kept: let it be the reference. What rounding leaves below 0 is 0.

    Raises:
        DataError: Features of different extractors.

    Source: Dowson and Landau, 1982; Heusel et al., https://arxiv.org/abs/1706.08500
    """
    if a.mean.shape != b.mean.shape:
        raise DataError(
            f"features: {len(a.mean)} against {len(b.mean)} a picture; use one extractor for both"
        )
    apart = mean_distance(a, b) + a.variance + b.variance
    if a.count > len(a.mean) and b.factor.shape[1] == len(b.mean):
        root, error = _root_trace_by_squares(a, b)
        if 2 * error < _TOLERANCE * (apart - 2 * root):
            return apart - 2 * root
    return max(0.0, apart - 2 * _root_trace(a, b))


def mean_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2: the part of the Frechet distance that a shift makes; the rest is a matter of spread."""
    return float((a.mean - b.mean).square().sum())


def _root_trace(a: FeatureStatistics, b: FeatureStatistics) -> float:
    values: Tensor = torch.linalg.svdvals(a.factor.T @ b.factor)
    return values.sum().item()


def _root_trace_by_squares(a: FeatureStatistics, b: FeatureStatistics) -> tuple[float, float]:
    """The same from the squares of the singular values, and a bound of its error."""
    covariance, factor = a.covariance, b.factor
    values = torch.linalg.eigvalsh(factor.T @ covariance @ factor).clamp(min=0)
    size = torch.linalg.matrix_norm(covariance) * torch.linalg.matrix_norm(factor).square()
    noise = 4 * torch.finfo(values.dtype).eps * size  # of a square
    roots = values.sqrt()
    return roots.sum().item(), (noise / roots.clamp(min=noise.sqrt())).sum().item()


def _factor(covariance: Tensor) -> Tensor:
    """F of shape (D, rank) with covariance = F F'."""
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        values, vectors = torch.linalg.eigh(covariance)
        # What is below is rounding (the threshold of a matrix's rank), and half of it is negative.
        kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
        factor = vectors[:, kept] * values[kept].sqrt()
    return factor


def random_groups(num: int, strata: Tensor | None = None) -> Tensor:
    """The jackknife's group of each of `num` pictures, (num,) int64: one of min(num, NUM_GROUPS).

    Drawn at random, as the order of pictures may be that of their classes; the same at every call, so that
    two models' pictures made from the same noise are in the same groups.

    `strata` is what each is of (num,), where each has its share by design, such as classes that were asked
    for in turn: groups then differ by no share of chance that the pictures do not have. Sizes of groups, and
    the numbers of a stratum's pictures in them, differ by at most one.
    """
    stream = generator(0, "jackknife")
    shuffled = torch.randperm(num, generator=stream)
    if strata is not None:
        _, stratum = strata.unique(return_inverse=True)
        # In random order too: that of prompts may have a period, as that of classes has.
        place = torch.randperm(int(stratum.max()) + 1, generator=stream)[stratum]
        shuffled = shuffled[place[shuffled].argsort(stable=True)]
    groups = torch.empty(num, dtype=torch.int64)
    groups[shuffled] = torch.arange(num) % NUM_GROUPS
    return groups


def jackknife(
    features: Tensor, reference: FeatureStatistics, strata: Tensor | None = None
) -> tuple[float, ...]:
    """Frechet distance to `reference` with one group of the pictures left out after the other.

    The standard error that they give is that of drawing these pictures; the reference is taken as it is,
    as it is the same for all models.

    Why not the bootstrap: of n pictures drawn with replacement about 0.63 n are different. Their
    covariance has a lower rank and their distance lies higher, by far more than its own spread where
    there are fewer pictures than features. Leaving a group out repeats nothing, and raises all
    replicates by the same small amount, which falls out of their spread.

    Args:
        features: One row a picture (N, num_features).
        reference: The other set.
        strata: See `random_groups`, which draws the groups.

    Returns:
        A distance a group, min(N, NUM_GROUPS) of them; none where a single picture would be left.

    Source: Shao and Wu, 1989, https://doi.org/10.1214/aos/1176347263
    """
    if len(features) < 3:
        return ()
    groups = random_groups(len(features), strata)
    whole = FeatureStatistics.of(features)
    distances = []
    for group in range(min(len(features), NUM_GROUPS)):
        left, out = features[groups != group], features[groups == group]
        # Few rows are their own factor; of many the moments are quicker.
        few = len(left) <= features.shape[1]
        rest = FeatureStatistics.of(left) if few else whole.without(out)
        distances.append(frechet_distance(rest, reference))
    return tuple(distances)


def standard_error(replicates: Sequence[float]) -> float:
    """Standard error from the replicates of a delete-a-group jackknife; NaN for fewer than two of them.

    The error of a difference between two models whose pictures come from the same noise is that of the
    differences of their replicates, group by group: what chance they share falls out.
    """
    groups = len(replicates)
    if groups < 2:
        return math.nan
    centre = math.fsum(replicates) / groups
    return math.sqrt((groups - 1) / groups * math.fsum((value - centre) ** 2 for value in replicates))
