"""The one rule for differences, held against cases whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pelap.core.errors import ConfigError
from pelap.report.verdicts import NO_VERDICT, SAME, VERDICTS, WITHIN, holm, judged, over_seeds


def draws(*shape: int, mean: float = 0.0) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, 1.0, shape)


def test_interval_and_p_are_those_of_a_t_test() -> None:
    values = draws(5, mean=0.7)
    row = over_seeds([list(values)]).iloc[0]
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval(0.95)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((values.mean(), low, high))
    assert (row["p_value"], row["p_holm"], row["n"]) == pytest.approx((test.pvalue, test.pvalue, 5))


def test_one_of_thirteen_equal_methods_is_called_different_in_one_family_of_twenty() -> None:
    tables = [over_seeds(map(list, family)) for family in draws(200, 13, 3)]
    assert 0.01 < np.mean([table["verdict"].ne(SAME).any() for table in tables]) < 0.09
    # What the correction is for:
    assert np.mean([(table["p_value"] < 0.05).any() for table in tables]) > 0.3


@pytest.mark.parametrize(
    ("truth", "word"), [(0.0, "equivalent"), (3.0, "worse"), (-3.0, "better")], ids=["equal", "up", "down"]
)
def test_large_effects_and_clear_equalities_are_found(truth: float, word: str) -> None:
    found = over_seeds([list(each) for each in draws(40, 20, mean=truth)], margin=2.0)["verdict"]
    assert (found == word).mean() > 0.9


def test_a_difference_as_large_as_the_margin_is_rarely_called_equivalent() -> None:
    found = [over_seeds([list(each)], margin=1.0)["verdict"][0] for each in draws(300, 8, mean=1.0)]
    assert found.count("equivalent") <= 25  # 5 % and chance
    assert "equivalent" not in set(over_seeds(map(list, draws(50, 8)))["verdict"])  # without a margin


@pytest.mark.parametrize(
    ("margin", "words"),
    [
        # The interval is 2 +- 0.69.
        (3.0, {"worse": f"worse{WITHIN}", "better": f"better{WITHIN}"}),
        (2.6, {"worse": "worse", "better": "better"}),
        (None, {"worse": "worse", "better": "better"}),
    ],
)
def test_a_difference_that_is_told_says_whether_it_is_within_the_margin(
    margin: float | None, words: dict[str, str]
) -> None:
    worse = np.array([1.5, 2.0, 2.5, 1.4, 2.6])
    for family in ([worse], [-worse]):
        (row,) = over_seeds(family, margin).to_dict("records")
        assert row["verdict"] == words["worse" if row["difference"] > 0 else "better"]
        assert margin is None or (max(-row["low"], row["high"]) < margin) == (WITHIN in row["verdict"])
    assert set(words.values()) <= set(VERDICTS)


def test_the_correction_counts_for_what_is_within_the_margin() -> None:
    """The interval of one among many lies within the margin, and its corrected test does not say so."""
    one, margin = [2.4, 2.5, 2.6, 2.45, 2.55], 2.61
    alone, among = over_seeds([one], margin), over_seeds([one, *[[90.0, -90.0, 10.0, 5.0, 9.0]] * 40], margin)
    assert alone["high"][0] == among["high"][0] < margin
    assert (alone["verdict"][0], among["verdict"][0]) == (f"worse{WITHIN}", "worse")


def test_of_what_is_better_when_it_is_higher_the_interval_is_not_turned_around() -> None:
    values = [[1.4, 1.6, 1.5], [-1.4, -1.6, -1.5]]
    lower, higher = over_seeds(values), over_seeds(values, higher_is_better=True)
    numbers = ["n", "difference", "low", "high", "p_value", "p_holm"]
    pd.testing.assert_frame_equal(lower[numbers], higher[numbers])
    assert list(lower["verdict"]) == ["worse", "better"]
    assert list(higher["verdict"]) == ["better", "worse"]


def test_scatter_makes_nothing_equivalent() -> None:
    calm, wild = over_seeds([[0.1, -0.1, 0.05]], 1.0), over_seeds([[10.0, -10.0, 5.0]], 1.0)
    assert (calm["verdict"][0], wild["verdict"][0]) == ("equivalent", SAME)


def test_holm_of_a_known_family() -> None:
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0


@pytest.mark.parametrize("values", [[], [math.nan], [1.0], [2.0, 2.0, 2.0 + 1e-15]])
def test_no_verdict_where_nothing_says_how_sure_it_is(values: list[float]) -> None:
    row = over_seeds([values, [1.0, 2.0, 3.0]], margin=1.0).iloc[0]
    assert row["verdict"] == NO_VERDICT
    assert np.isnan(row["p_value"])
    assert row["n"] == np.isfinite(values).sum()


def test_within_one_run_the_errors_are_given() -> None:
    table = judged([4.0, 1.0], [1.0, 1.0], 9, margin=0.5)
    assert list(table["verdict"]) == ["worse", SAME]
    assert table["high"][0] == pytest.approx(4 + stats.t.ppf(0.975, 9))
    assert list(judged([1.0, math.inf], [0.0, 1.0], 9)["verdict"]) == [NO_VERDICT] * 2


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_has_to_be_above_zero(margin: float) -> None:
    with pytest.raises(ConfigError, match=r"margin: .* is not above 0"):
        over_seeds([[1.0, 2.0]], margin)
