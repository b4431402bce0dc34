"""The study of ways to choose operators: what each costs at equal measured time, and who knew it before."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from pelap.report.tables import CACHED, split_row

CRITERIA = (
    *("score", "avg_dist", "std_dist"),
    *("random", "magnitude", "taylor", "output_error", "block_similarity"),
)
"""Columns of a table of scores that operators can be chosen by; a table has the last five if asked for."""
JUDGED = ("joint_score", "sum_of_scores", "norm_of_scores")
"""What the prune stage says of a plan as a whole."""
YARDSTICKS = ("random", "magnitude")
"""Methods that every other one is compared with, by these names."""
BETTER, SAME, WORSE = "better", "not told apart", "worse"
CONFIDENCE = 0.95
UNNAMED = "plan"
"""What the one method of a study is called whose plans name an amount alone."""
_LOST = ("lost_before", "lost_after")
_MEANS = ("time_reduction", "fd_pruned", "fd_tuned", *_LOST)
"""Columns of plans whose mean and deviation over seeds are taken."""
METHOD_COLUMNS = [
    *("dataset", "method", "amount", "n"),
    *(f"{column}_{end}" for column in _MEANS for end in ("mean", "std")),
    *("lost_after_low", "lost_after_high", "p_value", "verdict"),
    *(f"vs_{other}{end}" for other in (*YARDSTICKS, "curve") for end in ("", "_std", "_tuned", "_tuned_std")),
]
_PARTS = {"avg_dist": ("shift_lost_before", "spread_lost_before"),
          "std_dist": ("shift_lost_before", "spread_lost_before")}  # fmt: skip
"""Further targets of a predictor: the distance's two parts, which LD-Pruner's two terms are after."""
_PLAN_PREDICTORS = (*JUDGED, "num_operators", "time_reduction")
_ROUNDING = 1e-12
"""Relative size below which a spread of differences is rounding, not data."""
_FEWEST = 3
"""Points below which a rank correlation says nothing."""
_AMOUNT = re.compile(r"(?:(?P<method>.+)-)?(?P<amount>\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


@dataclass(frozen=True)
class PlanOf:
    """A plan as the prune stage left it."""

    operators: tuple[str, ...]
    target: str
    """What an amount was asked of, such as ``time_reduction``."""
    time_reduction: float
    """Share of the network's time that it saves, by the clock of the prune stage."""
    judged: Mapping[str, float | None]
    """The joint score, and what it would be, were the operators independent: `JUDGED`."""


@dataclass(frozen=True)
class Cell:
    """All that is known of one data set and seed."""

    dataset: str
    seed: int
    scores: pd.DataFrame
    plans: Mapping[str, PlanOf]
    metrics: Mapping[str, Mapping[str, float | None]]
    dense: str
    """The model that was pruned."""
    control: str | None
    """The dense model trained as long as the pruned ones, if there is one."""
    tuned: Mapping[str, str]
    """Of a plan the pruned network trained further, where there is one."""
    budget: pd.DataFrame
    """Columns model, steps, image_ms and the distance."""

    def value(self, model: str | None, metric: str) -> float:
        """A metric of a model, NaN where there is none."""
        found = None if model is None else self.metrics.get(model, {}).get(metric)
        return np.nan if found is None else found


def method_of(plan: str) -> tuple[str, float] | None:
    """Method and amount by a plan's name, `knapsack-35`; None where the name has no amount at its end."""
    found = _AMOUNT.fullmatch(plan)
    return (found["method"] or UNNAMED, float(found["amount"])) if found else None


def shift_of(metric: str) -> str:
    """The metric that holds the part of a Frechet distance that is a shift of the mean."""
    return "shift" if metric == "fid" else metric.replace("fd", "shift", 1)


def plan_table(cells: Iterable[Cell], metric: str) -> pd.DataFrame:
    """Every plan of every cell.

    Args:
        cells: In the order of the rows.
        metric: The Frechet distance.

    Returns:
        dataset, seed, plan; method, target, amount (empty for plans of one operator); operator (of those
        alone); num_operators; time_reduction (measured, 0..1); `JUDGED`; the distance before and after
        further training; lost_before and lost_after, what it is above the dense model's and above the
        control's; the same of its shift and of the rest, its spread; for plans of one operator `CRITERIA`.
    """
    cells = list(cells)
    known = [name for name in CRITERIA if any(name in cell.scores for cell in cells)]
    rows = [_plan_row(cell, name, plan, metric, known) for cell in cells for name, plan in cell.plans.items()]
    return pd.DataFrame(rows)


