"""Kernel distance between two sets of features, by torch-fidelity."""

import torch
from torch import Tensor

from pelap.core.errors import DataError

NUM_SUBSETS = 50
SUBSET_SIZE = 500  # pictures of each side in a subset; all of them where a side has fewer


def kid(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Squared maximum mean discrepancy, unbiased, with the kernel (x.y / num_features + 1)^3.

    Args:
        features: One row a picture (N, num_features), N at least 2.
        reference: The same of the reference (M, num_features).

    Returns:
        ``kid`` and ``kid_std``, mean and standard deviation over `NUM_SUBSETS` random subsets, the same at
        every call. Around 0 for sets of the same distribution, so that it can be below. The deviation is that
        of one subset's value, as is usual; it is no standard error of the mean.

    Raises:
        DataError: Fewer than two pictures on a side.

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
