"""Ways to choose operators from a table: what each selection promises, and what may be ranked by."""

import itertools
import math
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch

from pelap.config import pruning as names_of_parameters
from pelap.config.pruning import Formula, Selection
from pelap.core.errors import PlanError
from pelap.pruning.selection import SELECTIONS, importance_by, make_plan, single_operator_plans
from pelap.scoring import criteria
from pelap.scoring.statistic import change_of
from pelap.surgery.operators import is_inside

NESTED = ("a", "a.b", "a.b.c", "a.b.d", "a.e", "ab", "f", "f.g", "h")
"""Blocks in blocks, beside one whose name merely begins like another's."""
TOLERANCE = 1e-6


def table(seed: int, negative: bool = False) -> pd.DataFrame:
    """A table of scores of nested operators, drawn anew for every seed."""
    draw = np.random.default_rng(seed)
    scores = pd.DataFrame({"operator": NESTED, "kind": "block", "replacement": "identity"})
    return scores.assign(
        score=draw.uniform(-1 if negative else 0, 1, len(NESTED)),
        params=draw.integers(1, 100, len(NESTED)),
        latency_share=draw.uniform(0.01, 0.2, len(NESTED)),
        replacement_share=draw.uniform(0, 0.03, len(NESTED)),
    )


def saves(scores: pd.DataFrame) -> "pd.Series[float]":
    """Share of the time that each operator saves, by its name."""
    by_name = scores.set_index("operator")
    return by_name["latency_share"] - by_name["replacement_share"]


def names(scores: pd.DataFrame, amount: float, selection: Selection, criterion: str = "score") -> list[str]:
    plan = make_plan(scores, "time_reduction", amount, criterion, selection)
    return [removal.operator for removal in plan.operators]


def disjoint(chosen: tuple[str, ...]) -> bool:
    return not any(is_inside(one, other) for one, other in itertools.permutations(chosen, 2))


def every_set(scores: pd.DataFrame) -> list[tuple[str, ...]]:
    """All sets of operators of which none is inside another."""
    sizes = range(1, len(NESTED) + 1)
    sets = itertools.chain.from_iterable(itertools.combinations(NESTED, size) for size in sizes)
    return [chosen for chosen in sets if disjoint(chosen)]