def _plan_row(cell: Cell, name: str, plan: PlanOf, metric: str, criteria: Sequence[str]) -> dict[str, object]:
    single = name == f"only-{plan.operators[0]}" if len(plan.operators) == 1 else False
    method, amount = (None if single else method_of(name)) or (None if single else name, np.nan)
    pruned, tuned = f"pruned-{name}", cell.tuned.get(name)
    judged = {key: np.nan if plan.judged[key] is None else plan.judged[key] for key in JUDGED}
    row: dict[str, object] = {
        "dataset": cell.dataset,
        "seed": cell.seed,
        "plan": name,
        "method": method,
        "target": None if single else plan.target,
        "amount": amount,
        "operator": plan.operators[0] if single else None,
        "num_operators": len(plan.operators),
        "time_reduction": plan.time_reduction,
        **judged,
        "fd_pruned": cell.value(pruned, metric),
        "fd_tuned": cell.value(tuned, metric),
    }
    lost = {}
    for kind, key in (("", metric), ("shift_", shift_of(metric))):
        lost[f"{kind}lost_before"] = cell.value(pruned, key) - cell.value(cell.dense, key)
        lost[f"{kind}lost_after"] = cell.value(tuned, key) - cell.value(cell.control, key)
    for when in _LOST:
        lost[f"spread_{when}"] = lost[when] - lost[f"shift_{when}"]
    own = _criteria(cell.scores, plan.operators[0], criteria) if single else dict.fromkeys(criteria, np.nan)
    return row | lost | own


def _criteria(scores: pd.DataFrame, operator: str, criteria: Sequence[str]) -> dict[str, float]:
    row = scores[scores["operator"] == operator]
    values = {name: pd.to_numeric(row[name], errors="coerce") for name in criteria if name in scores}
    return {name: float(values[name].iloc[0]) if name in values and len(row) else np.nan for name in criteria}


def method_table(plans: pd.DataFrame) -> pd.DataFrame:
    """Each method and amount over seeds.

    Args:
        plans: From `plan_table`.

    Returns:
        dataset, method, amount, n; mean and std (of a sample) of time, distances and what is lost; the 95 %
        interval (Student's t) of the mean of lost_after, the p_value of its being 0, and the verdict:
        ``better`` or ``worse`` than the control where the interval leaves 0 out, else ``not told apart``,
        empty for a single seed. No correction is made for the number of rows.
        Then mean and std of the paired difference of distances to each of `YARDSTICKS` at the same amount, of
        pruned and (``_tuned``) of further trained networks; and to the ``curve`` at the same measured time:
        the method with the most amounts, between its plans of the same seed, from no loss at no time on.
    """
    keys = ["dataset", "method", "amount"]
    chosen = _beside_curve(plans.dropna(subset=["amount"]))
    rows = []
    for names, group in chosen.groupby(keys, sort=False):
        row: dict[str, Any] = dict(zip(keys, names, strict=True)) | {"n": int(group["fd_pruned"].count())}
        for column in _MEANS:
            row |= _moments(column, group[column])
        low, high = _interval(group["lost_after"])
        row |= {"lost_after_low": low, "lost_after_high": high, "verdict": _verdict(low, high)}
        row["p_value"] = _p_value(group["lost_after"])
        rows.append(row | _against_yardsticks(group, chosen))
    return pd.DataFrame(rows, columns=METHOD_COLUMNS)


def _moments(name: str, values: "pd.Series[float]") -> dict[str, float]:
    return {f"{name}_mean": float(values.mean()), f"{name}_std": float(values.std(ddof=1))}


def _p_value(differences: "pd.Series[float]") -> float:
    """Of the two-sided t-test that the mean is 0; NaN where it says nothing."""
    values = differences.dropna().to_numpy(dtype=float)
    if len(values) < 2 or np.ptp(values) <= _ROUNDING * np.abs(values).max():
        return float("nan")
    return float(stats.ttest_1samp(values, 0).pvalue)


def _interval(values: "pd.Series[float]") -> tuple[float, float]:
    """Of the mean, by Student's t; NaN for fewer than two values."""
    values = values.dropna()
    if len(values) < 2:
        return np.nan, np.nan
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return float(values.mean()) - half, float(values.mean()) + half


def _verdict(low: float, high: float) -> str | None:
    if np.isnan(low):
        return None
    return BETTER if high < 0 else WORSE if low > 0 else SAME


