"""Statistics of features, Frechet distance, and its standard error."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pelap.core.errors import DataError
from pelap.evaluation import frechet as frechet_module
from pelap.evaluation.frechet import (
    NUM_GROUPS,
    FeatureStatistics,
    frechet_distance,
    jackknife,
    random_groups,
    standard_error,
)

statistics = FeatureStatistics.of


def sample(num: int, dim: int, seed: int = 0) -> Tensor:
    """Features with correlations, a wide spectrum and a mean far from zero, as networks give."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    scale = torch.logspace(0, -3, dim, dtype=torch.float64)
    rows = torch.randn(num, dim, generator=random, dtype=torch.float64) * scale * (1 + 0.3 * seed)
    return rows @ mix + 5 + 0.1 * seed


def well(num: int, dim: int, seed: int, spread: float = 1) -> Tensor:
    """Features whose covariance has no small eigenvalue, where `spread` is moderate."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, dim, generator=random, dtype=torch.float64)
    return rows * torch.logspace(0, -spread, dim, dtype=torch.float64) + 0.05 * seed


# --- statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [16, 199, 200, 300])
@pytest.mark.parametrize("shift", [0, 1e6], ids=["", "far from zero"])
def test_statistics_are_those_of_the_rows(dim: int, shift: float) -> None:
    rows = sample(200, dim)
    moved = rows + shift
    before, result = moved.clone(), statistics(moved)
    assert torch.equal(moved, before)
    digits = 1e-6 if shift else 1e-9
    assert result.count == 200
    torch.testing.assert_close(result.mean, moved.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.covariance, torch.cov(rows.T), rtol=digits, atol=digits)
    torch.testing.assert_close(result.factor @ result.factor.T, torch.cov(rows.T), rtol=digits, atol=digits)
    assert result.variance == pytest.approx(rows.var(dim=0).sum().item(), rel=digits)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.zeros(4), "expected rows"),
        (torch.zeros(0, 3), "expected rows"),
        (torch.zeros(2, 3, 4), "expected rows"),
        (torch.zeros(1, 4), "features of 1 pictures have no covariance; give at least 2"),
        (torch.tensor([[0.0], [math.nan], [1.0]]), "NaN or infinite values in 1 of 3; look at the weights"),
        (torch.tensor([[math.inf], [0.0]]), "NaN or infinite values in 1 of 2; look at the weights"),
    ],
)
def test_what_has_no_statistics_is_refused(rows: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        statistics(rows)


# --- distance ---------------------------------------------------------------------------------------


def by_singular_values(x: Tensor, y: Tensor) -> float:
    """With X and Y the centred rows, the trace of the root is the sum of the singular values of X Y'."""
    norm = ((len(x) - 1) * (len(y) - 1)) ** 0.5
    cross = torch.linalg.svdvals((x - x.mean(0)) @ (y - y.mean(0)).T).sum() / norm
    moved = (x.mean(0) - y.mean(0)).square().sum()
    return (moved + x.var(0).sum() + y.var(0).sum() - 2 * cross).item()


@pytest.mark.parametrize("num", [20, 400])
def test_distance_to_itself_is_zero(num: int) -> None:
    for seed in range(3):
        rows = sample(num, 64, seed)
        assert 0 <= frechet_distance(statistics(rows), statistics(rows.flip(0))) < 1e-9


