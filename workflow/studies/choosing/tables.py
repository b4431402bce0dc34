"""What each way to choose costs over seeds, who knew it before, and what saves time otherwise."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pelap.report import verdicts
from pelap.report.tables import CACHED, split_row
from workflow.studies.choosing.plans import CRITERIA, JUDGED, LOST, Cell
from workflow.studies.common import wide_over_seeds

DEBIASED = {"ld-pruner": "debiased", "knapsack": "knapsack-debiased"}  # the same by debiased scores
YARDSTICKS = ("random", "magnitude")  # methods that every other one is compared with, by these names
_MEANS = ("time_reduction", "params_after", "fd_pruned", "fd_tuned", *LOST)
"""Columns of plans that are averaged over seeds."""
_AGAINST = tuple(f"vs_{other}{end}" for other in (*YARDSTICKS, "curve") for end in ("", "_tuned"))
_JUDGED = {"n": "n_after", "low": "lost_after_low", "high": "lost_after_high"}
_JUDGED |= {name: name for name in ("p_value", "p_holm", "p_equivalent", "margin", "verdict")}
"""What the one rule says of lost_after, and what that is called here."""
_SPLIT = dict.fromkeys(("avg_dist", "std_dist"), ("shift_lost_before", "spread_lost_before"))
"""Further targets of a predictor: the distance's two parts, which LD-Pruner's two terms are after."""
_PLAN_PREDICTORS = (*JUDGED, "num_operators", "time_reduction")
_FEWEST = 3  # points below which a rank correlation says nothing


def method_table(plans: pd.DataFrame, margins: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Each method and amount of a `plan_table` over seeds.

    Args:
        plans: From `plan_table`.
        margins: By data set, what is too small to matter.

    Returns:
        dataset, method, amount, n; mean and std (of a sample) of time, size, distances and what is lost; of
        the mean of lost_after n_after, interval, p-values, margin and verdict of `pelap.report.verdicts`,
        the methods of a data set at one amount being one family.
        Then mean and std of the paired difference of distances to each of `YARDSTICKS` at the same amount, of
        pruned and (``_tuned``) of further trained networks; and to the ``curve`` at the same measured time:
        the method with the most amounts, between its plans of the same seed, from no loss at no time on.
        Last the verdicts on these, families and margin as above.
    """
    keys = ["dataset", "method", "amount"]
    named = _beside_yardsticks(_beside_curve(plans.dropna(subset=["amount"])))
    table = wide_over_seeds(named, keys, (*_MEANS, *_AGAINST), "fd_pruned")
    table.columns = [name.removesuffix("_mean") if name.startswith("vs_") else name for name in table.columns]
    judged = []
    for (dataset, _), rows in table.groupby(["dataset", "amount"], sort=False):
        told = _told(named, keys, rows, (margins or {}).get(str(dataset)))
        judged.append(told.set_index(rows.index))
    words = [f"{name}_verdict" for name in _AGAINST]
    family = pd.concat([table.iloc[:0], *judged]).reindex(table.index, columns=[*_JUDGED.values(), *words])
    last = 2 * len(_AGAINST)
    parts = table.iloc[:, :-last], family[[*_JUDGED.values()]], table.iloc[:, -last:], family[words]
    return pd.concat(parts, axis="columns")


def _told(plans: pd.DataFrame, keys: list[str], rows: pd.DataFrame, margin: float | None) -> pd.DataFrame:
    """What the one rule says of a family: of lost_after `_JUDGED`, of each of `_AGAINST` the verdict."""
    places = pd.MultiIndex.from_frame(rows[keys])
    own = dict(list(plans.groupby(keys, sort=False)))
    found = verdicts.over_seeds([own[place]["lost_after"] for place in places], margin)
    found = found.assign(margin=margin).reindex(columns=[*_JUDGED]).rename(columns=_JUDGED)
    for name in _AGAINST:
        theirs = verdicts.over_seeds([own[place][name] for place in places], margin)
        found[f"{name}_verdict"] = theirs["verdict"]
    return found


def curve_of(plans: pd.DataFrame) -> str | None:
    """The method with the most amounts, the first of several; None where none has two."""
    counts = plans.groupby("method", sort=False)["amount"].nunique()
    return str(counts.idxmax()) if len(counts) and counts.max() > 1 else None


def _beside_curve(plans: pd.DataFrame) -> pd.DataFrame:
    """The plans with what each loses more than the curve does at the same time, in the same cell."""
    curve = curve_of(plans)
    columns = {when: pd.Series(np.nan, index=plans.index) for when in LOST}
    for _, cell in plans.groupby(["dataset", "seed"], sort=False):
        points = cell[cell["method"] == curve].sort_values("time_reduction")
        for when in LOST:
            known = points.dropna(subset=["time_reduction", when])
            if len(known):
                at, lost = ([0.0, *known[column]] for column in ("time_reduction", when))
                there = np.interp(cell["time_reduction"], at, lost, left=np.nan, right=np.nan)
                columns[when].loc[cell.index] = cell[when] - there
    return plans.assign(vs_curve=columns["lost_before"], vs_curve_tuned=columns["lost_after"])


