"""study: the controls of the collapse study over seeds, as tables and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths, StudyPaths
from pelap.report.figures.style import to_png
from workflow.studies.cells import finished_cells, place_of
from workflow.studies.collapse.tables import (
    CELL_COLUMNS,
    CHANNELS,
    DISTANCE,
    FIGURE_METRICS,
    MIN_SEEDS,
    OPEN,
    left_out,
    study_figure,
    summarise,
)

NAMES = ("variant", "verdict", "reason")
"""Columns of `collapse.csv` that are no metrics."""
QUALITY = (DISTANCE, "psnr", "ssim")
"""What is taken from `metrics.json`."""
DEMANDED = [*NAMES, *(name for name in (*FIGURE_METRICS, OPEN, CHANNELS) if name not in QUALITY)]
"""Columns of `collapse.csv` without which there is no figure."""
REAL_ROW = "real"


def study(root: Path, asked: Sequence[str] | None = None) -> None:
    """Write `summary.csv`, `cells.csv` and `summary.png` from the finished cells under `root`.

    Args:
        root: The grid's folder.
        asked: The cells; see `finished_cells`.

    Raises:
        DataError: As `finished_cells`, or a file of one cannot be read.
    """
    runs = finished_cells(root, _needed, "collapse_study", asked)
    paths = StudyPaths(root)
    tables = [_table(run) for run in runs]
    cells = pd.concat([_cell(run, table) for run, table in zip(runs, tables, strict=True)], ignore_index=True)
    summary, few = summarise(cells)
    files.write_csv(paths.summary, summary)
    files.write_csv(paths.cells, cells.dropna(subset=["value"]))
    with files.atomic_path(paths.figure) as partial:
        partial.write_bytes(to_png(study_figure(cells, summary, _real(runs))))
    _print_verdicts(runs, tables)
    if len(few):
        print(f"left out, fewer than {MIN_SEEDS} seeds: {left_out(few, summary)}")
    print(f"{len(runs)} cells summarised in {paths.summary}")


def _needed(run: RunPaths) -> tuple[Path, ...]:
    return run.collapse_table, run.metrics


def _table(run: RunPaths) -> pd.DataFrame:
    """What the collapse stage found, one row a control, after the columns of names numbers alone."""
    file = run.collapse_table
    table = files.read_csv(file, DEMANDED)
    texts = table.drop(columns=list(NAMES)).select_dtypes(exclude="number").columns
    if len(texts):
        raise DataError(f"{file}: no numbers in the columns {', '.join(texts)}; make it again")
    names = table["variant"]
    if names.isna().any() or names.duplicated().any():
        raise DataError(f"{file}: a variant has no name or two rows; make it again")
    return table


def _cell(run: RunPaths, table: pd.DataFrame) -> pd.DataFrame:
    """One cell's values: `CELL_COLUMNS`, by control and metric, NaN where there is no value."""
    dataset, seed = place_of(run)
    quality = files.read_metrics(run.metrics)
    absent = [name for name in table["variant"] if name not in quality]
    if absent:
        raise DataError(f"{run.metrics}: lacks {', '.join(absent)}; make it again")
    rows = []
    for row in table.drop(columns=["verdict", "reason"]).to_dict(orient="records"):
        control = str(row.pop("variant"))
        values = row | {name: quality[control].get(name) for name in QUALITY}
        rows += [(control, dataset, seed, metric, value) for metric, value in values.items()]
    return pd.DataFrame(rows, columns=CELL_COLUMNS).astype({"value": float})


def _real(runs: list[RunPaths]) -> dict[str, float]:
    """Fréchet distance of real pictures by data set, mean over seeds."""
    found: dict[str, list[float]] = {}
    for run in runs:
        value = files.read_metrics(run.metrics).get(REAL_ROW, {}).get(DISTANCE)
        found.setdefault(place_of(run)[0], []).append(math.nan if value is None else value)
    return {dataset: sum(values) / len(values) for dataset, values in found.items()}


def _print_verdicts(runs: list[RunPaths], tables: list[pd.DataFrame]) -> None:
    """How many seeds of each control ended how."""
    verdicts = pd.concat(
        [
            table[["variant", "verdict"]].assign(dataset=place_of(run)[0])
            for run, table in zip(runs, tables, strict=True)
        ]
    )
    for (dataset, control), found in verdicts.groupby(["dataset", "variant"], sort=False)["verdict"]:
        counts = ", ".join(f"{name} {count}" for name, count in found.value_counts().items())
        print(f"{dataset} {control}: {counts}")
