"""The cells of a sweep as mean, standard deviation and paired differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths
from workflow.studies.common import finished_cells, long_table, over_seeds, p_value, place_of, write_figure
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
    """A long table over seeds; missing values are left out.

    Returns:
        One row per dataset, model and metric, in order of appearance: mean, std (of a sample), n;
        diff_to_baseline and diff_std of the differences to `baseline` at the same seed; p_value of
        the paired t-test, NaN where there is none (no pair, one pair, differences that do not vary). With
        a control, such as the dense model trained on, the same of it: diff_to_<control>,
        diff_to_<control>_std, p_value_to_<control>.

    Raises:
        DataError: A value is given twice.
    """
    cells = cells.dropna(subset=["value"])
    twice = cells[cells.duplicated([*_KEYS, "seed"])]
    if len(twice):
        where = ", ".join(f"{key} {twice.iloc[0][key]}" for key in [*_KEYS, "seed"])
        raise DataError(f"sweep: two values for {where}; give each run once")
    table = over_seeds(cells, _KEYS)
    names = {BASELINE: ("diff_to_baseline", "diff_std", "p_value")}
    if control is not None and control in set(cells["model"]):
        names[control] = (f"diff_to_{control}", f"diff_to_{control}_std", f"p_value_to_{control}")
    for other, columns in names.items():
        table = table.merge(_differences(cells, other, columns), how="left", on=_KEYS)
    return table


def _differences(cells: pd.DataFrame, other: str, columns: Sequence[str]) -> pd.DataFrame:
    """Mean, standard deviation and p-value of the differences to another model at the same seed."""
    theirs = cells[cells["model"] == other].drop(columns="model")
    pairs = cells.merge(theirs, on=["dataset", "metric", "seed"], suffixes=("", "_other"))
    rows = []
    for keys, own in pairs.groupby(_KEYS, sort=False):
        ours, others = own["value"].to_numpy(), own["value_other"].to_numpy()
        p = p_value(ours - others, max(np.abs(ours).max(), np.abs(others).max()))
        difference = own["value"] - own["value_other"]
        rows.append((*keys, difference.mean(), difference.std(ddof=1), p))
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
