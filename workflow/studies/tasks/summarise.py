"""tasks: what pruning saved and cost in every task, over seeds."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import RunPaths, TasksPaths
from pelap.report.figures.style import to_png
from pelap.report.protocol import modality_names, rows_per_latent
from pelap.report.tables import is_distance
from workflow.studies.cells import TASK_PATTERN, finished_cells, place_of
from workflow.studies.tasks.figures import tasks_figure
from workflow.studies.tasks.tables import (
    TaskCell,
    cell_values,
    first_cells,
    page,
    summarise,
)

ALIKE = ("item", "metric", "dense", "control", "students", "plan_names", "rows_per_latent")
"""What has to be the same in every seed of a task, by its cell."""
ALIKE_PROTOCOL = ("num_images", "num_reference", "sampler", "prompts", "medium", "sound")
"""The same by the protocols. The extractor may differ: a classifier is trained for each seed."""
ALIKE_CLASSIFIER = ("steps", "width")
"""The same by what the protocols say of the classifier: how it was made."""
_RESULT = ("measured_time_reduction", "num_operators", "params_before", "params_after")
_DIFFERENCES = ("model", "against", "metric", "difference", "se")


def tasks(root: Path, asked: Sequence[str] | None = None) -> None:
    """Write tables, page and figure from the finished cells ``TASK/DATASET/seedN`` under `root`.

    Unless they were asked for, cells that have a file that cannot be read are named on the terminal and left
    out.

    Args:
        root: Folder of all tasks.
        asked: The cells; see `finished_cells`.

    Raises:
        DataError: As `finished_cells`, or the seeds of a task were not measured alike.
    """
    runs = finished_cells(root, _needed, "all_tasks", asked, TASK_PATTERN)
    found = {run: _cell(run) for run in runs} if asked else _readable(runs, root)
    if not asked:
        _name_missing(list(found.values()), root)
    _demand_alike(found)
    cells, paths = list(found.values()), TasksPaths(root)
    values = pd.concat([cell_values(cell) for cell in cells], ignore_index=True)
    summary = summarise(values)
    files.write_csv(paths.cells, values)
    files.write_csv(paths.summary, summary)
    files.write_text(paths.page, page(summary, values, cells))
    with files.atomic_path(paths.figure) as partial:
        partial.write_bytes(to_png(tasks_figure(summary, cells)))
    print(f"{len(cells)} cells of {len(first_cells(cells))} tasks summarised in {paths.page}")


def _task(run: RunPaths) -> str:
    return run.root.parents[1].name


def _needed(run: RunPaths) -> tuple[Path, ...]:
    return run.metrics, run.differences, run.prune_result, run.evaluate_protocol


def _readable(runs: Iterable[RunPaths], root: Path) -> dict[RunPaths, TaskCell]:
    """The cells that can be read; of the others a line on the terminal says why."""
    found = {}
    for run in runs:
        try:
            found[run] = _cell(run)
        except DataError as error:
            print(f"left out {run.root.relative_to(root)}: {error}")
    if not found:
        raise DataError(f"{root}: no cell can be read; run `snakemake --cores 4 all_tasks` again")
    return found


def _cell(run: RunPaths) -> TaskCell:
    dataset, seed = place_of(run)
    protocol = files.read_mapping(run.evaluate_protocol, ["scored_variant", "students"])
    metrics, dense, students = (
        files.read_metrics(run.metrics),
        protocol["scored_variant"],
        protocol["students"],
    )
    metric = next((name for name in metrics.get(dense, {}) if is_distance(name)), None)
    if metric is None:
        raise DataError(f"{run.metrics}: no Frechet distance of {dense}; evaluate again with models: all")
    if not isinstance(students, dict):
        raise DataError(f"{run.evaluate_protocol}: students: expected a mapping; evaluate again")
    plans = files.read_mapping(run.prune_result)
    for plan, result in plans.items():
        absent = [key for key in _RESULT if not isinstance(result, dict) or result.get(key) is None]
        if absent:
            raise DataError(f"{run.prune_result}: {plan}: lacks {', '.join(absent)}; prune again")
    wanted = [dense, *(f"pruned-{plan}" for plan in plans), *students]
    absent = [name for name in wanted if metrics.get(name, {}).get(metric) is None]
    if absent:
        raise DataError(f"{run.metrics}: lacks {metric} of {', '.join(absent)}; evaluate again")
    return TaskCell(
        task=_task(run),
        dataset=dataset,
        seed=seed,
        item=modality_names(protocol).one,
        metric=metric,
        dense=dense,
        students=students,
        plans=plans,
        metrics=metrics,
        differences=files.read_csv(run.differences, _DIFFERENCES),
        rows_per_latent=rows_per_latent(protocol),
    )


def _name_missing(cells: Sequence[TaskCell], root: Path) -> None:
    """Name the seeds that other tasks have and whose folder is not even there."""
    seeds = sorted({cell.seed for cell in cells})
    for first, seed in itertools.product(first_cells(cells), seeds):
        folder = root / first.task / first.dataset / f"seed{seed}"
        if not folder.exists():
            print(f"missing: {folder.relative_to(root)}")


def _demand_alike(found: dict[RunPaths, TaskCell]) -> None:
    """Refuse seeds of one task whose numbers do not compare."""
    first: dict[tuple[str, str], RunPaths] = {}
    for run, cell in found.items():
        other = first.setdefault((cell.task, cell.dataset), run)
        differing = [key for key in ALIKE if getattr(cell, key) != getattr(found[other], key)]
        here, there = files.read_mapping(run.evaluate_protocol), files.read_mapping(other.evaluate_protocol)
        differing += [key for key in ALIKE_PROTOCOL if here.get(key) != there.get(key)]
        judges = [protocol.get("classifier") or {} for protocol in (here, there)]
        differing += [
            f"classifier.{key}" for key in ALIKE_CLASSIFIER if judges[0].get(key) != judges[1].get(key)
        ]
        if differing:
            raise DataError(
                f"{run.evaluate_protocol}: another {' and '.join(differing)} than in "
                f"{other.evaluate_protocol}; evaluate both alike"
            )
