"""What compares pictures one by one: the kernel distance, and measures of fidelity and of diversity."""

import torch
from torch import Tensor

from pelap.core.errors import DataError

NUM_SUBSETS = 50
SUBSET_SIZE = 500  # pictures of each side in a subset; all of them where a side has fewer
NUM_NEIGHBOURS = 5  # whose distance is the radius around a picture; the last there is where fewer are

_CHUNK = 1024
_ROUNDING = 1e-10
"""Squared distances are equal where they differ by no more than this share of the squared lengths of the
rows, less their mean. What products in float64 lose is far less."""
_LAST_DIGITS = 8
"""And by this many times what the last digit of the rows as they are makes of their squared lengths: a
network gives equal pictures of two batches rows that differ in it, which is much where all rows are close."""


def kid(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Squared maximum mean discrepancy, unbiased, with the kernel (x.y / num_features + 1)^3.

    Of features (N, num_features) and (M, num_features); fewer than two on a side are a `DataError`.

    Returns:
        ``kid`` and ``kid_std``, mean and standard deviation over `NUM_SUBSETS` random subsets, the same at
        every call: around 0 for sets of one distribution, and no standard error of the mean.

    Source: Binkowski et al., https://arxiv.org/abs/1801.01401
    """
    from torch_fidelity import metric_kid

    size = min(len(features), len(reference), SUBSET_SIZE)
    if size < 2:
        raise DataError(f"features of {size} pictures have no kernel distance; give at least 2")
    # In float64: float32 leaves about four digits of a small difference of large sums.
    values = metric_kid.kid_features_to_metric(
        features.to("cpu", torch.float64),
        reference.to("cpu", torch.float64),
        kid_subsets=NUM_SUBSETS,
        kid_subset_size=size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1,
        rng_seed=0,
        verbose=False,
    )
    return {"kid": values[metric_kid.KEY_METRIC_KID_MEAN], "kid_std": values[metric_kid.KEY_METRIC_KID_STD]}


def coverage(features: Tensor, reference: Tensor, reference_radii: Tensor | None = None) -> dict[str, float]:
    """Precision, recall, density and coverage.

    A picture's ball reaches to its `NUM_NEIGHBOURS`-th nearest neighbour in its own set, and what lies on its
    edge is inside. So is an equal picture, even of a ball that has no size because many are equal.

    Args:
        features: Of made pictures (N, num_features); fewer than two on a side are a `DataError`.
        reference: Of real pictures (M, num_features).
        reference_radii: `radii(reference)` (M,), where it is known.

    Returns:
        ``precision``: share of made pictures in a ball of a real one. ``recall``: share of real pictures
        in a ball of a made one. ``density``: balls of real pictures that a made one lies in, over
        `NUM_NEIGHBOURS` (or fewer, where there are fewer), on average; may be above 1. ``coverage``: share
        of real pictures with a made one in their ball.

    Source: Kynkaanniemi et al., https://arxiv.org/abs/1904.06991; Naeem et al.,
    https://arxiv.org/abs/2002.09797
    """
    made, real = features.cpu(), reference.cpu()
    made_radii, real_radii = radii(made), radii(real) if reference_radii is None else reference_radii
    num_balls = []  # of real pictures, around each made one
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    for chunk, chunk_radii in zip(made.split(_CHUNK), made_radii.split(_CHUNK), strict=True):
        squares, rounding = _squared_distances(chunk, real)  # (n, M)
        inside = squares <= real_radii.square() + rounding
        num_balls.append(inside.sum(dim=1))
        covered |= inside.any(dim=0)
        recalled |= (squares <= chunk_radii.square()[:, None] + rounding).any(dim=0)
    balls = torch.cat(num_balls).double()
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": balls.mean().item() / _neighbours(len(real)),
        "coverage": covered.double().mean().item(),
    }


def radii(features: Tensor) -> Tensor:
    """Distance (N,) float64 from each of two rows or more to its `NUM_NEIGHBOURS`-th nearest other one."""
    if len(features) < 2:
        raise DataError(f"features of {len(features)} pictures have no neighbours; give at least 2")
    rows = features.cpu()
    nearest = _neighbours(len(rows)) + 1  # the nearest is the row itself
    chunks = [_squared_distances(chunk, rows)[0] for chunk in rows.split(_CHUNK)]
    return torch.cat([squares.kthvalue(nearest).values for squares in chunks]).sqrt()


def _squared_distances(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Of every row of one (n, D) to every row of the other (M, D), and their rounding, (n, M) float64.

    By products of matrices, a few times as fast as difference by difference; these lose digits where rows are
    long and close to each other.
    """
    last_digit = max(torch.finfo(rows.dtype).eps for rows in (a, b))
    a, b = a.double(), b.double()
    rounding = _lengths(a, b).mul_(_LAST_DIGITS * last_digit**2)
    centre = b.mean(dim=0)
    a, b = a - centre, b - centre
    lengths = _lengths(a, b)
    squares = torch.addmm(lengths, a, b.T, alpha=-2)
    rounding.add_(lengths, alpha=_ROUNDING)
    return squares.masked_fill_(squares <= rounding, 0.0), rounding


def _lengths(a: Tensor, b: Tensor) -> Tensor:
    """The squared lengths of every row of one and every row of the other together, (n, M)."""
    return a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)


def _neighbours(count: int) -> int:
    return min(NUM_NEIGHBOURS, count - 1)
