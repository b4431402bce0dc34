"""Fidelity and diversity apart: precision, recall, density and coverage of a set of features."""

import torch
from torch import Tensor

from pelap.errors import DataError

NUM_NEIGHBOURS = 5
"""Which nearest neighbour's distance is the radius around a picture; the last there is where fewer are."""

_CHUNK = 1024


def coverage(features: Tensor, reference: Tensor, reference_radii: Tensor | None = None) -> dict[str, float]:
    """Precision, recall, density and coverage.

    A picture's ball reaches to its `NUM_NEIGHBOURS`-th nearest neighbour in its own set.

    Args:
        features: One row a made picture (N, num_features).
        reference: One row a real picture (M, num_features).
        reference_radii: `radii(reference)` (M,), where it is known already.

    Returns:
        ``precision``: share of made pictures in a ball of a real one. ``recall``: share of real pictures
        in a ball of a made one. ``density``: balls of real pictures that a made one lies in, over
        `NUM_NEIGHBOURS` (or fewer, where there are fewer), on average; may be above 1. ``coverage``: share
        of real pictures with a made one in their ball.

    Raises:
        DataError: Fewer than two pictures on a side.

    Source: Kynkaanniemi et al., https://arxiv.org/abs/1904.06991; Naeem et al.,
    https://arxiv.org/abs/2002.09797
    """
    made, real = features.to("cpu", torch.float64), reference.to("cpu", torch.float64)
    made_radii = radii(made)
    real_radii = radii(real) if reference_radii is None else reference_radii
    num_balls = []  # of real pictures, around each made one
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for chunk, chunk_radii in zip(made.split(_CHUNK), made_radii.split(_CHUNK), strict=True):
        distances = torch.cdist(chunk, real)  # (n, M)
        inside = distances <= real_radii
        num_balls.append(inside.sum(dim=1))
        covered |= inside.any(dim=0)
        recalled |= (distances <= chunk_radii[:, None]).any(dim=0)
    balls = torch.cat(num_balls).double()
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": balls.mean().item() / _neighbours(len(real)),
        "coverage": covered.double().mean().item(),
    }


def radii(features: Tensor) -> Tensor:
    """Distance (N,) float64 from each row to its `NUM_NEIGHBOURS`-th nearest other one.

    Raises:
        DataError: Fewer than two rows.
    """
    if len(features) < 2:
        raise DataError(f"features of {len(features)} pictures have no neighbours; give at least 2")
    # In float64: the products by which distances are computed leave too few digits of float32.
    rows = features.to("cpu", torch.float64)
    nearest = _neighbours(len(rows)) + 1  # the nearest is the row itself
    return torch.cat([torch.cdist(chunk, rows).kthvalue(nearest).values for chunk in rows.split(_CHUNK)])


def _neighbours(count: int) -> int:
    return min(NUM_NEIGHBOURS, count - 1)
