"""The study of ways to choose operators, as tables and figures."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pelap.core import files
from workflow.studies.choosing import FIGURES, NEEDS, TABLES, TARGET, figures
from workflow.studies.choosing.plans import plan_table, read_cell
from workflow.studies.choosing.tables import (
    additivity_table,
    best_at,
    method_table,
    prediction_table,
    rival_table,
    shared_amount,
    thresholds,
)
from workflow.studies.common import demand_alike, finished_cells, write_figure

ALIKE = ("num_images", "num_reference", "sampler", "extractors")  # in the protocols of all cells
_WIDTH = 80  # characters of a line in the terminal


def summarise(root: Path, asked: Sequence[str] | None = None) -> None:
    """Write tables and figures from the finished cells under `root`, or those `asked` for.

    Raises:
        DataError: As `finished_cells`, or a file of a cell cannot be read.
        PlanError: A plan of one cannot be read.
    """
    runs = finished_cells(root, NEEDS, TARGET, asked)
    said = {run: files.read_mapping(run.evaluate_protocol) for run in runs}
    demand_alike({run: {key: own.get(key) for key in ALIKE} for run, own in said.items()})
    cells = [read_cell(run) for run in runs]
    metric = cells[0].metric
    plans, rivals = plan_table(cells, metric), rival_table(cells, metric)
    methods, additivity, prediction = method_table(plans), additivity_table(plans), prediction_table(plans)
    for name, table in zip(TABLES, (plans, methods, additivity, prediction, rivals), strict=True):
        files.write_csv(root / f"{name}.csv", table)
    drawn = (
        figures.threshold_figure(methods, rivals, cells, metric),
        figures.methods_figure(plans, methods, metric),
        figures.additivity_figure(plans, additivity),
        figures.prediction_figure(plans, prediction, metric),
    )
    for name, figure in zip(FIGURES, drawn, strict=True):
        write_figure(root / f"{name}.png", figure)
    _print_findings(methods)
    print(f"{len(cells)} cells summarised in {root}")


def _print_findings(methods: pd.DataFrame) -> None:
    """Of each data set the best method at the amount that most have, and how far methods can be taken."""
    amount = shared_amount(methods)
    for dataset, rows in methods.groupby("dataset", sort=False):
        best = best_at(rows, amount)
        reach = [f"{name} {'none' if end is None else f'{end:g}'}" for name, end in thresholds(rows).items()]
        said = [] if best is None else [f"least lost at {amount:g}: {best}"]
        said += [f"no worse than the control up to {', '.join(reach)}"] if reach else []
        text = f"{dataset}: {'; '.join(said)}"
        print(textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False))