def curve_of(plans: pd.DataFrame) -> str | None:
    """The method with the most amounts, the first of several; None where none has two."""
    counts = plans.groupby("method", sort=False)["amount"].nunique()
    return str(counts.idxmax()) if len(counts) and counts.max() > 1 else None


def _beside_curve(plans: pd.DataFrame) -> pd.DataFrame:
    """The plans with what each loses more than the curve does at the same time, in the same cell."""
    curve = curve_of(plans)
    columns = {f"curve_{when}": pd.Series(np.nan, index=plans.index) for when in _LOST}
    for _, cell in plans.groupby(["dataset", "seed"], sort=False):
        points = cell[cell["method"] == curve].sort_values("time_reduction")
        for when in _LOST:
            known = points.dropna(subset=["time_reduction", when])
            if len(known):
                at, lost = ([0.0, *known[column]] for column in ("time_reduction", when))
                there = np.interp(cell["time_reduction"], at, lost, left=np.nan, right=np.nan)
                columns[f"curve_{when}"].loc[cell.index] = cell[when] - there
    return plans.assign(**columns)


def _against_yardsticks(group: pd.DataFrame, plans: pd.DataFrame) -> dict[str, float]:
    """Paired differences to what chance, and the size of weights, would have chosen."""
    method, keys = group["method"].iloc[0], ["dataset", "seed", "amount"]
    result: dict[str, float] = {}
    for other in YARDSTICKS:
        rival = plans[(plans["method"] == other) & (method != other)]
        pairs = group.merge(rival, on=keys, suffixes=("", "_other"))
        for end, column in (("", "fd_pruned"), ("_tuned", "fd_tuned")):
            difference = (pairs[column] - pairs[f"{column}_other"]).astype(float)
            result[f"vs_{other}{end}"] = float(difference.mean())
            result[f"vs_{other}{end}_std"] = float(difference.std(ddof=1))
    for end, when in (("", "lost_before"), ("_tuned", "lost_after")):
        result[f"vs_curve{end}"] = float(group[f"curve_{when}"].mean())
        result[f"vs_curve{end}_std"] = float(group[f"curve_{when}"].std(ddof=1))
    return result


def several(plans: pd.DataFrame) -> pd.DataFrame:
    """The plans of more than one operator."""
    return plans[plans["num_operators"] > 1]


def additivity_table(plans: pd.DataFrame) -> pd.DataFrame:
    """What the joint score of a plan is in units of what the scores of its operators add up to.

    Args:
        plans: From `plan_table`; those of more than one operator count.

    Returns:
        A row per dataset and amount, and one of all amounts, whose amount is empty: n; median and quartiles
        of joint score / sum of scores, and / root of the sum of squared scores; rank correlation with each.
    """
    chosen = several(plans).dropna(subset=["joint_score", "sum_of_scores", "norm_of_scores"])
    rows = []
    for dataset, group in chosen.groupby("dataset", sort=False):
        groups = [*group.groupby("amount"), (np.nan, group)]
        rows += [{"dataset": dataset, "amount": amount, **_additivity(part)} for amount, part in groups]
    columns = ["dataset", "amount", *_additivity(chosen)]
    return pd.DataFrame(rows, columns=columns)


def _additivity(plans: pd.DataFrame) -> dict[str, float]:
    row: dict[str, float] = {"n": len(plans)}
    for name in ("sum", "norm"):
        column = plans[f"{name}_of_scores"]
        ratio = plans["joint_score"] / column.where(column > 0)
        quartiles = ratio.quantile([0.25, 0.5, 0.75])
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
    """Rank correlations of what is known before with what a removal then costs.

    Args:
        plans: From `plan_table`.

    Returns:
        `PREDICTION_COLUMNS`. ``of`` operators: plans of one operator, all seeds of a data set together, with
        the p-value, as if they were independent. ``of`` plans: those of several operators, within each seed;
        mean and std over seeds. ``of`` plans of N: the same of the amount that most methods have alone.
        n counts points, num_seeds the seeds with a correlation (operators: with points).
    """
    single = plans[plans["operator"].notna()]
    rows = []
    for dataset in dict.fromkeys(plans["dataset"]):
        of_set = single[single["dataset"] == dataset]
        for predictor in (name for name in CRITERIA if name in plans):
            for target in (*_LOST, *_PARTS.get(predictor, ())):
                rows.append((dataset, "operators", predictor, target, *_pooled(of_set, predictor, target)))
        whole = several(plans)[several(plans)["dataset"] == dataset]
        amount = shared_amount(whole)
        groups = {"plans": whole, f"plans of {amount:g}": whole[whole["amount"] == amount]}
        for (of, group), predictor, target in product(groups.items(), _PLAN_PREDICTORS, _LOST):
            rows.append((dataset, of, predictor, target, *_by_seed(group, predictor, target)))
    table = pd.DataFrame(rows, columns=PREDICTION_COLUMNS)
    return table[table["n"] > 0].reset_index(drop=True)


