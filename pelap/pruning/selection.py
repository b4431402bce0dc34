"""From a table of scores to a plan of a wanted size: which operators to remove.

================  ===============================================================================
``lowest_first``  the least important first, until the target is reached: LD-Pruner's one-shot choice
``per_ms``        the least important for what it saves first
``knapsack``      of all sets that reach the target, the one whose importances have the least sum
================  ===============================================================================

How important an operator is says a criterion: LD-Pruner's score, one of its formulas, or a further column of
the table (see `pelap.scoring.criteria`).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array
from torch import nn

from pelap.config.pruning import TARGETS, Formula, Selection
from pelap.core.errors import PlanError
from pelap.profiling.cost import count_params
from pelap.scoring.statistic import combine
from pelap.surgery.operators import is_inside
from pelap.surgery.plan import Plan, PlanEntry, check_disjoint
from pelap.surgery.replacements import ReplacementSpec, is_replacement

# Columns of a table of scores that a plan is made from; `latency_share` only for a time target.
NAMES = ("operator", "kind", "replacement")
NUMBERS = ("score", "params", "latency_share")
# Further columns, and what they are taken for where they are missing.
OPTIONAL = {"replacement_params": 0, "replacement_share": 0.0, "stopped_early": False}
SCORE = "score"  # the criterion that is LD-Pruner's score, and the column that holds it
FORMULAS = get_args(Formula)
DISTANCES = ("avg_dist", "std_dist")  # columns that the formulas of the score combine
_SLACK = 1e-6  # relative error up to which solvers call a constraint met
_TIE = 1e-6  # how much what is saved counts beside the importance, both as shares of their largest values


class Candidate(NamedTuple):
    """An operator that may be chosen."""

    importance: float
    saves: float  # what it contributes to the target


Candidates: TypeAlias = Mapping[str, Candidate]


class Choice(NamedTuple):
    """What a selection found; where it falls short of the amount, how far it can get at most."""

    operators: list[str]
    saves: float


def make_plan(
    scores: pd.DataFrame,
    target: str,
    amount: float,
    criterion: str = SCORE,
    selection: Selection = "lowest_first",
) -> Plan:
    """Choose operators until the target is reached.

    Args:
        scores: With the columns `NAMES` and `NUMBERS`, and that of the criterion; rows in any order.
        target: ``time_reduction`` (share of the UNet's time, 0..1), ``num_params`` or
            ``num_operators``.
        amount: How much of it.
        criterion: ``score``, a formula of the score, or the name of a column; operators of low values go.
        selection: See the head of this module.

    Operators that are infinitely important are not taken, nor, by score, those whose scoring stopped early:
    all that is known of them is that others matter less. A block takes the place of its parts.

    Raises:
        PlanError: The table is not one of scores or lacks the criterion, or the target is unknown or out of
            reach.
    """
    if target not in TARGETS or not amount > 0:
        raise PlanError(f"prune.{target}: {amount:g}: give a positive amount of {', '.join(TARGETS)}")
    scores = _checked(scores, demand_latency=target == "time_reduction")
    importance = importance_by(scores, criterion)
    # Only what is known by the score depends on how far an operator was scored.
    stopped = scores["stopped_early"] & (criterion == SCORE or criterion in FORMULAS)
    known = ~stopped & np.isfinite(importance)
    candidates = {
        name: Candidate(value, saves)
        for name, value, saves in zip(
            scores["operator"][known], importance[known], _contributions(scores, target)[known], strict=True
        )
    }
    choice = SELECTIONS[selection](candidates, amount)
    if choice.saves < amount * (1 - _SLACK):
        num_stopped, num_never = int(stopped.sum()), int((~known & ~stopped).sum())
        without = f" without the {num_never} that are infinitely important" if num_never else ""
        mend = f", or score the {num_stopped} that stopped early to the end (score.early_stop: null)"
        raise PlanError(
            f"prune.{target}: {amount:g} is out of reach, the {len(candidates)} operators give at most "
            f"{choice.saves:.4g}{without}; ask for less{mend if num_stopped else ''}"
        )
    return _plan(scores, choice.operators, {target: amount})


def importance_by(scores: pd.DataFrame, criterion: str) -> "pd.Series[float]":
    """A criterion's value of every row of a table of scores.

    Raises:
        PlanError: The table has no such column, or there is something else than numbers in it.
    """
    columns = DISTANCES if criterion in FORMULAS else (criterion,)
    for column in columns:
        if column not in scores:
            raise PlanError(
                f"scores: no column {column}; add it to score.criteria and make the table again with "
                "`pelap score`"
            )
    values = scores[list(columns)].apply(pd.to_numeric, errors="coerce")
    if values.isna().any(axis=None):
        row = int(values.isna().any(axis=1).argmax()) + 1
        raise PlanError(
            f"scores: row {row}: {' or '.join(columns)} is no number; make the table again with `pelap score`"
        )
    if criterion not in FORMULAS:
        own: pd.Series[float] = values[criterion].astype(float)
        return own
    parts = (torch.tensor(values[column].to_list(), dtype=torch.float64) for column in DISTANCES)
    return pd.Series(combine(criterion, *parts).numpy(), index=scores.index)  # type: ignore[arg-type]


def _in_order(candidates: Candidates, amount: float) -> Choice:
    return _first(candidates, amount, lambda name: candidates[name].importance)


def _by_ms(candidates: Candidates, amount: float) -> Choice:
    saving = {name: candidate for name, candidate in candidates.items() if candidate.saves > 0}
    return _first(saving, amount, lambda name: saving[name].importance / saving[name].saves)


def _first(candidates: Candidates, amount: float, key: Callable[[str], float]) -> Choice:
    """Those of the least keys that save the amount together; failing that, those that come nearest to it."""
    chosen: list[str] = []
    nearest = Choice([], 0.0)
    for name in sorted(candidates, key=lambda name: (key(name), name)):
        if any(is_inside(name, other) for other in chosen):
            continue
        chosen = [other for other in chosen if not is_inside(other, name)] + [name]
        # A block takes the place of its parts, so what is saved may fall again.
        saves = sum(candidates[other].saves for other in chosen)
        nearest = Choice(chosen, saves) if saves > nearest.saves else nearest
        if nearest.saves >= amount:
            break
    return nearest


def _knapsack(candidates: Candidates, amount: float) -> Choice:
    """The set of least importance that saves the amount, as an integer programme.

    Of an operator and those around it at most one is taken: one row for each operator with nothing inside.
    An importance below 0 (errors that cancel) counts as 0: it is no reason to take more than is asked for.
    """
    if not candidates:
        return Choice([], 0.0)
    names = sorted(candidates)
    importances, saves = np.array([candidates[name] for name in names]).T
    importances = importances.clip(min=0)
    # Of sets that are equally important, the one that saves least beyond the amount.
    ties = _TIE * (importances.max() or 1.0) / (np.abs(saves).max() or 1.0)
    innermost = [name for name in names if not any(is_inside(other, name) for other in names)]
    around = [[name == other or is_inside(name, other) for other in names] for name in innermost]
    result = milp(
        importances + ties * saves,
        integrality=np.ones(len(names)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(csr_array(np.array(around, dtype=float)), ub=1),
            LinearConstraint(saves[None], lb=amount),
        ],
    )
    if result.x is None:
        return Choice([], _most_saved(candidates))
    chosen = [name for name, taken in zip(names, result.x, strict=True) if taken > 0.5]
    chosen.sort(key=lambda name: (candidates[name].importance, name))
    return Choice(chosen, sum(candidates[name].saves for name in chosen))


SELECTIONS: dict[Selection, Callable[[Candidates, float], Choice]] = {
    "lowest_first": _in_order,
    "per_ms": _by_ms,
    "knapsack": _knapsack,
}


def _most_saved(candidates: Candidates) -> float:
    """What all candidates can contribute at most, a block or its parts."""

    def of(name: str) -> float:
        inside = [other for other in candidates if is_inside(other, name)]
        return max(candidates[name].saves, sum(of(other) for other in _outermost(inside)))

    return sum(max(0.0, of(name)) for name in _outermost(list(candidates)))


def _outermost(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(is_inside(name, other) for other in names)]


def plan_of(scores: pd.DataFrame, plan: Plan) -> Plan:
    """A plan that somebody else chose, with the totals from the scores.

    Raises:
        PlanError: It names something that was not scored, or an operator twice.
    """
    scores = _checked(scores, demand_latency=False)
    names = [entry.operator for entry in plan.operators]
    unknown = [name for name in names if name not in set(scores["operator"])]
    if unknown:
        raise PlanError(
            f"plan: {unknown[0]!r} is not among the scored operators; take names from this model's scores"
        )
    check_disjoint(names)
    rows = scores.set_index("operator").loc[names]
    saved = int((rows["params"] - rows["replacement_params"]).sum())
    time_reduction = float((rows["latency_share"] - rows["replacement_share"]).sum())
    return dataclasses.replace(plan, time_reduction=time_reduction, num_params=saved)


def single_operator_plans(scores: pd.DataFrame, num: int) -> dict[str, Plan]:
    """Plans of one operator each, by its name, `num` at most: evenly spread over the ranking by score.

    To see what an operator costs by itself. Operators that stopped early, or whose score is infinite, have no
    place in the ranking.
    """
    scores = _checked(scores, demand_latency=False)
    ranked = scores[~scores["stopped_early"] & np.isfinite(scores["score"])].sort_values(
        ["score", "operator"]
    )
    num = min(num, len(ranked))
    places = [(2 * i + 1) * len(ranked) // (2 * num) for i in range(num)]
    return {name: _plan(scores, [name], {"num_operators": 1}) for name in ranked["operator"].iloc[places]}


def check_scores(scores: pd.DataFrame, unet: nn.Module) -> None:
    """Refuse a table of scores that is another network's.

    Raises:
        PlanError: It is no table of scores, or an operator does not exist here, or has another number of
            parameters.
    """
    scores, modules = _checked(scores, demand_latency=False), dict(unet.named_modules())
    for name, params in zip(scores["operator"], scores["params"], strict=True):
        there = count_params(modules[name]) if name in modules else None
        if there != params:
            what = "is not there" if there is None else f"has {there} parameters"
            raise PlanError(
                f"scores: operator {name!r} {what} in this {type(unet).__name__}; they are another model's, "
                "score this one with `pelap score`"
            )


def _checked(scores: pd.DataFrame, demand_latency: bool) -> pd.DataFrame:
    """The table with numbers that are numbers; a share of time that is not there counts as 0."""
    if not demand_latency and "latency_share" not in scores:
        scores = scores.assign(latency_share=0.0)
    for column in (*NAMES, *NUMBERS):
        if column not in scores:
            raise PlanError(f"scores: no column {column}; make the table again with `pelap score`")
    # Spreadsheets leave empty rows and blanks.
    scores = scores.dropna(how="all", subset=[*NAMES])
    scores = scores.assign(**{name: scores[name].str.strip() for name in NAMES}) if len(scores) else scores
    scores = scores.assign(**{name: scores.get(name, value) for name, value in OPTIONAL.items()})
    columns = [*NUMBERS, "replacement_params", "replacement_share"]
    if scores.empty:
        raise PlanError("scores: no row; make the table again with `pelap score`")
    numbers = scores[columns].apply(pd.to_numeric, errors="coerce")
    # A score may be infinite: without that operator nothing finite comes out.
    bad = scores["operator"].isna() | scores["operator"].duplicated() | numbers["score"].isna()
    bad |= ~np.isfinite(numbers.drop(columns="score")).all(axis=1)
    bad |= ~scores["stopped_early"].isin([True, False])
    bad |= ~scores["replacement"].map(is_replacement)
    if bad.any():
        where = f"row {int(bad.to_numpy().argmax()) + 1}"
        raise PlanError(
            f"scores: {where}: every operator needs a name of its own, a replacement, finite "
            f"{', '.join(columns)}, and a stopped_early that is True or False; make the table again with "
            "`pelap score`"
        )
    stopped = scores["stopped_early"].astype(bool)
    return scores.assign(**{column: numbers[column] for column in columns}, stopped_early=stopped)


def _contributions(scores: pd.DataFrame, target: str) -> "pd.Series[float]":
    """What each operator contributes to the target."""
    column = {
        "time_reduction": scores["latency_share"] - scores["replacement_share"],
        "num_params": scores["params"] - scores["replacement_params"],
        "num_operators": pd.Series(1, index=scores.index),
    }[target]
    return column.astype(float)


def _plan(scores: pd.DataFrame, chosen: list[str], target: dict[str, float]) -> Plan:
    rows = scores.set_index("operator").loc[chosen]
    entries = tuple(
        PlanEntry(str(name), str(row["kind"]), ReplacementSpec(str(row["replacement"])))
        for name, row in rows.iterrows()
    )
    return plan_of(scores, Plan(entries, target))
