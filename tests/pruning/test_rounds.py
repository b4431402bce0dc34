"""Plans by the clock: brought to the target, in rounds of scoring, with nothing done twice."""

from collections.abc import Callable, Mapping

import pandas as pd
import pytest

from pelap.config import MethodParams
from pelap.core.errors import PlanError
from pelap.pruning.rounds import TOLERANCE, TimeBudgetPlanner
from pelap.pruning.selection import make_plan
from pelap.surgery.operators import is_inside
from pelap.surgery.plan import Plan

GREEDY = MethodParams(iterative_step=0.1)


def table(**shares: float) -> pd.DataFrame:
    """Operators of these shares of the time, least important first."""
    rows = [(name, float(place), share) for place, (name, share) in enumerate(shares.items())]
    made = pd.DataFrame(rows, columns=["operator", "score", "latency_share"])
    return made.assign(kind="block", replacement="identity", params=1)


def scores(num: int = 40, share: float = 0.02) -> pd.DataFrame:
    """Operators of which each takes the same share of the time."""
    return table(**{f"o{i:02}": share for i in range(num)})


def gone(plan: Plan) -> list[str]:
    return [removal.operator for removal in plan.operators]


class Network:
    """Stands in for a network: what a plan saves by its clock, and what is left of the table."""

    def __init__(
        self, table: pd.DataFrame, clock: Callable[[float], float] = lambda promised: promised
    ) -> None:
        self.table, self.clock = table, clock
        self.shares: Mapping[str, float] = dict(zip(table["operator"], table["latency_share"], strict=True))
        self.measured: list[list[str]] = []
        self.scored_rest: list[list[str]] = []

    def saved(self, plan: Plan) -> float:
        return self.clock(sum(self.shares[name] for name in gone(plan)))

    def measure(self, plan: Plan) -> float:
        self.measured.append(gone(plan))
        return self.saved(plan)

    def score_rest(self, plan: Plan) -> pd.DataFrame:
        """The same order, but for those that went."""
        self.scored_rest.append(gone(plan))
        left = [
            not any(name == other or is_inside(name, other) for other in gone(plan))
            for name in self.table["operator"]
        ]
        return self.table[left]

    def planner(self, max_measurements: int) -> TimeBudgetPlanner:
        return TimeBudgetPlanner(self.table, self.measure, self.score_rest, max_measurements)


def test_without_trials_the_scores_are_believed() -> None:
    network = Network(scores(), lambda promised: 0.5 * promised)
    plan = network.planner(0).plan(MethodParams(), "time_reduction", 0.3)
    assert gone(plan) == gone(make_plan(network.table, "time_reduction", 0.3))
    assert network.measured == network.scored_rest == []


@pytest.mark.parametrize("target", ["num_params", "num_operators"])
def test_numbers_need_no_clock(target: str) -> None:
    network = Network(scores())
    plan = network.planner(5).plan(MethodParams(), target, 7)
    assert plan == make_plan(network.table, target, 7)
    assert network.measured == []


@pytest.mark.parametrize(
    "clock",
    [lambda it: 0.6 * it, lambda it: 1.4 * it, lambda it: it**2, lambda it: it - 0.1],
    ids=["less", "more", "curved", "dearer"],
)
@pytest.mark.parametrize("amount", [0.2, 0.35])
def test_a_plan_saves_what_the_clock_says(clock: Callable[[float], float], amount: float) -> None:
    network = Network(scores(num=100, share=0.008), clock)
    max_measurements = 10
    plan = network.planner(max_measurements).plan(MethodParams(), "time_reduction", amount)
    assert network.saved(plan) == pytest.approx(amount, abs=TOLERANCE + 1e-9)
    assert plan.target == {"time_reduction": amount}
    assert len(network.measured) <= max_measurements
    names = network.table["operator"].to_list()
    assert gone(plan) == names[: len(gone(plan))]  # still the least important ones


def test_where_no_plan_meets_the_target_one_that_saves_enough_is_taken() -> None:
    # 0.10 or 0.22: the first is nearer to 0.14.
    network = Network(scores(num=3, share=0.1), lambda it: 1.1 * it - 0.01 * (it < 0.15))
    plan = network.planner(6).plan(MethodParams(), "time_reduction", 0.14)
    assert gone(plan) == ["o00", "o01"]
    assert network.saved(plan) >= 0.14


def test_no_plan_is_measured_twice() -> None:
    network = Network(scores(num=5, share=0.1), lambda it: 0.9 * it)
    network.planner(10).plan(MethodParams(), "time_reduction", 0.24)
    assert len({tuple(names) for names in network.measured}) == len(network.measured)


