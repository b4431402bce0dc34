"""Plans that save a measured share of the time, in one go or in rounds with the rest scored anew in between.

A sum of operators' times is not what a network without them saves: the clock reads that. And an operator's
score holds while everything else is in place (LD-Pruner leaves the dependencies between operators open):
after some have gone, the others can be scored again (greedy).
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import pandas as pd

from pelap.config import MethodParams
from pelap.core.errors import PlanError
from pelap.pruning.selection import make_plan
from pelap.surgery.plan import Plan, PlanEntry, joined

TOLERANCE = 0.01  # share of the time that a plan may miss a target by; no other is looked for then

Measure: TypeAlias = Callable[[Plan], float]
"""From a plan to the share of the network's time that it saves by the clock."""
ScoreRest: TypeAlias = Callable[[Plan], pd.DataFrame]
"""From a plan to the scores of what it leaves: how much the score of the network rises without an operator
more, and shares of the untouched network's time."""


@dataclass(frozen=True)
class _State:
    """What has been removed, what that saves, and the scores of the rest."""

    plan: Plan
    saved: float
    scores: pd.DataFrame


class TimeBudgetPlanner:
    """Makes plans of one network.

    Args:
        scores: Of the untouched network.
        measure: Reads the clock.
        score_rest: Scores what a plan leaves.
        max_measurements: Plans to measure at most for a time target, before the nearest is taken; 0: none,
            the times in the scores are believed.
    """

    def __init__(
        self, scores: pd.DataFrame, measure: Measure, score_rest: ScoreRest, max_measurements: int
    ) -> None:
        self._measure = measure
        self._score_rest = score_rest
        self._max_measurements = max_measurements
        self._states: dict[tuple[MethodParams, int], _State] = {}
        self._start = _State(Plan(()), 0.0, scores)

    def plan(self, method: MethodParams, target: str, amount: float) -> Plan:
        """A plan that saves so much of a target; see `make_plan`, also for what it raises."""
        if target != "time_reduction":
            return make_plan(self._start.scores, target, amount, method.criterion, method.selection)
        # The last round starts after as many whole steps as are below the amount.
        num_rounds = int((amount - TOLERANCE) / method.iterative_step) if method.iterative_step else 0
        plan, _ = self._towards(self._after(method, num_rounds), method, amount)
        return dataclasses.replace(plan, target={target: amount})

    def _after(self, method: MethodParams, num_rounds: int) -> _State:
        """What is there after so many rounds; the way to a larger amount goes through the same states."""
        if num_rounds == 0:
            return self._start
        assert method.iterative_step is not None
        key = (method, num_rounds)
        if key not in self._states:
            before = self._after(method, num_rounds - 1)
            plan, saved = self._towards(before, method, num_rounds * method.iterative_step)
            nothing_more = plan == before.plan
            self._states[key] = before if nothing_more else _State(plan, saved, self._score_rest(plan))
        return self._states[key]

    def _towards(self, state: _State, method: MethodParams, amount: float) -> tuple[Plan, float]:
        """The plan that goes on from a state and saves nearest to the amount, and what it saves."""
        if state.plan.operators and state.saved >= amount - TOLERANCE:
            return state.plan, state.saved
        if state.scores.empty:
            raise PlanError(
                f"prune.time_reduction: {amount:g} is out of reach, nothing is left after {state.saved:.4g}; "
                "ask for less"
            )

        def more(ask: float) -> Plan:
            return make_plan(state.scores, "time_reduction", ask, method.criterion, method.selection)

        if self._max_measurements == 0:
            plan = more(amount - state.saved)
            return joined(state.plan, plan), state.saved + plan.time_reduction
        return self._nearest(state, more, amount)

    def _nearest(self, state: _State, more: Callable[[float], Plan], amount: float) -> tuple[Plan, float]:
        """Ask for more or less until the clock says the amount."""
        ask, low, high = amount - state.saved, 0.0, float("inf")
        tried: dict[tuple[PlanEntry, ...], float] = {}
        for trial in range(self._max_measurements):
            try:
                operators = joined(state.plan, more(ask)).operators
            except PlanError:
                if trial == 0:
                    raise
                high = min(high, ask)  # more than there is
            else:
                if operators not in tried:
                    tried[operators] = self._measure(Plan(operators))
                saved = tried[operators]
                if abs(saved - amount) <= TOLERANCE:
                    break
                low, high = (max(low, ask), high) if saved < amount else (low, min(high, ask))
                gained = max(saved - state.saved, TOLERANCE)
                ask *= min(2.0, max(0.5, (amount - state.saved) / gained))
            if not low < ask < high:
                ask = (low + high) / 2 if math.isfinite(high) else 2 * low
        # Of two plans that miss the amount the one that saves enough is better.
        miss = {plan: (saved < amount - TOLERANCE, abs(saved - amount)) for plan, saved in tried.items()}
        operators = min(miss, key=lambda plan: miss[plan])
        return Plan(operators), tried[operators]
