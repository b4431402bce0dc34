"""The figure of the tasks: what pruning saved and cost, over seeds."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pelap.core.paths import REAL_ROW
from pelap.report.figures.style import (
    Label,
    Look,
    literal,
    looks,
    panels,
    place,
    plain_number,
    shortened,
    titles,
)
from pelap.report.tables import PLUS_MINUS, PRUNED, number, split_row
from workflow.studies.common import around_zero, legend_below
from workflow.studies.tasks.cell import TIME_SAVED, TaskCell, first_cells
from workflow.studies.tasks.page import PERCENT, Table

_LABEL = 8.5  # size of the labels in the figure
_APART = 8  # times the largest other change from which on those of pruning alone are beyond a linear part
_LINEAR = 1.6  # room of each half of the linear part, in decades of the logarithmic one


def tasks_figure(summary: pd.DataFrame, cells: Sequence[TaskCell]) -> Figure:
    """Change of the distance against measured time saved, a panel a task; bars: std over seeds."""
    first = first_cells(cells)
    figure, axes = panels(len(first), (1 + 4.6 * len(first), 4.9))
    names = list(dict.fromkeys(name for cell in first for name in _families(cell)))
    look = looks(names)
    for axis, cell in zip(axes, first, strict=True):
        labels, linear = _draw(axis, Table(summary, cell), cell, look)
        count = sum(other.place == cell.place for other in cells)
        spread = f"mean {PLUS_MINUS} std of {count} seeds" if count > 1 else "1 seed"
        against = f"{literal(cell.metric)} against {literal(shortened(cell.dense))} (%), lower is better"
        if linear is not None:
            against += f"\nlinear up to {plain_number(linear)} %, logarithmic beyond"
        titles(axis, f"{literal(cell.task)}: {spread}", "UNet time saved, measured (%)", against)
        axis.margins(x=0.14, y=0.16)
        lines = [bars.lines[0].get_xydata() for bars in axis.containers]  # type: ignore[attr-defined]
        place(axis, labels, lines, _LABEL)
    handles = {
        text: line for axis in axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    legend_below(figure, list(handles.values()), len(handles))
    return figure


def _families(cell: TaskCell) -> dict[str, list[str]]:
    """The rows with a line of their own, and the models along it."""
    found: dict[str, list[str]] = {}
    for model in cell.rows:
        if model != REAL_ROW:
            found.setdefault(split_row(model, list(cell.plans))[0], []).append(model)
    return found


def _draw(
    axis: Axes, table: Table, cell: TaskCell, look: Mapping[str, Look]
) -> tuple[list[Label], float | None]:
    """Lines over plans, points of what was not pruned.

    Returns:
        What to write beside the points, and up to where the axis is linear, where it is not so throughout.
    """
    labels, linear = [], _linear(table, cell)

    def beyond(change: float) -> str:
        return "" if linear is None else f": {number(change, 0, True)} %"

    axis.axhline(0, color=look[cell.dense].colour, linestyle=(0, (5, 4)), linewidth=1.1, zorder=1)
    for family, models in _families(cell).items():
        x, y = (_points(table, cell, models, key) for key in (TIME_SAVED, f"change_to_{cell.dense}"))
        each = look[family]
        axis.errorbar(
            x[:, 0], y[:, 0], xerr=x[:, 1], yerr=y[:, 1], color=each.colour, marker=each.marker,
            markerfacecolor=each.face, markersize=8, capsize=3, elinewidth=1.3, linewidth=1.4, zorder=3,
            label=literal(shortened(family)),
        )  # fmt: skip
        if family == PRUNED:  # what was made of a plan stands below or above it
            plans = [model.removeprefix(f"{PRUNED}-") for model in models]
            labels += [
                Label(saved, change, f"plan {plan}{beyond(change)}")
                for (saved, _), (change, _), plan in zip(x, y, plans, strict=True)
                if math.isfinite(saved) and math.isfinite(change)
            ]
    control = cell.control
    if control is not None:
        level = table[control, f"change_to_{cell.dense}"].mean * PERCENT
        axis.axhline(level, color=look[control].colour, linestyle=(0, (1.5, 2)), linewidth=1.1, zorder=1)
    if linear is not None:
        most = max(np.abs(axis.get_ylim()))
        inside = [tick for tick in MaxNLocator(4).tick_values(-linear, linear) if 0 < tick <= linear]
        decades = range(math.floor(math.log10(linear)), math.ceil(math.log10(most)) + 1)
        outside = [lead * 10.0**power for power in decades for lead in (1, 2, 5)]
        around_zero(axis, "y", linear, _LINEAR, [*inside, *(tick for tick in outside if tick > 1.5 * linear)])
    return labels, linear


def _linear(table: Table, cell: TaskCell) -> float | None:
    """The largest change of what was not merely pruned, in percent, where that of the others dwarfs it."""
    least, most = 1.0, 0.0
    for family, models in _families(cell).items():
        found = _points(table, cell, models, f"change_to_{cell.dense}")
        reach = np.abs(found[:, 0])
        largest = float(np.nanmax(reach + found[:, 1] * (family != PRUNED), initial=0.0))
        if family == PRUNED:
            most = largest
        else:
            least = max(least, largest)
    return float(math.ceil(least)) if most > _APART * least else None


def _points(table: Table, cell: TaskCell, models: Sequence[str], key: str) -> NDArray[np.float64]:
    """Percentages and half lengths of their bars (models, 2); what was not pruned saved nothing."""
    found = []
    for model in models:
        mean, std, _ = table[model, key]
        if cell.plan_of(model) is None if key == TIME_SAVED else model == cell.dense:
            mean = std = 0.0
        found.append((mean, 0.0 if math.isnan(std) else std))
    return np.array(found, dtype=float) * PERCENT
