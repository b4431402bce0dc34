"""The cells of a sweep as mean, standard deviation and paired differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import REAL_ROW, RunPaths
from pelap.report import verdicts
from pelap.report.tables import HIGHER, column
from workflow.studies.common import (
    finished_cells,
    long_table,
    over_seeds,
    place_of,
    say_incomplete,
    write_figure,
)
from workflow.studies.seeds import NEEDS, TARGET
from workflow.studies.seeds.figures import budget_figure, sweep_figure

BASELINE = "baseline"  # the model that every other one is compared with, seed by seed
_KEYS = ["dataset", "model", "metric"]
_BUDGET = ("model", "steps", "image_ms")
_BUDGET_KEYS = ["dataset", "model", "steps", "metric"]


def summarise(root: Path, asked: Sequence[str] | None = None) -> None:
    """Write tables and figures of all metrics, and of the budget, of the finished cells under `root`.

    Raises:
        DataError: As `finished_cells`, or a file of a cell cannot be read.
    """
    runs = finished_cells(root, NEEDS, TARGET, asked)
    cells = pd.concat([long_table(run, files.read_metrics(run.metrics)) for run in runs], ignore_index=True)
    summary = compared(cells, _control(runs))
    files.write_csv(root / "summary.csv", summary)
    write_figure(root / "summary.png", sweep_figure(summary, cells))
    timed = [run for run in runs if run.budget.is_file()]
    if timed:
        budget = over_seeds(pd.concat(map(_budget, timed), ignore_index=True), _BUDGET_KEYS)
        files.write_csv(root / "budget.csv", budget)
        scored = {place_of(run)[0]: _said(run.evaluate_protocol).get("scored_variant") for run in timed}
        dense = {dataset: name for dataset, name in scored.items() if name is not None}
        write_figure(root / "budget.png", budget_figure(budget, dense, cells))
    print(f"{len(runs)} cells summarised in {root / 'summary.csv'}")


def compared(cells: pd.DataFrame, control: str | None = None) -> pd.DataFrame:
    """A long table over seeds; missing values are left out, and those that some seeds have are named.

    Returns:
        One row per dataset, model and metric, in order of appearance: mean, std (of a sample), n; of the
        differences to `baseline` at the same seed diff_to_baseline, diff_std, p_value, p_holm and, of metrics
        that have a better side, the verdict of `pelap.report.verdicts`, all models of a data set and metric
        being one family. With a control, such as the dense model trained on, the same of it:
        diff_to_<control>, diff_to_<control>_std, and so on.

    Raises:
        DataError: A value is given twice.
    """
    say_incomplete(cells, ["dataset", "model"])
    cells = cells.dropna(subset=["value"])
    twice = cells[cells.duplicated([*_KEYS, "seed"])]
    if len(twice):
        where = ", ".join(f"{key} {twice.iloc[0][key]}" for key in [*_KEYS, "seed"])
        raise DataError(f"sweep: two values for {where}; give each run once")
    table = over_seeds(cells, _KEYS)
    names = {BASELINE: ["diff_to_baseline", "diff_std", "p_value", "p_holm", "verdict"]}
    if control is not None and control in set(cells["model"]):
        judged = [f"{name}_to_{control}" for name in ("p_value", "p_holm", "verdict")]
        names[control] = [f"diff_to_{control}", f"diff_to_{control}_std", *judged]
    for other, columns in names.items():
        table = table.merge(_differences(cells, other, columns), how="left", on=_KEYS)
    return table


def _differences(cells: pd.DataFrame, other: str, columns: Sequence[str]) -> pd.DataFrame:
    """Of the differences to another model at the same seed.

    Its own, which is 0, and those of real pictures are in no family.
    """
    theirs = cells[cells["model"] == other].drop(columns="model")
    pairs = cells.merge(theirs, on=["dataset", "metric", "seed"], suffixes=("", "_other"))
    pairs["difference"] = pairs["value"] - pairs["value_other"]
    rows = []
    for (dataset, metric), family in pairs.groupby(["dataset", "metric"], sort=False):
        better = column(str(metric)).better
        sign = -1 if better == HIGHER else 1
        models = dict(list(family.groupby("model", sort=False)["difference"]))
        judged = verdicts.over_seeds(
            [sign * own for name, own in models.items() if name not in (other, REAL_ROW)]
        )
        told = iter(judged[["p_value", "p_holm", "verdict"]].itertuples(index=False))
        for name, own in models.items():
            p, p_holm, word = next(told) if name not in (other, REAL_ROW) else (np.nan, np.nan, None)
            said = word if better else None
            rows.append((dataset, name, metric, own.mean(), own.std(), p, p_holm, said))
    return pd.DataFrame(rows, columns=[*_KEYS, *columns])


def _budget(run: RunPaths) -> pd.DataFrame:
    """One cell's budget as a long table, with the number of sampling steps."""
    dataset, seed = place_of(run)
    table = files.read_csv(run.budget, _BUDGET).astype({"model": str})
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