def test_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    # Rows +-s_i e_i have mean 0 and covariance diag(2 s_i^2 / (n - 1)), exactly.
    s = torch.tensor([3.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    t = torch.tensor([1.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=torch.float64)
    one = statistics(torch.cat([s.diag(), -s.diag()]))
    other = statistics(torch.cat([t.diag(), -t.diag()]) + shift)
    expected = pytest.approx((shift.square().sum() + 2 / 7 * (s - t).square().sum()).item(), rel=1e-12)
    assert frechet_distance(one, other) == expected
    assert frechet_distance(other, one) == expected


@pytest.mark.parametrize(("num", "rel"), [(500, 1e-6), (40, 1e-5)], ids=["full rank", "rank deficient"])
def test_distance_agrees_with_torchmetrics_and_torch_fidelity(num: int, rel: float) -> None:
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    x, y = sample(num, 128), sample(num - 8, 128, seed=1)
    moments = [(rows.mean(0), torch.cov(rows.T)) for rows in (x, y)]
    as_numpy = [{"mu": mean.numpy(), "sigma": cov.numpy()} for mean, cov in moments]
    fidelity = fid_statistics_to_metric(*as_numpy, verbose=False)["frechet_inception_distance"]
    distance = frechet_distance(statistics(x), statistics(y))
    assert distance == pytest.approx(_compute_fid(*moments[0], *moments[1]).item(), rel=rel)
    assert distance == pytest.approx(fidelity, rel=rel)
    assert distance == pytest.approx(by_singular_values(x, y), rel=1e-11)
    assert distance == pytest.approx(frechet_distance(statistics(y), statistics(x)), rel=1e-9)


@pytest.mark.parametrize("width", [13, 40])
def test_distance_is_exact_where_features_depend_on_each_other(width: int) -> None:
    def normal(rows: int, columns: int, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        return torch.randn(rows, columns, generator=random, dtype=torch.float64)

    for seed in range(8):  # a triangular factor exists by rounding at some of them, and not at others
        x = normal(90, 12, seed) @ normal(12, width, seed + 100)
        y = normal(80, 12, seed + 50) @ normal(12, width, seed + 200)
        exact = by_singular_values(x, y)
        assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("spread", [0, 1, 2, 4, 6, 8])
def test_the_quick_way_is_taken_where_its_bound_is_small(spread: float, monkeypatch: Any) -> None:
    x, y = well(700, 128, 0, spread), well(600, 128, 1, spread)
    one, other = statistics(x), statistics(y)
    root, error = frechet_module._root_trace_by_squares(one, other)
    assert abs(root - frechet_module._root_trace(one, other)) < error
    if spread > 2:  # where it would be wrong of near sets
        other = statistics(torch.cat([x, well(1, 128, 5, spread)]))
    taken, exact = list[str](), frechet_module._root_trace
    monkeypatch.setattr(frechet_module, "_root_trace", lambda a, b: (taken.append("exact"), exact(a, b))[1])
    distance = frechet_distance(other, one)
    assert taken == ["exact"] * (spread > 2)
    assert spread > 2 or distance == pytest.approx(by_singular_values(x, y), rel=1e-9)


def test_distances_of_equal_pictures_are_defined() -> None:
    equal, others = torch.full((50, 8), 3.0), sample(50, 8)
    expected = (others.mean(0) - 3).square().sum() + others.var(0).sum()
    for one, other in ((equal, others), (others, equal)):
        distance = frechet_distance(statistics(one), statistics(other))
        assert distance == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(statistics(equal), statistics(equal)) == 0


def test_features_of_two_extractors_do_not_mix() -> None:
    with pytest.raises(DataError, match="4 against 5 a picture"):
        frechet_distance(statistics(sample(8, 4)), statistics(sample(8, 5)))


# --- standard error ---------------------------------------------------------------------------------


def test_standard_error_by_hand() -> None:
    # Leaving out one of n numbers at a time, the jackknife's error of their mean is s / sqrt(n).
    values = np.random.default_rng(0).normal(size=7)
    replicates = [np.delete(values, index).mean() for index in range(7)]
    assert standard_error(replicates) == pytest.approx(values.std(ddof=1) / 7**0.5, rel=1e-12)
    assert standard_error([1e9 + value for value in (1, 2, 3)]) == pytest.approx((2 / 3 * 2) ** 0.5)
    assert math.isnan(standard_error([]))
    assert math.isnan(standard_error([1.0]))


@pytest.mark.parametrize(("num", "dim"), [(205, 16), (60, 100), (105, 100)])
def test_replicates_leave_a_tenth_of_the_pictures_out(num: int, dim: int) -> None:
    rows, reference = sample(num, dim), statistics(sample(300, dim, seed=1))
    replicates = jackknife(rows, reference)
    assert len(replicates) == NUM_GROUPS == 10
    groups = random_groups(num)
    for group, distance in enumerate(replicates):
        left = rows[groups != group]
        assert distance == pytest.approx(frechet_distance(statistics(left), reference), rel=1e-6)


@pytest.mark.parametrize(("num", "groups"), [(2, 0), (3, 3), (9, 9), (11, 10)])
def test_few_pictures_give_a_replicate_each(num: int, groups: int) -> None:
    assert len(jackknife(sample(num, 4), statistics(sample(50, 4)))) == groups


IN_TURN = torch.arange(1000) % 10
SORTED = torch.arange(1000) // 100
UNEVEN = torch.cat([torch.full((num,), label) for label, num in enumerate((700, 203, 90, 5, 2))])
PROMPTS = torch.arange(1000) % 300


@pytest.mark.parametrize(
    "strata", [None, IN_TURN, SORTED, UNEVEN, PROMPTS], ids=["none", "turns", "sorted", "uneven", "prompts"]
)
def test_groups_are_even_and_hold_their_share_of_every_class(strata: Tensor | None) -> None:
    groups = random_groups(1000, strata)
    assert torch.equal(groups, random_groups(1000, strata))  # those of two models are the same
    for part in [slice(None)] if strata is None else [strata == label for label in strata.unique()]:
        sizes = groups[part].bincount(minlength=NUM_GROUPS)
        assert len(sizes) == NUM_GROUPS
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("num", [1000, 1003])
@pytest.mark.parametrize("strata", [None, torch.arange(1003)], ids=["none", "single pictures"])
def test_no_period_of_the_pictures_is_one_of_the_groups(num: int, strata: Tensor | None) -> None:
    groups = random_groups(num, None if strata is None else strata[:num])
    for period in (2, 5, 8, 10, 20):
        for place in range(period):
            held = groups[place::period].bincount(minlength=NUM_GROUPS) / len(groups[place::period])
            assert held.max() < 0.1 + 5 * (0.09 / len(groups[place::period])) ** 0.5


CENTRES = 3 * well(10, 4, 7, spread=0)


@pytest.mark.parametrize(
    ("num", "dim", "labels"),
    [(400, 8, None), (60, 100, None), (1000, 4, IN_TURN), (1000, 4, SORTED)],
    ids=["full rank", "rank deficient", "a quota of every class in turns", "sorted"],
)
def test_the_error_is_the_spread_over_independent_draws(num: int, dim: int, labels: Tensor | None) -> None:
    centres = torch.zeros(1) if labels is None else CENTRES[IN_TURN]
    reference = statistics(centres + well(1000, dim, 0, spread=0))
    offset = 0.3 if labels is None else CENTRES[labels]
    draws = [well(num, dim, seed, spread=0) - 0.05 * seed + offset for seed in range(1, 41)]
    spread = np.std([frechet_distance(statistics(rows), reference) for rows in draws], ddof=1)
    errors = [standard_error(jackknife(rows, reference, labels)) for rows in draws]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=1 / 3)
    if labels is not None:  # not knowing the classes it is too large, but no group is a class
        assert standard_error(jackknife(draws[0], reference)) < 6 * spread