def _pooled(plans: pd.DataFrame, predictor: str, target: str) -> tuple[float, float, float, int, int]:
    there = plans.dropna(subset=[predictor, target])
    rho, p_value, num = spearman(there[predictor], there[target])
    return rho, np.nan, p_value, num, there["seed"].nunique()


def _by_seed(plans: pd.DataFrame, predictor: str, target: str) -> tuple[float, float, float, int, int]:
    found = [spearman(group[predictor], group[target]) for _, group in plans.groupby("seed")]
    values = pd.Series([rho for rho, _, _ in found], dtype=float).dropna()
    num = sum(num for _, _, num in found)
    return float(values.mean()), float(values.std(ddof=1)), np.nan, num, len(values)


def rival_table(cells: Iterable[Cell], metric: str) -> pd.DataFrame:
    """What saves time without pruning: fewer sampling steps, and deep features that steps share.

    Args:
        cells: With their budgets.
        metric: The Frechet distance.

    Returns:
        dataset, model, steps, n; mean and std over seeds of time_saved (share of the dense model's time per
        picture at its full steps, with the decoder), fd, fd_less_control (the control at full steps), and
        fd_less_full (the same network at full steps, every one of them computed).
    """
    parts = [_rivals_of(cell, metric) for cell in cells]
    table = pd.concat(parts, ignore_index=True)
    keys = ["dataset", "model", "steps"]
    rows = []
    for names, group in table.groupby(keys, sort=False):
        row = dict(zip(keys, names, strict=True)) | {"n": int(group["fd"].count())}
        for column in ("time_saved", "fd", "fd_less_control", "fd_less_full"):
            row |= _moments(column, group[column])
        rows.append(row)
    return pd.DataFrame(rows)


def _rivals_of(cell: Cell, metric: str) -> pd.DataFrame:
    """The rows of one budget that are no network that was pruned."""
    plans = list(cell.plans)
    table = cell.budget[[_is_rival(name, plans) for name in cell.budget["model"]]]
    dense = table[table["model"] == cell.dense]
    full = dense.loc[dense["steps"] == dense["steps"].max(), "image_ms"]
    whole = float(full.iloc[0]) if len(full) else np.nan
    return pd.DataFrame(
        {
            "dataset": cell.dataset,
            "model": table["model"],
            "steps": table["steps"],
            "time_saved": 1 - table["image_ms"].astype(float) / whole,
            "fd": table[metric].astype(float),
            "fd_less_control": table[metric].astype(float) - cell.value(cell.control, metric),
            "fd_less_full": [
                float(distance) - cell.value(name if name in cell.metrics else cell.dense, metric)
                for name, distance in zip(table["model"], table[metric], strict=True)
            ],
        }
    )


def _is_rival(model: str, plans: Sequence[str]) -> bool:
    family, plan = split_row(model, plans)
    return plan is None or family == CACHED


def shared_amount(methods: pd.DataFrame) -> float:
    """The amount that most methods have, the least of several; NaN where there is none."""
    counts = methods.groupby("amount")["method"].nunique()
    return float(counts.index[int(counts.argmax())]) if len(counts) else float("nan")


def best_at(methods: pd.DataFrame, amount: float) -> str | None:
    """The method, of one data set's, that lost least after further training, else before it."""
    there = methods[methods["amount"] == amount]
    for column in ("lost_after_mean", "lost_before_mean"):
        if there[column].notna().any():
            return str(there["method"].iloc[int(there[column].argmin())])
    return None


def thresholds(methods: pd.DataFrame) -> dict[str, float | None]:
    """Up to which amount each method with several is no worse than the control; None: with none of them.

    That is, loses no more than one standard deviation over seeds after further training. It is stricter than
    a verdict: three seeds tell little apart.

    Args:
        methods: From `method_table`, of one data set. A method stops at its first amount that is not known.
    """
    result: dict[str, float | None] = {}
    for method, rows in methods.groupby("method", sort=False):
        rows = rows.sort_values("amount")
        fine = rows["lost_after_mean"] <= rows["lost_after_std"]
        if len(rows) > 1 and rows["lost_after_std"].notna().any():
            result[str(method)] = max(rows.loc[fine.cummin(), "amount"], default=None)
    return result
