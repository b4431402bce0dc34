"""Every plan of every cell: what it saves, what it costs, and what its scores promised."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pelap.core import files
from pelap.core.paths import RunPaths, read_students
from pelap.core.tables import read_table
from pelap.report.tables import PRUNED
from pelap.surgery.plan import Plan, load_plan
from workflow.studies.common import PrunedCell, pruned_cell

CRITERIA = (
    *("score", "score_debiased", "avg_dist", "std_dist"),
    *("random", "magnitude", "taylor", "output_error", "block_similarity"),
)
"""Columns of a table of scores that operators can be chosen by; a table has the last five if asked for."""
JUDGED = ("joint_score", "sum_of_scores", "norm_of_scores")  # what the prune stage says of a plan as a whole
UNNAMED = "plan"  # what the one method of a study is called whose plans name an amount alone
LOST = ("lost_before", "lost_after")
_AMOUNT = re.compile(r"(?:(?P<method>.+)-)?(?P<amount>\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_TIME = "measured_time_reduction"
_SIZE = "params_after"


@dataclass(frozen=True)
class Cell(PrunedCell):
    """All that is known of one data set and seed."""

    scores: pd.DataFrame
    chosen: Mapping[str, Plan]  # the plans, as they were applied
    control: str | None  # the dense model trained as long as the pruned ones, if there is one
    tuned: Mapping[str, str]  # of a plan the pruned network trained further, where there is one
    budget: pd.DataFrame  # columns model, steps, image_ms and the distance


def read_cell(run: RunPaths) -> Cell:
    """Read and check the files of a cell.

    Raises:
        DataError: One line: what is wrong in which of them.
        PlanError: A plan cannot be read.
    """
    students = read_students(run)
    control = next((name for name, how in students.items() if how["start"] == "dense"), None)
    pruned = [(how["plan"], name) for name, how in students.items() if how["start"] == "pruned"]
    tuned = dict(reversed(pruned))  # by the first student of each plan
    own = pruned_cell(run, [*tuned.values(), *([control] if control else [])], [_TIME, _SIZE], JUDGED)
    budget = files.read_csv(run.budget, ("model", "steps", own["metric"]))
    if "image_ms" not in budget:  # where no times were measured
        budget = budget.assign(image_ms=float("nan"))
    scores = read_table(run.scores, run.score_protocol, ("operator", "score"))
    chosen = {name: load_plan(run.plan(name)) for name in own["plans"]}
    return Cell(**own, scores=scores, chosen=chosen, control=control, tuned=tuned, budget=budget)


def method_of(plan: str) -> tuple[str, float] | None:
    """Method and amount by a plan's name, `knapsack-35`; None where the name has no amount at its end."""
    found = _AMOUNT.fullmatch(plan)
    return (found["method"] or UNNAMED, float(found["amount"])) if found else None


def shift_of(metric: str) -> str:
    """The metric that holds the part of a Frechet distance that is a shift of the mean."""
    return "shift" if metric == "fid" else metric.replace("fd", "shift", 1)


def plan_table(cells: Iterable[Cell], metric: str) -> pd.DataFrame:
    """Every plan of every cell, in their order.

    Returns:
        dataset, seed, plan; method, target, amount (empty for plans of one operator); operator (of those
        alone); num_operators; time_reduction (measured, 0..1); params_after; `JUDGED`; the distance before
        and after further training; lost_before and lost_after, what it is above the dense model's and above
        the control's; the same of its shift and of the rest, its spread; for plans of one operator
        `CRITERIA`.
    """
    cells = list(cells)
    known = [name for name in CRITERIA if any(name in cell.scores for cell in cells)]
    return pd.DataFrame([_row(cell, name, metric, known) for cell in cells for name in cell.plans])


def _row(cell: Cell, name: str, metric: str, criteria: Sequence[str]) -> dict[str, Any]:
    plan, result = cell.chosen[name], cell.plans[name]
    pruned, tuned = f"{PRUNED}-{name}", cell.tuned.get(name)
    operators = [entry.operator for entry in plan.operators]
    single = operators[0] if operators == [name.removeprefix("only-")] else None
    method, amount = (None if single else method_of(name)) or (None if single else name, np.nan)
    row = {
        "dataset": cell.dataset,
        "seed": cell.seed,
        "plan": name,
        "method": method,
        "target": None if single else next(iter(plan.target or {}), ""),
        "amount": amount,
        "operator": single,
        "num_operators": len(operators),
        "time_reduction": result[_TIME],
        _SIZE: result[_SIZE],
        **{key: np.nan if result[key] is None else result[key] for key in JUDGED},
        "fd_pruned": cell.value(pruned, metric),
        "fd_tuned": cell.value(tuned, metric),
    }
    for kind, key in (("", metric), ("shift_", shift_of(metric))):
        row[f"{kind}lost_before"] = cell.value(pruned, key) - cell.value(cell.dense, key)
        row[f"{kind}lost_after"] = cell.value(tuned, key) - cell.value(cell.control, key)
    for when in LOST:
        row[f"spread_{when}"] = row[when] - row[f"shift_{when}"]
    own = cell.scores[cell.scores["operator"] == single].apply(pd.to_numeric, errors="coerce")
    return row | {key: next(iter(own.get(key, ())), np.nan) for key in criteria}
