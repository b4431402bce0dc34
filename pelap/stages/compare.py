"""compare: the cells of a sweep as mean, standard deviation and paired differences."""

import re
from pathlib import Path

import pandas as pd

from pelap import io
from pelap.errors import DataError
from pelap.report.style import to_png
from pelap.report.sweep import summarise, sweep_figure

PATTERN = "*/seed*/evaluate/metrics.json"
SEED = re.compile(r"seed(\d+)")


def compare(sweep: Path) -> None:
    """Write `summary.csv` and `summary.png` from every finished cell under `sweep`.

    Raises:
        DataError: There is none.
    """
    files = [file for file in sorted(sweep.glob(PATTERN)) if SEED.fullmatch(file.parts[-3])]
    if not files:
        raise DataError(f"{sweep}: no {PATTERN} here; run `snakemake --cores 4 all_seeds` first")
    cells = pd.concat([_cell(file) for file in files], ignore_index=True)
    summary = summarise(cells)
    io.write_csv(sweep / "summary.csv", summary)
    with io.atomic_path(sweep / "summary.png") as partial:
        partial.write_bytes(to_png(sweep_figure(summary, cells)))
    print(f"{len(files)} cells summarised in {sweep / 'summary.csv'}")


def _cell(file: Path) -> pd.DataFrame:
    """One cell's metrics: columns dataset, seed, model, metric, value."""
    dataset, seed = file.parts[-4], int(file.parts[-3].removeprefix("seed"))
    rows = [
        {"dataset": dataset, "seed": seed, "model": model, "metric": metric, "value": value}
        for model, values in io.read_metrics(file).items()
        for metric, value in values.items()
    ]
    return pd.DataFrame(rows, columns=["dataset", "seed", "model", "metric", "value"])
