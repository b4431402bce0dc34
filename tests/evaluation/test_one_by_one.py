"""Kernel distance; precision, recall, density and coverage."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pelap.core.errors import DataError
from pelap.evaluation import one_by_one as one_by_one_module
from pelap.evaluation.one_by_one import NUM_SUBSETS, SUBSET_SIZE, coverage, kid, radii


def rows(num: int, seed: int = 0, dim: int = 6, shift: float = 0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)) + shift


# --- kernel distance --------------------------------------------------------------------------------


def kid_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased, of all rows."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        return (kernel(a, a).sum() - np.trace(kernel(a, a))) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize(("shift", "digits"), [(0, 1e-9), (30, 1e-6)])
def test_kid_of_all_pictures_by_hand(shift: float, digits: float) -> None:
    x, y = rows(60, shift=shift), rows(60, seed=1, shift=shift + 0.2)
    mean, std = kid(x, y).values()
    assert mean == pytest.approx(kid_by_hand(x.double().numpy(), y.double().numpy()), rel=digits)
    assert std == pytest.approx(0, abs=1e-6)  # every subset is the whole


def test_kid_is_the_mean_over_subsets_of_the_larger_set() -> None:
    x, y = rows(60), rows(500, seed=1, shift=0.2)
    mean, std = kid(x, y).values()
    whole = kid_by_hand(x.double().numpy(), y.double().numpy())
    assert std > 0
    assert abs(mean - whole) < 4 * std / NUM_SUBSETS**0.5
    assert kid(x, y) == {"kid": mean, "kid_std": std}  # the subsets are the same every time


def test_kid_agrees_with_torch_fidelity() -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = rows(700), rows(900, seed=1, shift=0.1)
    theirs = kid_features_to_metric(
        x, y, kid_subsets=NUM_SUBSETS, kid_subset_size=SUBSET_SIZE, rng_seed=0, verbose=False
    )
    assert list(kid(x, y).values()) == pytest.approx(list(theirs.values()), rel=1e-4)


# --- neighbourhoods ---------------------------------------------------------------------------------


def coverage_by_hand(made: Tensor, real: Tensor, neighbours: int) -> dict[str, float]:
    """The definitions, distance by distance."""

    def distances(a: Tensor, b: Tensor) -> np.ndarray:
        return np.linalg.norm(a.double().numpy()[:, None] - b.double().numpy()[None], axis=2)

    made_radii = np.sort(distances(made, made), axis=1)[:, neighbours]
    real_radii = np.sort(distances(real, real), axis=1)[:, neighbours]
    between = distances(made, real)
    return {
        "precision": (between <= real_radii).any(axis=1).mean(),
        "recall": (made_radii >= between.T).any(axis=1).mean(),
        "density": (between <= real_radii).sum(axis=1).mean() / neighbours,
        "coverage": (between.min(axis=0) <= real_radii).mean(),
    }


@pytest.mark.parametrize("chunk", [1024, 7])
@pytest.mark.parametrize("shift", [0, 1e5], ids=["", "far from zero"])  # float32 would leave no digit there
def test_coverage_by_hand(chunk: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_by_one_module, "_CHUNK", chunk)
    made, real = rows(80, shift=0.7).double(), 1.2 * rows(110, seed=1).double()
    expected = coverage_by_hand(made, real, 5)
    assert coverage(made + shift, real + shift) == pytest.approx(expected, rel=1e-12)
    assert coverage(made, real, radii(real)) == pytest.approx(expected, rel=1e-12)
    assert len(set(expected.values())) == 4
    assert coverage(made, real, torch.zeros(110))["coverage"] == 0  # those that are given are taken


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    made, real = rows(300, shift=0.5), rows(400, seed=1)
    theirs = prc_features_to_metric(made.double(), real.double(), prc_neighborhood=5, verbose=False)
    ours = coverage(made, real)
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert ours["precision"] != ours["recall"]


def test_few_pictures_have_fewer_neighbours() -> None:
    made, real = rows(3, shift=0.5), rows(4, seed=1)
    torch.testing.assert_close(radii(made), torch.cdist(made.double(), made.double()).max(dim=1).values)
    # Every one of four real pictures lies in a ball of each other one: 4 balls of 3 neighbours.
    assert coverage(real, real) == pytest.approx(coverage_by_hand(real, real, 3))


def lattice(num: int, seed: int, dim: int = 5) -> Tensor:
    """Rows with few values: many are equal, and many are equally far."""
    return torch.randint(0, 3, (num, dim), generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("chunk", [1024, 1])
@pytest.mark.parametrize("moved", [0.0, 0.1, 1000.0])
def test_what_is_equally_far_is_inside(chunk: int, moved: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_by_one_module, "_CHUNK", chunk)
    made, real = lattice(60, 0), lattice(90, 1)
    expected = coverage_by_hand(made, real, 5)  # of whole numbers, without rounding
    assert coverage(made + moved, real + moved) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rounding", [0.0, 2e-6], ids=["equal", "of two batches"])
def test_many_equal_pictures_are_in_each_others_balls(rounding: float) -> None:
    # More than there are neighbours: their balls have no size, and rounding must not say who is inside.
    kinds = 3 + rows(12, dim=64)
    made, real = kinds.repeat_interleave(7, 0), kinds.repeat(9, 1)
    made, real = (each + rounding * rows(len(each), seed, 64) for seed, each in enumerate((made, real), 5))
    assert coverage(made, real) == {
        "precision": 1, "recall": 1, "density": pytest.approx(9 / 5), "coverage": 1,
    }  # fmt: skip
    assert (radii(real) == 0).all()


@pytest.mark.parametrize(("mean", "spread"), [(10.0, 0.01), (100.0, 0.1), (0.0, 1.0)])
def test_equal_pictures_are_equal_however_close_all_are(mean: float, spread: float) -> None:
    real = mean + spread * rows(200, dim=64)
    real[::20] = real[0]  # ten of them are equal, and their balls have no size
    up = torch.rand(real.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    other_batch = torch.nextafter(real, torch.where(up, torch.inf, -torch.inf))
    values = coverage(other_batch, real)
    assert values["precision"] == values["recall"] == values["coverage"] == 1
    assert (radii(other_batch)[::20] == 0).all()


@pytest.mark.parametrize("measure", [kid, coverage])
def test_one_picture_is_too_few(measure: Any) -> None:
    for one, other in ((rows(1), rows(9)), (rows(9), rows(1))):
        with pytest.raises(DataError, match="features of 1 pictures have no"):
            measure(one, other)
