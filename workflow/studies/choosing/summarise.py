"""choosing: the study of ways to choose operators, as tables and figures."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import ChoosingPaths, RunPaths
from pelap.report.figures.style import to_png
from pelap.report.tables import is_distance
from pelap.surgery.pruned_reader import load_plan
from workflow.studies.cells import finished_cells, place_of
from workflow.studies.choosing.figures import (
    additivity_figure,
    methods_figure,
    prediction_figure,
    threshold_figure,
)
from workflow.studies.choosing.tables import (
    JUDGED,
    Cell,
    PlanOf,
    additivity_table,
    best_at,
    method_table,
    plan_table,
    prediction_table,
    rival_table,
    shared_amount,
    thresholds,
)

ALIKE = ("num_images", "num_reference", "sampler", "extractors")
"""What has to be the same in every cell, by their protocols."""
MEASURED = "measured_time_reduction"
_WIDTH = 80
"""Characters of a line in the terminal."""


def choosing(root: Path, asked: Sequence[str] | None = None) -> None:
    """Write tables and figures from the finished cells under `root`; see `ChoosingPaths`.

    Args:
        root: The grid's folder.
        asked: The cells; see `finished_cells`.

    Raises:
        DataError: As `finished_cells`, or a file of one cannot be read.
        PlanError: A plan of one cannot be read.
    """
    paths = ChoosingPaths(root)
    runs = finished_cells(root, _needed, "choosing", asked)
    metric = _metric(runs[0])
    _demand_alike(runs)
    cells = [_cell(run, metric) for run in runs]
    plans, rivals = plan_table(cells, metric), rival_table(cells, metric)
    methods = method_table(plans)
    tables = {
        paths.plans: plans,
        paths.methods: methods,
        paths.additivity: additivity_table(plans),
        paths.prediction: prediction_table(plans),
        paths.rivals: rivals,
    }
    for file, table in tables.items():
        files.write_csv(file, table)
    figures = {
        paths.threshold_figure: threshold_figure(methods, rivals, cells, metric),
        paths.methods_figure: methods_figure(plans, methods, metric),
        paths.additivity_figure: additivity_figure(plans, tables[paths.additivity]),
        paths.prediction_figure: prediction_figure(plans, tables[paths.prediction], metric),
    }
    for file, figure in figures.items():
        _save(file, figure)
    _print_findings(methods)
    print(f"{len(cells)} cells summarised in {root}")


def _save(file: Path, figure: Figure) -> None:
    with files.atomic_path(file) as partial:
        partial.write_bytes(to_png(figure))


def _demand_alike(runs: Sequence[RunPaths]) -> None:
    """Refuse cells whose distances do not compare."""
    first = files.read_mapping(runs[0].evaluate_protocol)
    for run in runs[1:]:
        other = files.read_mapping(run.evaluate_protocol)
        differing = [key for key in ALIKE if first.get(key) != other.get(key)]
        if differing:
            raise DataError(
                f"{run.evaluate_protocol}: another {' and '.join(differing)} than in "
                f"{runs[0].evaluate_protocol}; evaluate both alike"
            )


def _needed(run: RunPaths) -> tuple[Path, ...]:
    """What the last of a cell's stages leave."""
    return run.scores, run.prune_result, run.distill_result, run.metrics, run.budget, run.evaluate_protocol


def _dense(run: RunPaths) -> str:
    """The variant that was pruned."""
    file = run.evaluate_protocol
    name = files.read_mapping(file, ["scored_variant"])["scored_variant"]
    if not isinstance(name, str):
        raise DataError(f"{file}: names no scored variant; evaluate again with evaluate.models: all")
    return name


def _metric(run: RunPaths) -> str:
    """The first Frechet distance that was measured."""
    dense, metrics = _dense(run), files.read_metrics(run.metrics)
    found = next((name for name in metrics.get(dense, {}) if is_distance(name)), None)
    if found is None:
        raise DataError(f"{run.metrics}: no Frechet distance of {dense}; evaluate again")
    return found


def _cell(run: RunPaths, metric: str) -> Cell:
    """One cell, checked so far that every plan and student has its figures."""
    dataset, seed = place_of(run)
    dense, metrics = _dense(run), files.read_metrics(run.metrics)
    results = files.read_mapping(run.prune_result)
    control, tuned = _students(run, list(results))
    wanted = [
        dense,
        *(f"pruned-{plan}" for plan in results),
        *tuned.values(),
        *([control] if control else []),
    ]
    absent = [name for name in wanted if metrics.get(name, {}).get(metric) is None]
    if absent:
        raise DataError(f"{run.metrics}: lacks {metric} of {', '.join(absent)}; evaluate again")
    return Cell(
        dataset=dataset,
        seed=seed,
        scores=files.read_csv(run.scores, ("operator", "score")),
        plans={name: _plan(run, name, result) for name, result in results.items()},
        metrics=metrics,
        dense=dense,
        control=control,
        tuned=tuned,
        budget=_budget(run, metric),
    )


def _students(run: RunPaths, plans: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The first student that starts dense, and of each plan the first that starts pruned."""
    control, tuned = None, dict[str, str]()
    for name, how in files.read_mapping(run.distill_result).items():
        if not isinstance(how, dict) or how.get("start") is None:
            raise DataError(f"{run.distill_result}: {name}: does not say how it started; distill again")
        if how["start"] == "dense":
            control = control or name
        elif how["start"] == "pruned":
            if how.get("plan") not in plans:
                raise DataError(
                    f"{run.distill_result}: {name} is of plan {how.get('plan')}, which is not in "
                    f"{run.prune_result}; distill again"
                )
            tuned.setdefault(how["plan"], name)
    return control, tuned


def _plan(run: RunPaths, name: str, result: Any) -> PlanOf:
    absent = [key for key in (MEASURED, *JUDGED) if not isinstance(result, dict) or key not in result]
    if absent:
        raise DataError(f"{run.prune_result}: {name}: lacks {', '.join(absent)}; prune again")
    plan = load_plan(run.plans / f"{name}.json")
    target = next(iter(plan.target or {}), "")
    operators = tuple(removal.operator for removal in plan.operators)
    return PlanOf(operators, target, result[MEASURED], {key: result[key] for key in JUDGED})


def _budget(run: RunPaths, metric: str) -> pd.DataFrame:
    """Without times where none were measured."""
    table = files.read_csv(run.budget, ("model", "steps", metric))
    return table if "image_ms" in table else table.assign(image_ms=float("nan"))


def _print_findings(methods: pd.DataFrame) -> None:
    """Of each data set the best method at the amount that most have, and how far methods can be taken."""
    amount = shared_amount(methods)
    for dataset, rows in methods.groupby("dataset", sort=False):
        best = best_at(rows, amount)
        said = [] if best is None else [f"least lost at {amount:g}: {best}"]
        reach = [f"{name} {'none' if end is None else f'{end:g}'}" for name, end in thresholds(rows).items()]
        if reach:
            said.append(f"no worse than the control up to {', '.join(reach)}")
        print(
            textwrap.fill(
                f"{dataset}: {'; '.join(said)}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False
            )
        )