def _beside_yardsticks(plans: pd.DataFrame) -> pd.DataFrame:
    """The plans with the paired differences to what chance, and the size of weights, would have chosen."""
    keys, distances = ["dataset", "seed", "amount"], ["fd_pruned", "fd_tuned"]
    for place, other in enumerate(YARDSTICKS):
        theirs = plans[plans["method"] == other].drop_duplicates(keys).set_index(keys)[distances]
        there = plans[keys].join(theirs, on=keys)
        difference = (plans[distances] - there[distances]).astype(float)
        difference = difference.where(~plans["method"].isin(YARDSTICKS[: place + 1]))  # a pair once
        plans = plans.assign(
            **{f"vs_{other}": difference["fd_pruned"], f"vs_{other}_tuned": difference["fd_tuned"]}
        )
    return plans


def several(plans: pd.DataFrame) -> pd.DataFrame:
    """The plans of more than one operator."""
    return plans[plans["num_operators"] > 1]


def additivity_table(plans: pd.DataFrame) -> pd.DataFrame:
    """What the joint score of a plan of several operators is in units of what their scores add up to.

    Returns:
        A row per dataset and amount, and one of all amounts, whose amount is empty: n; median and quartiles
        of joint score / sum of scores, and / root of the sum of squared scores; rank correlation with each.
    """
    chosen = several(plans).dropna(subset=list(JUDGED))
    rows = [
        {"dataset": dataset, "amount": amount, **_additivity(part)}
        for dataset, group in chosen.groupby("dataset", sort=False)
        for amount, part in [*group.groupby("amount"), (np.nan, group)]
    ]
    return pd.DataFrame(rows, columns=["dataset", "amount", *_additivity(chosen)])


def _additivity(plans: pd.DataFrame) -> dict[str, float]:
    row: dict[str, float] = {"n": len(plans)}
    for name in ("sum", "norm"):
        column = plans[f"{name}_of_scores"]
        quartiles = (plans["joint_score"] / column.where(column > 0)).quantile([0.25, 0.5, 0.75])
        row |= zip((f"joint_over_{name}_{which}" for which in ("q1", "median", "q3")), quartiles, strict=True)
        row[f"rho_{name}"] = spearman(plans["joint_score"], column)[0]
    return row


def spearman(one: "pd.Series[float]", other: "pd.Series[float]") -> tuple[float, float, int]:
    """Rank correlation, its p-value and the number of pairs; NaN for few pairs, or if one does not vary."""
    there = one.notna() & other.notna()
    pairs = one[there].to_numpy(dtype=float), other[there].to_numpy(dtype=float)
    if there.sum() < _FEWEST or any((each == each[0]).all() for each in pairs):
        return np.nan, np.nan, int(there.sum())
    found = stats.spearmanr(*pairs)
    return float(found.statistic), float(found.pvalue), int(there.sum())


PREDICTION_COLUMNS = ["dataset", "of", "predictor", "target", "rho", "rho_std", "p_value", "n", "num_seeds"]


