"""The controls of the collapse study over seeds, as tables and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths
from workflow.studies.collapse import NEEDS, TARGET
from workflow.studies.collapse.figures import CHANNELS, DISTANCE, FIGURE_METRICS, OPEN, study_figure
from workflow.studies.common import finished_cells, long_table, place_of, real_distance, write_figure
from workflow.studies.seeds.summarise import compared

MIN_SEEDS = 3  # fewer say nothing about a standard deviation
CELL_COLUMNS = ["control", "dataset", "seed", "metric", "value"]
SUMMARY_COLUMNS = ["control", "dataset", "metric", "mean", "std", "n", "diff_to_baseline", "diff_std"]
SUMMARY_COLUMNS += ["diff_n", "diff_low", "diff_high", "p_value", "p_holm", "verdict"]
NAMES = ("variant", "verdict", "reason")  # columns of `collapse.csv` that are no metrics
QUALITY = (DISTANCE, "psnr", "ssim")  # what is taken from `metrics.json`
DEMANDED = [*NAMES, *(name for name in (*FIGURE_METRICS, OPEN, CHANNELS) if name not in QUALITY)]
"""Columns of `collapse.csv` without which there is no figure."""


def summarise(root: Path, asked: Sequence[str] | None = None) -> None:
    """Write `summary.csv`, `cells.csv` and `summary.png` from the finished cells under `root`.

    Raises:
        DataError: As `finished_cells`, or a file of a cell cannot be read.
    """
    runs = finished_cells(root, NEEDS, TARGET, asked)
    tables = [_table(run) for run in runs]
    cells = pd.concat(map(_cell, runs, tables), ignore_index=True)
    summary, few = over_enough_seeds(cells)
    files.write_csv(root / "summary.csv", summary)
    files.write_csv(root / "cells.csv", cells.dropna(subset=["value"]))
    measured = pd.concat([long_table(run, files.read_metrics(run.metrics)) for run in runs])
    real = real_distance(measured, DISTANCE)
    write_figure(root / "summary.png", study_figure(cells, summary, real))
    _print_verdicts(runs, tables)
    if len(few):
        print(f"left out, fewer than {MIN_SEEDS} seeds: {left_out(few, summary)}")
    print(f"{len(runs)} cells summarised in {root / 'summary.csv'}")


def over_enough_seeds(cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Statistics over seeds of a table of `CELL_COLUMNS`; missing and infinite values are not counted.

    Returns:
        `SUMMARY_COLUMNS` (see `workflow.studies.seeds.summarise.compared`), one row per dataset, control and
        metric in order of appearance; and the rows with fewer seeds than `MIN_SEEDS`, which the first table
        does not have. What no seed has a value for is in neither.
    """
    finite = cells[np.isfinite(cells["value"])].rename(columns={"control": "model"})
    table = compared(finite).rename(columns={"model": "control"})[SUMMARY_COLUMNS]
    enough = table["n"] >= MIN_SEEDS
    return table[enough].reset_index(drop=True), table[~enough].reset_index(drop=True)


def left_out(few: pd.DataFrame, summary: pd.DataFrame) -> str:
    """What too few seeds have, each named as briefly as it can be: data set, control or metrics."""
    names = []
    for dataset, rows in few.groupby("dataset", sort=False):
        kept = summary[summary["dataset"] == dataset]
        if kept.empty:
            names.append(str(dataset))
            continue
        for control, metrics in rows.groupby("control", sort=False)["metric"]:
            some = f" ({', '.join(metrics)})" if (kept["control"] == control).any() else ""
            names.append(f"{dataset} {control}{some}")
    return ", ".join(names)


def _table(run: RunPaths) -> pd.DataFrame:
    """What the collapse stage found, one row a control, after the columns of names numbers alone."""
    file = run.collapse_table
    table = files.read_csv(file, DEMANDED)
    names = table["variant"]
    if names.isna().any() or names.duplicated().any():
        raise DataError(f"{file}: a variant has no name or two rows; make it again")
    return table


def _cell(run: RunPaths, table: pd.DataFrame) -> pd.DataFrame:
    """One cell's values: `CELL_COLUMNS`, by control and metric, NaN where there is no value."""
    quality = files.read_metrics(run.metrics)
    absent = [name for name in table["variant"] if name not in quality]
    if absent:
        raise DataError(f"{run.metrics}: lacks {', '.join(absent)}; make it again")
    found: Any = table.set_index("variant").drop(columns=["verdict", "reason"]).to_dict(orient="index")
    values = {name: own | {key: quality[name].get(key) for key in QUALITY} for name, own in found.items()}
    return long_table(run, values).rename(columns={"model": "control"})[CELL_COLUMNS]


def _print_verdicts(runs: Sequence[RunPaths], tables: Sequence[pd.DataFrame]) -> None:
    """How many seeds of each control ended how."""
    named = [table.assign(dataset=place_of(run)[0]) for run, table in zip(runs, tables, strict=True)]
    for (dataset, control), found in pd.concat(named).groupby(["dataset", "variant"], sort=False)["verdict"]:
        counts = ", ".join(f"{name} {count}" for name, count in found.value_counts().items())
        print(f"{dataset} {control}: {counts}")
