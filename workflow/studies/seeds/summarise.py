"""The cells of a sweep as mean, standard deviation and paired differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import REAL_ROW, RunPaths
from pelap.report import verdicts
from pelap.report.tables import HIGHER, column, is_distance
from workflow.studies.common import (
    finished_cells,
    long_table,
    over_seeds,
    place_of,
    say_incomplete,
    write_figure,
)
from workflow.studies.margins import Place, half_steps_cost, lost_by_steps, margins_of
from workflow.studies.seeds import NEEDS, TARGET
from workflow.studies.seeds.figures import budget_figure, sweep_figure

BASELINE = "baseline"  # the model that every other one is compared with, seed by seed
LOST_BY_STEPS = "lost_by_steps"  # metric of the dense model's rows in the budget, 0 at the most steps
_KEYS = ["dataset", "model", "metric"]
_PS = ("p_value", "p_holm", "p_equivalent")
_BUDGET = ("model", "steps", "image_ms")
_BUDGET_KEYS = ["dataset", "model", "steps", "metric"]


def summarise(root: Path, asked: Sequence[str] | None = None) -> None:
    """Write tables and figures of all metrics, and of the budget, of the finished cells under `root`.

    Raises:
        DataError: As `finished_cells`, or a file of a cell cannot be read.
    """
    runs = finished_cells(root, NEEDS, TARGET, asked)
    cells = pd.concat([long_table(run, files.read_metrics(run.metrics)) for run in runs], ignore_index=True)
    metric = next(filter(is_distance, cells["metric"]), "")
    margins = margins_of(((place_of(run)[0], metric), place_of(run)[1], _cost(run, metric)) for run in runs)
    summary = compared(cells, _control(runs), margins)
    files.write_csv(root / "summary.csv", summary)
    write_figure(root / "summary.png", sweep_figure(summary, cells))
    timed = [run for run in runs if run.budget.is_file()]
    if timed:
        budget = over_seeds(pd.concat([_budget(run, metric) for run in timed]), _BUDGET_KEYS)
        files.write_csv(root / "budget.csv", budget)
        scored = {place_of(run)[0]: _dense(run) for run in timed}
        dense = {dataset: name for dataset, name in scored.items() if name is not None}
        write_figure(root / "budget.png", budget_figure(budget, dense, cells))
    print(f"{len(runs)} cells summarised in {root / 'summary.csv'}")


def compared(
    cells: pd.DataFrame, control: str | None = None, margins: Mapping[Place, float] | None = None
) -> pd.DataFrame:
    """A long table over seeds; values that are missing or infinite are left out, and named.

    Args:
        cells: Columns dataset, seed, model, metric, value.
        control: Another model to compare with, such as the dense model trained on.
        margins: By data set and metric, what is too small to matter.

    Returns:
        One row per dataset, model and metric, in order of appearance: mean, std (of a sample), n; of the
        differences to `baseline` at the same seed diff_to_baseline, diff_std, diff_n (pairs), diff_low and
        diff_high (95 % interval), p_value, p_holm, with margins p_equivalent, and of metrics that have a
        better side the verdict of `pelap.report.verdicts`, all models of a data set and metric being one
        family. With a control the same of it: diff_to_<control>, diff_to_<control>_std,
        p_value_to_<control>, and so on. With margins the last column is the margin.

    Raises:
        DataError: A value is given twice.
    """
    say_incomplete(cells, ["dataset", "model"])
    cells = cells.dropna(subset=["value"])
    twice = cells[cells.duplicated([*_KEYS, "seed"])]
    if len(twice):
        where = ", ".join(f"{key} {twice.iloc[0][key]}" for key in [*_KEYS, "seed"])
        raise DataError(f"sweep: two values for {where}; give each run once")
    table, margins = over_seeds(cells, _KEYS), margins or {}
    for other in dict.fromkeys([BASELINE, control or BASELINE]):
        if other == BASELINE or other in set(cells["model"]):
            found = _differences(cells, other, margins).rename(columns=_names(other))
            table = table.merge(found, how="left", on=_KEYS)
    if margins:
        places = zip(table["dataset"], table["metric"], strict=True)
        table["margin"] = [margins.get(place) for place in places]
    return table


def _names(other: str) -> dict[str, str]:
    """What the columns of the differences to a model are called."""
    head, tail = ("diff", "") if other == BASELINE else (f"diff_to_{other}", f"_to_{other}")
    names = {name: f"{head}_{name}" for name in ("std", "n", "low", "high")}
    return names | {"mean": f"diff_to_{other}"} | {name: f"{name}{tail}" for name in (*_PS, "verdict")}


def _differences(cells: pd.DataFrame, other: str, margins: Mapping[Place, float]) -> pd.DataFrame:
    """Of the differences to another model at the same seed: mean, std, n, and what the rule says.

    Its own, which is 0, and those of real pictures are in no family.
    """
    theirs = cells[cells["model"] == other].drop(columns="model")
    pairs = cells.merge(theirs, on=["dataset", "metric", "seed"], suffixes=("", "_other"))
    pairs["value"] -= pairs["value_other"]
    told: list[Any] = []
    families = pairs[~pairs["model"].isin([other, REAL_ROW])]
    for place, family in families.groupby(["dataset", "metric"], sort=False):
        told += _told(family, margins.get(tuple(map(str, place)))).to_dict("records")
    columns = [*_KEYS, "low", "high", *(_PS if margins else _PS[:-1]), "verdict"]
    return over_seeds(pairs, _KEYS).merge(pd.DataFrame(told, columns=columns), how="left", on=_KEYS)


def _told(family: pd.DataFrame, margin: float | None) -> pd.DataFrame:
    """What the rule says of the models of one data set and metric."""
    models, better = family.groupby("model", sort=False), column(str(family["metric"].iloc[0])).better
    table = verdicts.over_seeds([own["value"] for _, own in models], margin, better == HIGHER)
    table = table.join(models[_KEYS].first().reset_index(drop=True))
    return table if better else table.assign(verdict=None)


def _dense(run: RunPaths) -> str | None:
    """The variant that was scored, which has a point for each number of steps."""
    scored: str | None = _said(run.evaluate_protocol).get("scored_variant")
    return scored


def _cost(run: RunPaths, metric: str) -> float:
    """What half of the sampling steps cost it, NaN where that was not measured."""
    if not run.budget.is_file():
        return np.nan
    return half_steps_cost(files.read_csv(run.budget, _BUDGET), _dense(run), metric)


def _budget(run: RunPaths, metric: str) -> pd.DataFrame:
    """One cell's budget as a long table, with the number of sampling steps, and what fewer of them cost."""
    dataset, seed = place_of(run)
    table, dense = files.read_csv(run.budget, _BUDGET).astype({"model": str}), _dense(run)
    lost = table["steps"].map(lost_by_steps(table, dense, metric))
    table[LOST_BY_STEPS] = lost.where(table["model"] == dense)
    table = table.melt(["model", "steps"], var_name="metric", value_name="value")
    return table.assign(dataset=dataset, seed=seed, value=table["value"].astype(float))


def _said(file: Path) -> dict[str, Any]:
    """A JSON file, if the cell has it."""
    return files.read_mapping(file) if file.is_file() else {}


def _control(runs: Sequence[RunPaths]) -> str | None:
    """The first network that was trained on from the dense one."""
    students = (student for run in runs for student in _said(run.distill_result).items())
    named = (name for name, how in students if isinstance(how, dict) and how.get("start") == "dense")
    return next(named, None)