@pytest.mark.parametrize("negative", [False, True], ids=["distances", "increments"])
@pytest.mark.parametrize("seed", range(5))
def test_a_knapsack_is_the_best_of_all_sets(seed: int, negative: bool) -> None:
    scores = table(seed, negative)
    # Errors that cancel are no reason to take more: below 0 is as good as 0.
    importance, saved = scores.set_index("operator")["score"].clip(lower=0), saves(scores)
    for amount in (0.02, 0.1, 0.2, 0.35):
        reach = [each for each in every_set(scores) if saved[[*each]].sum() >= amount]
        if not reach:
            continue
        chosen = names(scores, amount, "knapsack")
        assert disjoint(tuple(chosen))
        assert saved[chosen].sum() >= amount - TOLERANCE
        best = min(importance[[*each]].sum() for each in reach)
        assert importance[chosen].sum() == pytest.approx(best, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("selection", get_args(Selection))
@pytest.mark.parametrize("seed", range(3))
def test_no_selection_takes_an_operator_and_its_part_or_falls_short(seed: int, selection: Selection) -> None:
    scores = table(seed)
    for amount in (0.05, 0.15, 0.25):
        chosen = names(scores, amount, selection)
        assert disjoint(tuple(chosen))
        assert saves(scores)[chosen].sum() >= amount - TOLERANCE


def rows(**cells: tuple[float, float]) -> pd.DataFrame:
    """Operators by score and share of the time; `_` in a name stands for a dot."""
    operators = [name.replace("_", ".") for name in cells]
    scores, shares = zip(*cells.values(), strict=True)
    made = pd.DataFrame({"operator": operators, "score": scores, "latency_share": shares})
    return made.assign(kind="block", replacement="identity", params=1)


FLAT = rows(small=(0.1, 0.01), cheap=(0.2, 0.20), dear=(0.4, 0.21), idle=(0.0, 0.0), slower=(0.05, -0.1))


def test_ratio_takes_what_saves_most_for_its_importance_and_nothing_that_saves_nothing() -> None:
    assert names(FLAT, 0.2, "per_ms") == ["cheap"]  # 1 for a share of the time, against 1.9 and 10
    assert names(FLAT, 0.25, "per_ms") == ["cheap", "dear"]
    assert names(FLAT, 0.42, "per_ms") == ["cheap", "dear", "small"]
    assert names(FLAT, 0.2, "lowest_first")[:3] == ["idle", "slower", "small"]


@pytest.mark.parametrize("selection", get_args(Selection))
def test_out_of_reach_says_how_far_it_goes(selection: Selection) -> None:
    scores = table(0).assign(replacement_share=0.0, latency_share=0.1)
    with pytest.raises(PlanError, match=r"prune\.time_reduction: 0\.7 is out of reach") as caught:
        make_plan(scores, "time_reduction", 0.7, selection=selection)
    assert "\n" not in str(caught.value)
    furthest = float(str(caught.value).partition("at most ")[2].partition(";")[0])
    # a.b.c, a.b.d, a.e, ab, f or f.g, h; those who take one after the other may take a block too early.
    assert furthest == pytest.approx(0.6 if selection == "knapsack" else 0.4)
    assert len(names(scores, furthest - TOLERANCE, selection)) == round(furthest / 0.1)


def test_a_knapsack_knows_the_furthest() -> None:
    scores = table(3)
    furthest = max(saves(scores)[[*each]].sum() for each in every_set(scores))
    assert names(scores, 0.999 * furthest, "knapsack")
    with pytest.raises(PlanError, match=f"at most {furthest:.4g}"):
        make_plan(scores, "time_reduction", 1.001 * furthest, selection="knapsack")


# What is ranked by


def ranked(**columns: list[float]) -> pd.DataFrame:
    scores = FLAT.iloc[:3].assign(latency_share=0.1, avg_dist=[1.0, 2.0, 3.0], std_dist=[6.0, 1.0, 0.5])
    return scores.assign(**columns)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("avg+std", [7.0, 3.0, 3.5]),
        ("avg", [1.0, 2.0, 3.0]),
        ("std", [6.0, 1.0, 0.5]),
        ("avg*std", [6.0, 2.0, 1.5]),
        ("score", [0.1, 0.2, 0.4]),
        ("taylor", [5.0, 9.0, 7.0]),
    ],
)
def test_an_importance_is_a_column_or_made_by_a_formula(criterion: str, expected: list[float]) -> None:
    scores = ranked(taylor=[5.0, 9.0, 7.0])
    assert importance_by(scores, criterion).tolist() == pytest.approx(expected)
    first = scores["operator"].iloc[int(np.argmin(expected))]
    assert names(scores, 0.05, "lowest_first", criterion) == [first]


def test_importances_are_those_of_their_rows_whatever_the_index() -> None:
    scores = ranked().set_index(pd.Index([7, 3, 5]))
    assert names(scores, 0.05, "lowest_first", "std") == ["dear"]
    assert names(scores.iloc[::-1], 0.15, "lowest_first", "std") == ["dear", "cheap"]


@pytest.mark.parametrize("criterion", sorted({*get_args(Formula), "taylor"}))
def test_a_criterion_that_is_not_there_is_told_with_its_mend(criterion: str) -> None:
    with pytest.raises(PlanError, match=r"no column \w+; add it to score\.criteria") as caught:
        make_plan(FLAT, "time_reduction", 0.1, criterion)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, None, "few"])
def test_a_criterion_without_a_number_is_told_with_its_row(value: object) -> None:
    scores = ranked(taylor=[1.0, 2.0, 3.0]).astype({"taylor": object})
    scores.loc[1, "taylor"] = value
    with pytest.raises(PlanError, match="row 2: taylor is no number") as caught:
        make_plan(scores, "time_reduction", 0.1, "taylor")
    assert "\n" not in str(caught.value)
    assert names(scores, 0.05, "lowest_first", "avg") == ["small"]  # who does not ask for it is not bothered


@pytest.mark.parametrize("selection", get_args(Selection))
def test_what_is_infinitely_important_stays(selection: Selection) -> None:
    scores = ranked(magnitude=[math.inf, 2.0, 1.0])
    assert sorted(names(scores, 0.2, selection, "magnitude")) == ["cheap", "dear"]
    with pytest.raises(PlanError, match=r"at most 0\.2 without the 1 that are infinitely"):
        make_plan(scores, "time_reduction", 0.3, "magnitude", selection)