def test_out_of_reach_says_how_far_it_goes_before_anything_is_measured() -> None:
    network = Network(scores(num=3, share=0.1))
    with pytest.raises(PlanError, match=r"0\.5 is out of reach.*at most 0\.3"):
        network.planner(5).plan(MethodParams(), "time_reduction", 0.5)
    assert network.measured == []


def test_a_clock_that_asks_for_more_than_there_is_gets_the_most_that_was_found() -> None:
    network = Network(scores(num=10, share=0.05), lambda it: 0.7 * it)
    plan = network.planner(8).plan(MethodParams(), "time_reduction", 0.4)
    assert len(gone(plan)) == 10  # all there is: 0.35


# In rounds


def test_rounds_stop_where_the_share_says() -> None:
    network = Network(scores())
    plan = network.planner(4).plan(GREEDY, "time_reduction", 0.3)
    assert [len(names) for names in network.scored_rest] == [5, 10]
    assert len(gone(plan)) == 15
    assert plan.target == {"time_reduction": 0.3}
    # The last round is not scored after.
    network = Network(scores())
    network.planner(4).plan(GREEDY, "time_reduction", 0.1)
    assert network.scored_rest == []


def test_a_larger_amount_goes_through_the_same_rounds() -> None:
    network = Network(scores())
    planner = network.planner(4)
    small = planner.plan(GREEDY, "time_reduction", 0.26)
    large = planner.plan(GREEDY, "time_reduction", 0.46)
    assert [len(names) for names in network.scored_rest] == [5, 10, 15, 20]
    assert set(gone(small)[:10]) < set(gone(large))
    alone = Network(scores()).planner(4).plan(GREEDY, "time_reduction", 0.46)
    assert gone(large) == gone(alone)


def test_ways_to_choose_have_rounds_of_their_own() -> None:
    network = Network(scores())
    planner = network.planner(4)
    knapsack = MethodParams(selection="knapsack", iterative_step=0.1)
    for method in (GREEDY, knapsack, MethodParams(iterative_step=0.06)):
        planner.plan(method, "time_reduction", 0.2)
    assert [len(names) for names in network.scored_rest] == [5, 5, 3, 6, 9]


def test_what_was_scored_anew_decides() -> None:
    network = Network(scores(num=10, share=0.1))

    def reverse(plan: Plan) -> pd.DataFrame:
        left = network.score_rest(plan)
        return left.assign(score=-left["score"])

    plan = TimeBudgetPlanner(network.table, network.measure, reverse, 4).plan(GREEDY, "time_reduction", 0.3)
    assert gone(plan) == ["o00", "o09", "o08"]


def test_parts_that_went_go_with_the_block_around_them() -> None:
    network = Network(table(**{"a.b": 0.1, "c": 0.1, "a": 0.2, "d": 0.1, "ab": 0.1}))

    def score_rest(plan: Plan) -> pd.DataFrame:
        """What is left of a block takes less time."""
        left = network.score_rest(plan).set_index("operator")
        for name in gone(plan):
            if name == "a.b":
                left.loc["a", ["latency_share", "score"]] = [0.1, 0.0]
        return left.reset_index()

    planner = TimeBudgetPlanner(network.table, network.measure, score_rest, 4)
    plan = planner.plan(GREEDY, "time_reduction", 0.2)
    assert gone(plan) == ["a"]  # a.b is inside of it
    assert network.saved(plan) == pytest.approx(0.2)


@pytest.mark.parametrize("max_measurements", [0, 5])
def test_a_round_takes_nothing_more_where_the_one_before_reached_the_amount(max_measurements: int) -> None:
    network = Network(table(a=0.3, b=0.05, c=0.05, d=0.2))
    planner = network.planner(max_measurements)
    assert gone(planner.plan(GREEDY, "time_reduction", 0.3)) == ["a"]
    assert gone(planner.plan(GREEDY, "time_reduction", 0.35)) == ["a", "b"]
    assert network.scored_rest == [["a"]]


def test_out_of_reach_where_nothing_is_left() -> None:
    planner = Network(table(a=0.3, b=0.1)).planner(max_measurements=5)
    with pytest.raises(PlanError, match=r"out of reach, nothing is left after 0\.4"):
        planner.plan(MethodParams(iterative_step=0.4), "time_reduction", 0.5)


def test_believed_rounds_count_what_a_plan_promises() -> None:
    network = Network(table(a=0.3, b=0.3))
    assert gone(network.planner(max_measurements=0).plan(GREEDY, "time_reduction", 0.55)) == ["a", "b"]
