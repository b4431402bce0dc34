"""compare: the cells of a sweep as mean, standard deviation and paired differences."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pelap.core import files
from pelap.core.paths import RunPaths, SweepPaths
from pelap.report.figures.style import to_png
from workflow.studies.cells import finished_cells, place_of
from workflow.studies.seeds.tables import budget_figure, summarise, summarise_budget, sweep_figure

_BUDGET = ("model", "steps", "image_ms")


def compare(sweep: Path, asked: Sequence[str] | None = None) -> None:
    """Write tables and figures from the finished cells under `sweep`: of all metrics, and of the budget.

    Args:
        sweep: The grid's folder.
        asked: The cells; see `finished_cells`.

    Raises:
        DataError: As `finished_cells`, or a file of one cannot be read.
    """
    runs = finished_cells(sweep, lambda run: [run.metrics], "all_seeds", asked)
    paths = SweepPaths(sweep)
    cells = pd.concat([_cell(run) for run in runs], ignore_index=True)
    summary = summarise(cells, _control(runs))
    files.write_csv(paths.summary, summary)
    with files.atomic_path(paths.figure) as partial:
        partial.write_bytes(to_png(sweep_figure(summary, cells)))
    _compare_budgets([run for run in runs if run.budget.is_file()], paths, cells)
    print(f"{len(runs)} cells summarised in {paths.summary}")


def _compare_budgets(runs: Sequence[RunPaths], paths: SweepPaths, cells: pd.DataFrame) -> None:
    if not runs:
        return
    budget = summarise_budget(pd.concat([_budget(run) for run in runs], ignore_index=True))
    files.write_csv(paths.budget, budget)
    dense = {place_of(run)[0]: str(name) for run in runs for name in [_scored(run)] if name is not None}
    figure = budget_figure(budget, dense, cells)
    with files.atomic_path(paths.budget_figure) as partial:
        partial.write_bytes(to_png(figure))


def _cell(run: RunPaths) -> pd.DataFrame:
    """One cell's metrics: columns dataset, seed, model, metric, value."""
    dataset, seed = place_of(run)
    rows = [
        {"dataset": dataset, "seed": seed, "model": model, "metric": metric, "value": value}
        for model, values in files.read_metrics(run.metrics).items()
        for metric, value in values.items()
    ]
    return pd.DataFrame(rows, columns=["dataset", "seed", "model", "metric", "value"])


def _budget(run: RunPaths) -> pd.DataFrame:
    """One cell's budget: columns dataset, seed, model, steps, metric, value."""
    dataset, seed = place_of(run)
    table = files.read_csv(run.budget, _BUDGET).astype({"model": str})
    table = table.melt(["model", "steps"], var_name="metric", value_name="value")
    return table.assign(dataset=dataset, seed=seed)


def _scored(run: RunPaths) -> str | None:
    """The variant that was pruned, if the cell says so."""
    if not run.evaluate_protocol.is_file():
        return None
    name: str | None = files.read_mapping(run.evaluate_protocol).get("scored_variant")
    return name


def _control(runs: Sequence[RunPaths]) -> str | None:
    """The first network that was trained on from the dense one."""
    for run in runs:
        if run.distill_result.is_file():
            for name, how in files.read_mapping(run.distill_result).items():
                if isinstance(how, dict) and how.get("start") == "dense":
                    return name
    return None