@pytest.mark.parametrize("criterion", ["score", *get_args(Formula)])
@pytest.mark.parametrize("selection", get_args(Selection))
def test_what_breaks_the_latents_is_never_taken(selection: Selection, criterion: str) -> None:
    original = torch.randn(4, 2, 3)
    broken = original.clone()
    broken[1, 0, 0] = math.nan
    change = change_of(original, broken)
    (avg, std), value = change.parts.tolist(), change.score("avg+std")
    assert (avg, std, value) == (math.inf, math.inf, math.inf)
    scores = ranked(taylor=[0.0, 0.0, 0.0])
    scores.loc[0, ["score", "avg_dist", "std_dist"]] = value, avg, std
    assert sorted(names(scores, 0.2, selection, criterion)) == sorted(scores["operator"][1:])
    with pytest.raises(PlanError, match="without the 1 that are infinitely important"):
        make_plan(scores, "time_reduction", 0.3, criterion, selection)


@pytest.mark.parametrize("criterion", ["score", "avg", "avg*std"])
def test_an_unfinished_score_is_not_ranked_by_but_other_criteria_do_not_care(criterion: str) -> None:
    scores = ranked(taylor=[1.0, 2.0, 3.0]).assign(stopped_early=[True, False, True])
    assert names(scores, 0.1, "lowest_first", criterion) == ["cheap"]
    with pytest.raises(PlanError, match="score the 2 that stopped early to the end"):
        make_plan(scores, "time_reduction", 0.2, criterion)
    assert names(scores, 0.3, "lowest_first", "taylor") == ["small", "cheap", "dear"]
    with pytest.raises(PlanError, match=r"ask for less$"):
        make_plan(scores, "time_reduction", 0.4, "taylor")


def test_parameters_name_the_criteria_and_selections_that_there_are() -> None:
    assert {*get_args(names_of_parameters.Selection)} == {*SELECTIONS}
    assert {*get_args(names_of_parameters.CheapCriterion)} == {*criteria.CRITERIA}


# Plans of one operator


def test_a_spread_goes_from_one_end_of_the_ranking_to_the_other() -> None:
    scores = pd.DataFrame({"operator": [f"o{i:02}" for i in range(20)], "score": np.arange(20.0)}).assign(
        kind="block", replacement="identity", params=5, latency_share=0.01
    )
    plans = single_operator_plans(scores.sample(frac=1, random_state=0), 4)
    places = [int(name[1:]) for name in plans]
    assert places == sorted(places)
    assert set(np.diff(places)) == {5}
    assert abs(places[0] - (19 - places[-1])) <= 1
    for name, plan in plans.items():
        assert [removal.operator for removal in plan.operators] == [name]
        assert (plan.num_params, plan.time_reduction) == (5, pytest.approx(0.01))
    for num in (20, 1000):
        assert [*single_operator_plans(scores, num)] == scores["operator"].to_list()
    assert single_operator_plans(scores, 0) == {}


def test_a_spread_leaves_out_what_has_no_place() -> None:
    scores = FLAT.assign(
        score=[0.1, math.inf, 0.3, 0.4, 0.5], stopped_early=[False, False, True, False, False]
    )
    assert [*single_operator_plans(scores, 9)] == ["small", "idle", "slower"]


def test_a_knapsack_takes_no_more_than_it_needs_of_what_costs_nothing() -> None:
    scores = rows(a=(-0.1, 0.2), b=(-0.2, 0.1), c=(-0.3, 0.1), d=(0.4, 0.3))
    assert names(scores, 0.05, "knapsack") in (["b"], ["c"])
    assert sorted(names(scores, 0.15, "knapsack")) in (["a"], ["b", "c"])


@pytest.mark.parametrize("selection", get_args(Selection))
def test_where_nothing_may_be_taken_the_target_is_out_of_reach(selection: Selection) -> None:
    with pytest.raises(PlanError, match="the 0 operators give at most 0"):
        names(rows(a=(math.inf, 0.5)), 0.1, selection)


def test_a_plan_is_not_the_block_that_took_the_place_of_parts_that_saved_more() -> None:
    """The parts save 0.8 but for rounding, the block around them 0.5."""
    assert names(rows(a_b=(0.1, 0.7), a_c=(0.2, 0.1), a=(0.3, 0.5)), 0.8, "lowest_first") == ["a.b", "a.c"]
