"""Frechet distance between two sets of features: features -> statistics -> distance."""

import torch
from torch import Tensor

from pelap.errors import DataError


class FeatureStatistics:
    """Mean and covariance of features that arrive in batches, in float64 on the CPU.

    Batches are merged by their means and centred scatter (Chan, Golub and LeVeque, 1979), which loses no
    digits when features are far from zero, unlike sums of squares.
    """

    def __init__(self) -> None:
        self.count = 0
        """Pictures seen."""
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add a batch.

        Args:
            features: One row a picture (N, num_features), of any float type on any device.

        Raises:
            DataError: Not a table of rows as wide as before, or NaN or infinite features.
        """
        self._check(features)
        batch = features.detach().cpu().double()  # (N, D)
        if self.count == 0:
            self._mean, self._scatter = (
                batch.new_zeros(batch.shape[1]),
                batch.new_zeros(*[batch.shape[1]] * 2),
            )
        total = self.count + len(batch)
        batch_mean = batch.mean(dim=0)
        centred, shift = batch - batch_mean, batch_mean - self._mean
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(batch) / total)
        self._mean += shift * (len(batch) / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Mean (num_features,).

        Raises:
            DataError: Fewer than two pictures.
        """
        self._demand_two()
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (num_features, num_features).

        Raises:
            DataError: Fewer than two pictures.
        """
        self._demand_two()
        return self._scatter / (self.count - 1)

    def _demand_two(self) -> None:
        if self.count < 2:
            raise DataError(f"features of {self.count} pictures have no covariance; give at least 2")

    def _check(self, features: Tensor) -> None:
        if features.ndim != 2 or not features.numel():
            raise DataError(f"features: expected rows (N, num_features), not shape {tuple(features.shape)}")
        if self.count and features.shape[1] != len(self._mean):
            raise DataError(
                f"features: {features.shape[1]} a picture, {len(self._mean)} before; use one extractor"
            )
        broken = int((~features.isfinite()).any(dim=1).sum())
        if broken:
            raise DataError(
                f"features: NaN or infinite for {broken} of {len(features)} pictures; "
                "the model that made them has diverged, train it again with a smaller lr"
            )


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet distance of two Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

    With A = F F' and B = G G' the trace of the root is the sum of the singular values of F'G. Nothing is
    squared and rooted again, so that covariances of deficient rank (fewer pictures than features) cost
    no digits: the error relative to the exact value is about 1e-14, where the usual ways have 1e-8.

    Returns:
        A number at least 0; what rounding leaves below is 0.

    Raises:
        DataError: Fewer than two pictures on a side, or features of different extractors.

    Source: Dowson and Landau, 1982; Heusel et al., https://arxiv.org/abs/1706.08500
    """
    if a.mean.shape != b.mean.shape:
        raise DataError(
            f"features: {len(a.mean)} against {len(b.mean)} a picture; use one extractor for both"
        )
    cov_a, cov_b = a.covariance, b.covariance
    cross = torch.linalg.svdvals(_factor(cov_a).T @ _factor(cov_b)).sum()
    distance: float = ((a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()
    return max(0.0, distance)


def _factor(covariance: Tensor) -> Tensor:
    """F of shape (D, rank) with covariance = F F'."""
    values, vectors = torch.linalg.eigh(covariance)
    # What is below is rounding (the threshold of a matrix's rank), and half of it is negative.
    threshold = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    kept = values > threshold
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor
