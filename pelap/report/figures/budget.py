"""Figure of quality at equal time: the dense model with fewer or cheaper steps against other networks."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pelap.report.figures.labels import Label, place
from pelap.report.figures.style import MUTED, PAPER, Look, legend, literal, log_scale, shortened, titles
from pelap.report.tables import CACHED, Column, plans_of, split_row

_LOGARITHMIC = 4  # ratio of the greatest to the least value from which on an axis is logarithmic
_FAR = 1.0
"""A floor further below the points than this many times their spread, on the axis, is named, not drawn."""
_ROOM = 0.08  # share of an axis that is left free at each end


class _Point(NamedTuple):
    model: str
    steps: float
    x: float
    x_err: float
    y: float
    y_err: float


def _points(table: pd.DataFrame) -> list[_Point]:
    return [_Point(*row) for row in table[list(_Point._fields)].itertuples(index=False, name=None)]


def draw(
    axis: Axes, points: pd.DataFrame, look: Mapping[str, Look], dense: str, column: Column, scale: float = 1.0
) -> None:
    """Draw the curve of the dense model and of others with several numbers of steps, the rest as points.

    Args:
        axis: Where to draw.
        points: Columns model, steps, x, x_err, y, y_err; see `pelap.report.data.budget_points`.
        look: Colours of all models.
        dense: The model that all others come from.
        column: How the distance is called.
        scale: Factor of all sizes.
    """
    for rows in _families(points):
        _family(axis, rows, look, dense, scale)
    titles(axis, x="time per image, whole sampler and decoder (ms)", y=f"{column.title} ({column.unit})")
    for text in (axis.xaxis.label, axis.yaxis.label):
        text.set_fontsize(9.5 * scale)


def finish(
    axis: Axes, points: pd.DataFrame, dense: str, floor: float, column: Column, scale: float = 1.0
) -> None:
    """Set the scales, and label every point with its steps, its plan or its name.

    To be called when all else is drawn: the labels take the room that is left. The arguments are those of
    `draw`, and `floor` is the distance between real pictures, NaN where it is not known.
    """
    _scales(axis, points, floor)
    _floor(axis, floor, column, scale)
    place(axis, _labels(points, dense), _lines(points), 9 * scale)


def key(
    owner: Figure | SubFigure, points: pd.DataFrame, look: Mapping[str, Look], dense: str, scale: float = 1.0
) -> None:
    """A legend below, with an entry a family; the labels beside the points are explained in it."""
    rows, stepped = _split(points["model"]), _stepped(points, dense)
    first = {family: model for model, (family, _) in reversed(list(rows.items()))}
    handles = []
    for family in dict.fromkeys(family for family, _ in rows.values()):
        each = look[first[family]]
        numbers = "steps" if first[family] in stepped else "interval" if family == CACHED else ""
        text = f"{shortened(family)}; numbers: {numbers}" if numbers else shortened(family)
        handles.append(Line2D(
            [], [], color=each.colour, marker=each.marker, markerfacecolor=each.face, label=literal(text),
            markersize=7 * scale, linestyle="-" if numbers else "none",
        ))  # fmt: skip
    if any(plan is not None for family, plan in rows.values() if family != CACHED):
        handles.append(Line2D([], [], linestyle="none", label="other labels: plan"))
    legend(owner, handles=handles, loc="outside lower center", ncols=3, fontsize=8.5 * scale)


def _split(models: Iterable[str]) -> dict[str, tuple[str, str | None]]:
    """Family and plan of every model."""
    models = list(dict.fromkeys(models))
    return {model: split_row(model, plans_of(models)) for model in models}


def _stepped(points: pd.DataFrame, dense: str) -> set[str]:
    """The dense model, and those that have several numbers of sampling steps."""
    counts = points.groupby("model")["steps"].nunique()
    return {dense, *counts.index[counts > 1]}


def _families(points: pd.DataFrame) -> list[pd.DataFrame]:
    """The points of each family, from left to right."""
    family = points["model"].map({model: name for model, (name, _) in _split(points["model"]).items()})
    return [rows.sort_values("x") for _, rows in points.groupby(family, sort=False)]


def _family(axis: Axes, rows: pd.DataFrame, look: Mapping[str, Look], dense: str, scale: float) -> None:
    """Points of one model, or of all intervals of caching, on a line; several plans on a faint one."""
    name = rows["model"].iloc[0]
    one = (rows["model"] == name).all() or all(
        family == CACHED for family, _ in _split(rows["model"]).values()
    )
    width = (2.0 if name == dense else 1.4) if one else 0.8
    if len(rows) > 1:
        axis.plot(rows["x"], rows["y"], color=look[name].colour, linewidth=width * scale,
                  linestyle="-" if one else ":", zorder=2)  # fmt: skip
    for row in _points(rows):
        each = look[row.model]
        axis.errorbar(
            row.x, row.y, xerr=_bar(row.x_err), yerr=_bar(row.y_err), color=each.colour,
            marker=each.marker, markersize=8 * scale, markerfacecolor=each.face,
            markeredgecolor=each.colour if each.hollow else PAPER, markeredgewidth=1.6 if each.hollow else 1,
            elinewidth=1.1 * scale, zorder=3,
        )  # fmt: skip


def _bar(length: float) -> float | None:
    return length if np.isfinite(length) else None


def _scales(axis: Axes, points: pd.DataFrame, floor: float) -> None:
    """Limits with room for labels, logarithmic where values are far apart."""
    lower = points["y"] - points["y_err"].fillna(0)
    lower = lower.where(lower > 0, points["y"])
    heights = [*lower, *(points["y"] + points["y_err"].fillna(0))]
    if _near(points, floor):
        heights.append(floor)
    for which, values in (("x", points["x"].tolist()), ("y", heights)):
        low, high = min(values), max(values)
        if low > 0 and high > _LOGARITHMIC * low:
            room = (high / low) ** _ROOM
            limits = (low / room, high * room)
        else:
            room = _ROOM * ((high - low) or abs(high) or 1.0)
            limits = (low - room, high + room)
        (axis.set_xlim if which == "x" else axis.set_ylim)(*limits)
        if low > 0 and high > _LOGARITHMIC * low:
            log_scale(axis, values, which)


def _near(points: pd.DataFrame, floor: float) -> bool:
    """Whether the axis may reach down to the floor without pressing the points together."""
    low, high = points["y"].min(), points["y"].max()
    if 0 < floor < low and high > _LOGARITHMIC * floor:
        low, high, floor = np.log([low, high, floor])
    return bool(floor > low - _FAR * (high - low))


def _floor(axis: Axes, floor: float, column: Column, scale: float) -> None:
    """The distance between two draws of real pictures as a dashed line; in words where it is far below."""
    if np.isnan(floor):
        return
    shown = floor >= axis.get_ylim()[0]
    if shown:
        axis.axhline(floor, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.3)
    text = f"real pictures: {column.cell(floor)} ({'dashed' if shown else 'below'})"
    axis.set_title(text, loc="right", fontsize=8.5 * scale, color=MUTED)


def _labels(points: pd.DataFrame, dense: str) -> list[Label]:
    rows, stepped, labels = _split(points["model"]), _stepped(points, dense), []
    for row in _points(points):
        text = f"{row.steps:g}" if row.model in stepped else rows[row.model][1]
        labels.append(Label(row.x, row.y, shortened(text or row.model)))
    return labels


def _lines(points: pd.DataFrame) -> list[NDArray[np.float64]]:
    """What labels should not cover: the lines between points and all bars."""
    lines = [rows[["x", "y"]].to_numpy(dtype=float) for rows in _families(points)]
    for row in _points(points.fillna({"x_err": 0.0, "y_err": 0.0})):
        lines.append(np.array([[row.x, row.y - row.y_err], [row.x, row.y + row.y_err]]))
        lines.append(np.array([[row.x - row.x_err, row.y], [row.x + row.x_err, row.y]]))
    return lines
