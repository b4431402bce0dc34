"""Differences of two sets of pictures, and what of them is certain."""

import math

import pytest

from pelap.core.paths import REAL_ROW
from pelap.evaluation.image_metrics import ImageMetrics, difference, differences, recovered


def at(value: float, *replicates: float) -> ImageMetrics:
    return ImageMetrics({"fd": value}, {"fd": replicates})


def test_difference_and_its_error_by_hand() -> None:
    value, error = difference(at(7, 5, 7, 9), at(4, 4, 5, 6), "fd")
    assert value == 3
    assert error == pytest.approx(math.sqrt(2 / 3 * 2))  # of 1, 2, 3


def test_every_row_is_against_all_others_but_itself() -> None:
    figures = {"a": at(1, 1, 1), "b": at(3, 2, 4), REAL_ROW: at(0, 0, 0)}
    table = differences(figures, ["b", "a"], ["a", "b"])
    assert list(table.columns) == ["model", "against", "metric", "difference", "se"]
    assert table.values.tolist() == [["b", "a", "fd", 2, 1.0], ["a", "b", "fd", -2, 1.0]]
    assert list(differences(figures, [], ["a"]).columns) == list(table.columns)


@pytest.mark.parametrize(("tuned", "share"), [(6, 1.0), (8, 0.5), (10, 0.0), (12, -0.5), (5, 1.25)])
def test_share_that_was_recovered(tuned: float, share: float) -> None:
    pruned, dense = at(10, 9, 10, 11), at(6, 5, 6, 7)
    assert recovered(pruned, at(tuned, 1, 1, 1), dense, "fd") == share


@pytest.mark.parametrize(
    ("cost", "stated"), [(2.1, True), (1.99, False), (1.0, False), (0, False), (-3, False)]
)
def test_a_share_of_what_chance_may_have_made_is_not_stated(cost: float, stated: bool) -> None:
    # Replicates of the difference are -a, 0, a: its standard error is 1.
    a = math.sqrt(0.75)
    pruned, dense = at(5 + cost, 5 - a, 5, 5 + a), at(5, 5, 5, 5)
    assert difference(pruned, dense, "fd")[1] == pytest.approx(1)
    assert (recovered(pruned, dense, dense, "fd") is not None) == stated


def test_nothing_is_recovered_where_there_is_no_error() -> None:
    assert recovered(at(9), at(5), at(4), "fd") is None
