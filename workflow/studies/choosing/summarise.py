"""The study of ways to choose operators, as tables and figures."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pelap.core import files
from workflow.studies.choosing import FIGURES, NEEDS, TABLES, TARGET, figures
from workflow.studies.choosing.plans import LOST, plan_table, read_cell
from workflow.studies.choosing.tables import (
    additivity_table,
    debiased_table,
    method_table,
    prediction_table,
    rival_table,
    shared_amount,
)
from workflow.studies.common import demand_alike, finished_cells, say_incomplete, write_figure
from workflow.studies.margins import half_steps_cost, margins_of

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
    named = plans.dropna(subset=["amount"])
    say_incomplete(named.melt(["dataset", "seed", "plan"], LOST, "metric"), ["dataset", "plan"])
    costs = (((each.dataset,), each.seed, half_steps_cost(each.budget, each.dense, metric)) for each in cells)
    margins = {dataset: margin for (dataset,), margin in margins_of(costs).items()}
    methods = method_table(plans, margins)
    additivity, prediction = additivity_table(plans), prediction_table(plans)
    tables = (plans, methods, additivity, prediction, rivals, debiased_table(cells, plans, margins))
    for name, table in zip(TABLES, tables, strict=True):
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
    """Of each data set the verdicts on the methods at the amount that most have, the least lost first."""
    amount = shared_amount(methods)
    for dataset, rows in methods[methods["amount"] == amount].groupby("dataset", sort=False):
        ranked = rows.sort_values(["lost_after_mean", "lost_before_mean"])
        said = [f"{word}: {', '.join(own)}" for word, own in ranked.groupby("verdict", sort=False)["method"]]
        text = "; ".join([f"{dataset}, {amount:g} against the control", *said])
        print(textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False))
