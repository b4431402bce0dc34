"""What pruning saved and cost in every task, over seeds."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths
from workflow.studies.common import (
    NAMED_CELLS,
    demand_alike,
    finished_cells,
    over_seeds,
    say_incomplete,
    write_figure,
)
from workflow.studies.tasks import NEEDS, TARGET
from workflow.studies.tasks.cell import KEYS, TaskCell, cell_values, first_cells, read_cell
from workflow.studies.tasks.figures import tasks_figure
from workflow.studies.tasks.page import page

ALIKE = ("item", "metric", "dense", "control", "students", "plan_names", "rows_per_latent")  # by the cells
ALIKE_PROTOCOL = ("num_images", "num_reference", "sampler", "prompts", "medium", "sound")
"""By the protocols. The extractor may differ: a classifier is trained for each seed."""
ALIKE_CLASSIFIER = ("steps", "width")  # the same by what the protocols say of the classifier: how it was made
_ERRORS = ("_se", "_std", "_iqr_ms")  # tails of errors of other metrics, which have no mean of their own


def summarise(root: Path, asked: Sequence[str] | None = None) -> None:
    """Write tables, page and figure from the finished cells ``TASK/DATASET/seedN`` under `root`.

    Unless they were asked for, cells that have a file that cannot be read are named on the terminal and left
    out.

    Raises:
        DataError: As `finished_cells`, or the seeds of a task were not measured alike.
    """
    runs = finished_cells(root, NEEDS, TARGET, asked, NAMED_CELLS)
    found = {run: read_cell(run) for run in runs} if asked else _readable(runs, root)
    cells = list(found.values())
    if not asked:
        _name_missing(cells, root)
    for first in first_cells(cells):
        demand_alike({run: _stated(run, cell) for run, cell in found.items() if cell.place == first.place})
    values = pd.concat(map(cell_values, cells), ignore_index=True)
    say_incomplete(values, ["task", "dataset", "model"])
    measured = values[~values["metric"].str.endswith(_ERRORS)]
    summary = over_seeds(measured, KEYS)
    files.write_csv(root / "cells.csv", values)
    files.write_csv(root / "tasks.csv", summary)
    files.write_text(root / "tasks.md", page(values, cells))
    write_figure(root / "tasks.png", tasks_figure(summary, cells))
    print(f"{len(cells)} cells of {len(first_cells(cells))} tasks summarised in {root / 'tasks.md'}")


def _readable(runs: Iterable[RunPaths], root: Path) -> dict[RunPaths, TaskCell]:
    """The cells that can be read; of the others a line on the terminal says why."""
    found = {}
    for run in runs:
        try:
            found[run] = read_cell(run)
        except DataError as error:
            print(f"left out {run.root.relative_to(root)}: {error}")
    if not found:
        raise DataError(f"{root}: no cell can be read; run `snakemake --cores 4 {TARGET}` again")
    return found


def _name_missing(cells: Sequence[TaskCell], root: Path) -> None:
    """Name the seeds that other tasks have and whose folder is not even there."""
    seeds = sorted({cell.seed for cell in cells})
    for first, seed in itertools.product(first_cells(cells), seeds):
        folder = root / first.task / first.dataset / f"seed{seed}"
        if not folder.exists():
            print(f"missing: {folder.relative_to(root)}")


def _stated(run: RunPaths, cell: TaskCell) -> dict[str, Any]:
    """What has to be the same in every seed of a task."""
    protocol = files.read_mapping(run.evaluate_protocol)
    judge = protocol.get("classifier") or {}
    return (
        {key: getattr(cell, key) for key in ALIKE}
        | {key: protocol.get(key) for key in ALIKE_PROTOCOL}
        | {f"classifier.{key}": judge.get(key) for key in ALIKE_CLASSIFIER}
    )
