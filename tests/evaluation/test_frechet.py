"""Statistics of features, Frechet distance, and its standard error."""

import math

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
def test_statistics_are_those_of_the_rows(dim: int) -> None:
    rows = sample(200, dim)
    before, result = rows.clone(), statistics(rows)
    assert torch.equal(rows, before)
    assert result.count == 200
    torch.testing.assert_close(result.mean, rows.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(result.covariance, torch.cov(rows.T), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.factor @ result.factor.T, torch.cov(rows.T), rtol=1e-9, atol=1e-9)
    assert result.variance == pytest.approx(rows.var(dim=0).sum().item(), rel=1e-12)


@pytest.mark.parametrize("dim", [4, 400])
def test_statistics_keep_digits_far_from_zero(dim: int) -> None:
    rows = torch.randn(300, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(statistics(rows + 1e6).covariance, torch.cov(rows.T), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("num", [20, 200])
def test_moments_give_the_same_statistics(num: int) -> None:
    result, other = statistics(sample(num, 32)), statistics(sample(90, 32, seed=1))
    again = FeatureStatistics(num, result.mean, result.covariance)
    assert frechet_distance(again, other) == pytest.approx(frechet_distance(result, other), rel=1e-11)


def test_pictures_are_taken_out_again() -> None:
    rows = sample(200, 16)
    left = statistics(rows).without(rows[:30])
    assert left.count == 170
    torch.testing.assert_close(left.mean, rows[30:].mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(left.covariance, torch.cov(rows[30:].T), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_numbers_are_refused(bad: float) -> None:
    rows = sample(8, 4)
    rows[3, 1] = bad
    with pytest.raises(DataError, match="features: NaN or infinite values in 1 of 8; look at the weights"):
        statistics(rows)


@pytest.mark.parametrize("shape", [(4,), (0, 3), (2, 3, 4)])
def test_features_that_are_no_rows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected rows"):
        statistics(torch.zeros(shape))


def test_features_of_two_extractors_do_not_mix() -> None:
    with pytest.raises(DataError, match="4 against 5 a picture"):
        frechet_distance(statistics(sample(8, 4)), statistics(sample(8, 5)))


def test_one_picture_is_too_few() -> None:
    with pytest.raises(DataError, match="features of 1 pictures have no covariance; give at least 2"):
        statistics(sample(1, 4))


# --- distance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num", [20, 400])
def test_distance_to_itself_is_zero(num: int, seed: int) -> None:
    rows = sample(num, 64, seed)
    assert 0 <= frechet_distance(statistics(rows), statistics(rows.flip(0))) < 1e-9


def test_distance_is_symmetric() -> None:
    one, other = statistics(sample(90, 32)), statistics(sample(20, 32, seed=1))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-12)
    one, other = statistics(sample(90, 32)), statistics(sample(80, 32, seed=1))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_distance_of_diagonal_gaussians_is_the_closed_form() -> None:
    # Rows +-s_i e_i have mean 0 and covariance diag(2 s_i^2 / (n - 1)), exactly.
    s = torch.tensor([3.0, 1.0, 0.5, 0.0], dtype=torch.float64)
    t = torch.tensor([1.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0, 0.5, 0.25], dtype=torch.float64)
    one = statistics(torch.cat([s.diag(), -s.diag()]))
    other = statistics(torch.cat([t.diag(), -t.diag()]) + shift)
    expected = shift.square().sum() + 2 / 7 * (s - t).square().sum()
    assert frechet_distance(one, other) == pytest.approx(expected.item(), rel=1e-12)


def references(x: Tensor, y: Tensor) -> list[float]:
    """What torchmetrics and torch-fidelity say."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torchmetrics.image.fid import _compute_fid

    moments = [(rows.mean(0), torch.cov(rows.T)) for rows in (x, y)]
    as_numpy = [{"mu": mean.numpy(), "sigma": cov.numpy()} for mean, cov in moments]
    fidelity = fid_statistics_to_metric(*as_numpy, verbose=False)["frechet_inception_distance"]
    return [_compute_fid(*moments[0], *moments[1]).item(), fidelity]


@pytest.mark.parametrize(("num", "rel"), [(500, 1e-6), (40, 1e-5)], ids=["full rank", "rank deficient"])
def test_distance_agrees_with_torchmetrics_and_torch_fidelity(num: int, rel: float) -> None:
    x, y = sample(num, 128), sample(num - 8, 128, seed=1)
    distance = frechet_distance(statistics(x), statistics(y))
    for reference in references(x, y):
        assert distance == pytest.approx(reference, rel=rel)


@pytest.mark.parametrize("num", [40, 400])
def test_distance_is_exact(num: int) -> None:
    # With X and Y the centred rows, the trace of the root is the sum of the singular values of X Y'.
    x, y = sample(num, 128), sample(num - 10, 128, seed=1)
    cross = torch.linalg.svdvals((x - x.mean(0)) @ (y - y.mean(0)).T).sum() / ((num - 1) * (num - 11)) ** 0.5
    moved = (x.mean(0) - y.mean(0)).square().sum()
    expected = moved + x.var(0).sum() + y.var(0).sum() - 2 * cross
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.parametrize("width", [13, 40])
def test_distance_is_exact_where_features_depend_on_each_other(width: int) -> None:
    def normal(rows: int, columns: int, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        return torch.randn(rows, columns, generator=random, dtype=torch.float64)

    for seed in range(8):  # a triangular factor exists by rounding at some of them, and not at others
        x = normal(90, 12, seed) @ normal(12, width, seed + 100)
        y = normal(80, 12, seed + 50) @ normal(12, width, seed + 200)
        cross = torch.linalg.svdvals((x - x.mean(0)) @ (y - y.mean(0)).T).sum() / (89 * 79) ** 0.5
        expected = (x.mean(0) - y.mean(0)).square().sum() + x.var(0).sum() + y.var(0).sum() - 2 * cross
        assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected.item(), rel=1e-12)


def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the way that each distance from now on is taken by, in turn."""
    taken: list[str] = []
    exact = frechet_module._root_trace

    def spy(a: FeatureStatistics, b: FeatureStatistics) -> float:
        taken.append("exact")
        return exact(a, b)

    monkeypatch.setattr(frechet_module, "_root_trace", spy)
    return taken


@pytest.mark.parametrize("spread", [0, 1, 2])
def test_the_quick_way_is_right_where_it_is_taken(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = statistics(well(700, 128, 0, spread)), statistics(well(600, 128, 1, spread))
    taken = ways(monkeypatch)
    quick = frechet_distance(one, other)
    assert not taken
    apart = (one.mean - other.mean).square().sum().item() + one.variance + other.variance
    exact = apart - 2 * frechet_module._root_trace(one, other)
    assert quick == pytest.approx(exact, rel=1e-9)
    root, error = frechet_module._root_trace_by_squares(one, other)
    assert abs(root - frechet_module._root_trace(one, other)) < error


@pytest.mark.parametrize("spread", [4, 6, 8])
def test_the_bound_holds_where_the_quick_way_is_wrong(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = statistics(well(700, 128, 0, spread)), statistics(well(600, 128, 1, spread))
    root, error = frechet_module._root_trace_by_squares(one, other)
    assert abs(root - frechet_module._root_trace(one, other)) < error
    near = statistics(torch.cat([well(700, 128, 0, spread), well(1, 128, 5, spread)]))
    taken = ways(monkeypatch)
    frechet_distance(near, one)
    assert taken == ["exact"]


def test_distances_of_equal_pictures_are_defined() -> None:
    equal, others = torch.full((50, 8), 3.0), sample(50, 8)
    expected = (others.mean(0) - 3).square().sum() + others.var(0).sum()
    for one, other in ((equal, others), (others, equal)):
        distance = frechet_distance(statistics(one), statistics(other))
        assert distance == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(statistics(equal), statistics(equal)) == 0


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


@pytest.mark.parametrize(("num", "dim"), [(400, 8), (60, 100)], ids=["full rank", "rank deficient"])
def test_the_error_is_the_spread_over_independent_draws(num: int, dim: int) -> None:
    reference = statistics(well(1000, dim, 0))
    draws = [well(num, dim, seed) - 0.05 * seed + 0.3 for seed in range(1, 61)]
    spread = np.std([frechet_distance(statistics(rows), reference) for rows in draws], ddof=1)
    errors = [standard_error(jackknife(rows, reference)) for rows in draws]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=1 / 3)


IN_TURN = torch.arange(1000) % 10
SORTED = torch.arange(1000) // 100
UNEVEN = torch.cat([torch.full((num,), label) for label, num in enumerate((700, 203, 90, 5, 2))])
PROMPTS = torch.arange(1000) % 300


@pytest.mark.parametrize(
    "strata", [None, IN_TURN, SORTED, UNEVEN, PROMPTS], ids=["none", "turns", "sorted", "uneven", "prompts"]
)
def test_groups_are_even_and_hold_their_share_of_every_class(strata: Tensor | None) -> None:
    groups = random_groups(1000, strata)
    assert torch.equal(groups, random_groups(1000, strata))
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


@pytest.mark.parametrize("order", ["turns", "sorted"])
def test_the_error_is_that_of_pictures_with_a_quota_of_every_class(order: str) -> None:
    labels = IN_TURN if order == "turns" else SORTED
    centres = 3 * well(10, 4, 7, spread=0)
    reference = statistics(centres[IN_TURN] + well(1000, 4, 0, spread=0))
    draws = [centres[labels] + well(1000, 4, seed, spread=0) - 0.05 * seed for seed in range(1, 41)]
    spread = np.std([frechet_distance(statistics(rows), reference) for rows in draws], ddof=1)
    errors = [standard_error(jackknife(rows, reference, labels)) for rows in draws]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=1 / 3)
    # Not knowing the classes it is too large, but no group is a class.
    assert standard_error(jackknife(draws[0], reference)) < 6 * spread


def test_the_bootstrap_is_off_by_more_than_the_error() -> None:
    # Why there is no bootstrap: repeated pictures raise the distance, by many times its spread.
    reference, rows = statistics(well(1000, 100, 0)), well(60, 100, 1)
    distance, error = (
        frechet_distance(statistics(rows), reference),
        standard_error(jackknife(rows, reference)),
    )
    random = np.random.default_rng(0)
    bootstrap = [
        frechet_distance(statistics(rows[random.integers(0, 60, size=60)]), reference) for _ in range(20)
    ]
    assert min(bootstrap) > distance + error
    assert np.mean(bootstrap) > distance + 2 * error
    shift = np.mean(jackknife(rows, reference)) - distance
    assert abs(shift) < np.mean(bootstrap) - distance


def test_a_paired_difference_is_surer() -> None:
    reference, rows = statistics(well(1000, 16, 0)), well(300, 16, 1)
    other = 1.05 * rows + 0.1 * well(300, 16, 2)  # what another model makes of the same noise
    replicates = [np.array(jackknife(features, reference)) for features in (rows, other)]
    paired = standard_error(list(replicates[1] - replicates[0]))
    unpaired = math.hypot(*(standard_error(list(values)) for values in replicates))
    assert paired < 0.5 * unpaired