def prediction_table(plans: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations of what a `plan_table` says before with what a removal then costs.

    Returns:
        `PREDICTION_COLUMNS`. ``of`` operators: plans of one operator, all seeds of a data set together, with
        the p-value, as if they were independent. ``of`` plans: those of several operators, within each seed;
        mean and std over the seeds that have the most plans, as fewer are not the same choice of plans.
        ``of`` plans of N: the same of the amount that most methods have alone.
        n counts points, num_seeds the seeds with a correlation (operators: with points).
    """
    rows = []
    for dataset, own in plans.groupby("dataset", sort=False):
        single, whole = own[own["operator"].notna()], several(own)
        for predictor in (name for name in CRITERIA if name in plans):
            for target in (*LOST, *_SPLIT.get(predictor, ())):
                rows.append((dataset, "operators", predictor, target, *_pooled(single, predictor, target)))
        amount = shared_amount(whole)
        groups = {"plans": whole, f"plans of {amount:g}": whole[whole["amount"] == amount]}
        for (of, group), predictor, target in product(groups.items(), _PLAN_PREDICTORS, LOST):
            rows.append((dataset, of, predictor, target, *_by_seed(group, predictor, target)))
    table = pd.DataFrame(rows, columns=PREDICTION_COLUMNS)
    return table[table["n"] > 0].reset_index(drop=True)


def _pooled(plans: pd.DataFrame, predictor: str, target: str) -> tuple[float, float, float, int, int]:
    there = plans.dropna(subset=[predictor, target])
    rho, p, num = spearman(there[predictor], there[target])
    return rho, np.nan, p, num, there["seed"].nunique()


def _by_seed(plans: pd.DataFrame, predictor: str, target: str) -> tuple[float, float, float, int, int]:
    found = [spearman(own[predictor], own[target]) for _, own in plans.groupby("seed")]
    found = [each for each in found if each[2] == max(n for *_, n in found)]
    values = pd.Series([rho for rho, _, _ in found], dtype=float).dropna()
    return float(values.mean()), float(values.std(ddof=1)), np.nan, sum(n for *_, n in found), len(values)


def rival_table(cells: Iterable[Cell], metric: str) -> pd.DataFrame:
    """What saves time without pruning: fewer sampling steps, and deep features that steps share.

    Returns:
        dataset, model, steps, n; mean and std over seeds of time_saved (share of the dense model's time per
        picture at its full steps, with the decoder), fd, fd_less_control (the control at full steps), and
        fd_less_full (the same network at full steps, every one of them computed).
    """
    found = pd.concat([_rivals_of(cell, metric) for cell in cells], ignore_index=True)
    columns = ("time_saved", "fd", "fd_less_control", "fd_less_full")
    return wide_over_seeds(found, ["dataset", "model", "steps"], columns, "fd")


def _rivals_of(cell: Cell, metric: str) -> pd.DataFrame:
    """The rows of one budget that are no network that was pruned."""
    rows: list[dict[str, Any]] = []
    dense = cell.budget[cell.budget["model"] == cell.dense]
    whole = dense.loc[dense["steps"] == dense["steps"].max(), "image_ms"]
    for row in cell.budget.to_dict("records"):
        family, plan = split_row(row["model"], list(cell.plans))
        if plan is None or family == CACHED:
            full = row["model"] if row["model"] in cell.metrics else cell.dense
            rows.append({
                "dataset": cell.dataset, "model": row["model"], "steps": row["steps"],
                "time_saved": 1 - float(row["image_ms"]) / float(whole.iloc[0]) if len(whole) else np.nan,
                "fd": float(row[metric]),
                "fd_less_control": float(row[metric]) - cell.value(cell.control, metric),
                "fd_less_full": float(row[metric]) - cell.value(full, metric),
            })  # fmt: skip
    return pd.DataFrame(rows)


def debiased_table(
    cells: Iterable[Cell], plans: pd.DataFrame, margins: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """What choosing by debiased scores changes, of the cells that have the same plans by both scores.

    Returns:
        A row per dataset, method of `DEBIASED` and amount: n cells; mean and std over them of rho, the rank
        correlation of both scores of all operators, and of common, the operators of both plans over those of
        either; how much more further trained networks lose by it (difference, low, high, p-values, margin,
        verdict: see `pelap.report.verdicts`), the rows of a data set being one family.
    """
    found = [row for cell in cells for row in _debiased(cell, plans)]
    columns = ["dataset", "method", "amount", "rho", "common", "difference"]
    keys, rows = columns[:3], pd.DataFrame(found, columns=columns)
    tables = []
    for dataset, own in rows.groupby("dataset", sort=False):
        margin = (margins or {}).get(str(dataset))
        grouped = own.groupby(keys, sort=False)
        table = grouped[["rho", "common"]].agg(["mean", "std"])
        table.columns = ["_".join(each) for each in table.columns]
        told = verdicts.over_seeds([part for _, part in grouped["difference"]], margin)
        tables.append(pd.concat([table.reset_index(), told.assign(margin=margin)], axis=1))
    return pd.concat(tables, ignore_index=True) if tables else rows


def _debiased(cell: Cell, plans: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    mine = (plans["dataset"] == cell.dataset) & (plans["seed"] == cell.seed)
    own: dict[str, Any] = plans[mine].set_index("plan").to_dict("index")  # type: ignore[assignment]
    for (name, row), (method, other) in product(own.items(), DEBIASED.items()):
        plan = f"{other}{name.removeprefix(method)}"
        if row["method"] != method or plan not in own:
            continue
        rho = spearman(cell.scores["score"], cell.scores["score_debiased"])[0]
        one, two = ({entry.operator for entry in cell.chosen[each].operators} for each in (name, plan))
        more = own[plan]["lost_after"] - row["lost_after"]
        yield cell.dataset, method, row["amount"], rho, len(one & two) / len(one | two), more


def shared_amount(methods: pd.DataFrame) -> float:
    """The amount that most methods have, the least of several; NaN where there is none."""
    counts = methods.groupby("amount")["method"].nunique()
    return float(counts.index[int(counts.argmax())]) if len(counts) else float("nan")
