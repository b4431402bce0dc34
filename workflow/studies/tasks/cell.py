"""One seed of a task: its files, and what is derived from them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.paths import REAL_ROW, RunPaths
from pelap.report.protocol import modality_names, rows_per_latent
from pelap.report.tables import PRUNED, split_row
from workflow.studies.common import PrunedCell, pruned_cell
from workflow.studies.margins import half_steps_cost

VALUE_COLUMNS = ["task", "dataset", "seed", "model", "metric", "value"]
KEYS = ["task", "dataset", "model", "metric"]
AGREEMENT, AGREEMENT_LESS = "prompt_agreement", "agreement_difference_to_"
TIME_SAVED, ITEM_TIME_SAVED = "time_saved", "image_time_saved"
"""Shares of the dense model's time: of one pass of the UNet, and of a whole picture or sound."""
OPERATORS, PARAMS_REMOVED = "operators_removed", "params_removed"
HALF_STEPS = "change_at_half_steps"
"""Relative change of the dense model's distance with half of the sampling steps, where that was sampled."""
_RESULT = ("measured_time_reduction", "num_operators", "params_before", "params_after")
_DIFFERENCES = ("model", "against", "metric", "difference", "se")


@dataclass(frozen=True)
class TaskCell(PrunedCell):
    """One seed of a task."""

    task: str
    item: str  # what the model makes, in the singular
    students: Mapping[str, str]  # what each that was trained on started from: pruned, dense or scratch
    differences: pd.DataFrame  # as in `evaluate/differences.csv`
    half_steps_cost: float = math.nan  # of the dense model, in units of the distance
    rows_per_latent: int = 1  # rows that a latent takes in the UNet's batch: 2 with guidance

    @property
    def plan_names(self) -> list[str]:
        return list(self.plans)

    @property
    def place(self) -> tuple[str, str]:
        """What its seeds have in common."""
        return self.task, self.dataset

    @property
    def control(self) -> str | None:
        """The first that was trained on from the dense model, for as many steps."""
        return next((name for name, start in self.students.items() if start == "dense"), None)

    @property
    def references(self) -> list[str]:
        """What every other model is held against."""
        return [self.dense, *([] if self.control is None else [self.control])]

    @property
    def rows(self) -> list[str]:
        """The models of the table, in its order."""
        pruned = [f"{PRUNED}-{plan}" for plan in self.plans]
        tuned = [name for name in self.students if name != self.control]
        names = [self.dense, *pruned, *tuned, *self.references[1:], REAL_ROW]
        return [name for name in names if name in self.metrics]

    def plan_of(self, model: str) -> str | None:
        """The plan that a model was pruned by."""
        return split_row(model, self.plan_names)[1]


def read_cell(run: RunPaths) -> TaskCell:
    """Read and check the files of a cell.

    Raises:
        DataError: One line: what is wrong in which of them.
    """
    protocol = files.read_mapping(run.evaluate_protocol, ["scored_variant", "students"])
    students = protocol["students"]
    if not isinstance(students, dict):
        raise DataError(f"{run.evaluate_protocol}: students: expected a mapping; evaluate again")
    own = pruned_cell(run, students, _RESULT)
    budget = files.read_csv(run.budget, ["model", "steps"]) if run.budget.is_file() else None
    return TaskCell(
        **own,
        task=run.root.parents[1].name,
        item=modality_names(protocol).one,
        students=students,
        differences=files.read_csv(run.differences, _DIFFERENCES),
        half_steps_cost=math.nan if budget is None else half_steps_cost(budget, own["dense"], own["metric"]),
        rows_per_latent=rows_per_latent(protocol),
    )


def first_cells(cells: Sequence[TaskCell]) -> list[TaskCell]:
    """One cell of each task and data set."""
    return list({cell.place: cell for cell in reversed(cells)}.values())[::-1]


def cell_values(cell: TaskCell) -> pd.DataFrame:
    """Every value of a cell, measured and derived: `VALUE_COLUMNS`.

    Derived are shares (0..1) of time, parameters and operators that went, and against the dense model and
    the one trained as long the difference of the distance and of the prompt agreement, and the relative
    change of the distance; of the dense model `HALF_STEPS`.
    """
    rows = [
        (*cell.place, cell.seed, model, metric, value)
        for model, values in cell.metrics.items()
        for metric, value in [*values.items(), *_derived(cell, model)]
        if value is not None and not math.isnan(value)
    ]
    return pd.DataFrame(rows, columns=VALUE_COLUMNS)


def _derived(cell: TaskCell, model: str) -> Iterator[tuple[str, float]]:
    """By their names; NaN where something for it was not measured."""

    def both(metric: str) -> tuple[float, float]:
        return cell.value(model, metric), cell.value(cell.dense, metric)

    plan = cell.plans.get(cell.plan_of(model) or "")
    if plan is not None:
        ours, whole = both("latency_least_ms")
        saved = 1 - ours / whole
        yield TIME_SAVED, plan["measured_time_reduction"] if math.isnan(saved) else saved
        yield OPERATORS, plan["num_operators"]
        yield PARAMS_REMOVED, 1 - plan["params_after"] / plan["params_before"]
    if model == cell.dense and cell.value(model, cell.metric):
        yield HALF_STEPS, cell.half_steps_cost / cell.value(model, cell.metric)
    ours, whole = both("image_ms")
    if model != cell.dense and whole:
        yield ITEM_TIME_SAVED, 1 - ours / whole
    for other in cell.references:
        if model not in (other, REAL_ROW):
            yield from _against(cell, model, other)


def _against(cell: TaskCell, model: str, other: str) -> Iterator[tuple[str, float]]:
    """Differences to another model at the same seed."""
    ours, theirs = cell.value(model, cell.metric), cell.value(other, cell.metric)
    yield f"difference_to_{other}", ours - theirs
    if theirs:
        yield f"change_to_{other}", ours / theirs - 1
    table = cell.differences
    named = (table["model"] == model) & (table["against"] == other) & (table["metric"] == cell.metric)
    for error in table.loc[named, "se"][:1]:
        yield f"difference_to_{other}_se", float(error)
    yield f"{AGREEMENT_LESS}{other}", cell.value(model, AGREEMENT) - cell.value(other, AGREEMENT)
