"""Figures that compare models: quality at equal time, or alone, and the overview for the README."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from pelap.core.paths import REAL_ROW
from pelap.report.data import RunData
from pelap.report.figures.style import (
    INK,
    MUTED,
    PAPER,
    Label,
    Look,
    legend,
    literal,
    log_scale,
    looks,
    nothing,
    panels,
    place,
    quiet,
    shortened,
    titles,
)
from pelap.report.tables import CACHED, SURE, Column, plans_of, quality_column, split_row

GRID_COLUMNS = 8  # pictures in a row of the grids that the evaluation saves
_HEADING: dict[str, Any] = {"loc": "left", "fontsize": 16, "color": INK, "fontweight": "bold", "pad": 12}
_WIDTH = 16.0  # of the overview in inches
_ROW, _HEIGHTS = 0.66, (7.0, 10.0)  # inches: a row of samples where there is room, bounds of the overview
_NAMES, _TITLE, _MOST = 2.2, 0.8, 0.53  # inches for names beside samples and the title; their largest share
_LOGARITHMIC = 4  # ratio of the greatest to the least value from which on an axis is logarithmic
_FAR = 1.0  # a floor further below the points than this many times their spread is named, not drawn
_ROOM = 0.08  # share of an axis that is left free at each end


def quality(run: RunData) -> Figure:
    """Distance to real pictures against time per image; without times, distances side by side."""
    figure, (axis,) = panels(1, (8.6, 5.0))
    _quality(figure, axis, run)
    return figure


def overview(run: RunData, strips: Mapping[str, NDArray[np.uint8]]) -> Figure:
    """The README's figure, 16 inches wide: quality, and one row of samples of each model."""
    rows = max(1, len(strips))
    height = min(max(_TITLE + _ROW * rows, _HEIGHTS[0]), _HEIGHTS[1])
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.04, hspace=0)
    figure = Figure(figsize=(_WIDTH, height), layout=layout, facecolor=PAPER)
    pictures = min(_NAMES + GRID_COLUMNS * (height - _TITLE) / rows, _MOST * _WIDTH)
    widths = (_WIDTH - pictures, pictures)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=widths, facecolor=PAPER)[0]
    axis = left.subplots()
    quiet(axis)
    axis.tick_params(labelsize=13)
    _strips(right, strips, looks(run.models), run.frame.get("image_ms", pd.Series(dtype=float)))
    _quality(left, axis, run, scale=1.4)
    axis.set_title("Quality at equal time" if len(run.points) else "Quality", **_HEADING)
    return figure


def image_strip(png: bytes) -> NDArray[np.uint8]:
    """First row of a grid of pictures as an array (H, W, 3)."""
    with Image.open(io.BytesIO(png)) as image:
        grid = image.convert("RGB")
        return np.asarray(grid.crop((0, 0, grid.width, min(grid.height, grid.width // GRID_COLUMNS))))


def _quality(owner: Figure | SubFigure, axis: Axes, run: RunData, scale: float = 1.0) -> None:
    column = quality_column(run.frame)
    if column is None:
        nothing(axis, "quality was not measured")
        return
    floor = run.frame[column.key].get(REAL_ROW, np.nan)
    if run.scored is not None and len(run.points):
        look = looks(run.models)
        draw(axis, run.points, look, run.scored, column, scale)
        key(owner, run.points, look, run.scored, scale)
        finish(axis, run.points, run.scored, floor, column, scale)
    else:
        quality_alone(axis, run.frame, run.models, scale)


def quality_alone(axis: Axes, frame: pd.DataFrame, models: Sequence[str], scale: float = 1.0) -> None:
    """Where no times were measured: a line a model, in the table's order, with 95 % intervals."""
    column = quality_column(frame)
    assert column is not None
    look = looks(models)
    shown = frame.drop(REAL_ROW, errors="ignore").dropna(subset=[column.key])
    for index, (model, row) in enumerate(shown.iterrows()):
        each, error = look[str(model)], row.get(column.error, np.nan)
        axis.errorbar(row[column.key], index, xerr=_bar(SURE * error), **each.error_bars(scale))
        axis.annotate(
            column.cell(row[column.key]), (row[column.key], index), xytext=(0, 7 * scale),
            textcoords="offset points", ha="center", fontsize=8.5 * scale, color=INK,
        )  # fmt: skip
    names = [literal(shortened(str(model))) for model in shown.index]
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.8)
    axis.margins(x=0.12)
    titles(axis, x=f"{column.title} ({column.unit})", scale=scale)
    floor = frame[column.key].get(REAL_ROW, np.nan)
    if np.isfinite(floor):
        axis.axvline(floor, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.3)
        axis.annotate(
            f"real against other real pictures: {column.cell(floor)}", (floor, 0),
            xycoords=("data", "axes fraction"), xytext=(4, 4), textcoords="offset points",
            fontsize=8.5 * scale, color=MUTED,
        )  # fmt: skip


def _strips(
    part: Any, strips: Mapping[str, NDArray[np.uint8]], look: Mapping[str, Look], times: pd.Series
) -> None:
    """One row of pictures per model, the same noise in each column, and what one takes."""
    axes = part.subplots(max(1, len(strips)), 1, squeeze=False)[:, 0]
    axes[0].set_title("Samples from the same noise", **_HEADING)
    for axis in axes:
        axis.set_axis_off()
    for axis, (model, strip) in zip(axes, strips.items(), strict=False):
        axis.imshow(strip, interpolation="nearest")
        axis.text(
            -0.02, 0.5, shortened(model), transform=axis.transAxes, ha="right", va="center", fontsize=13,
            color=INK, fontweight="bold",
        )  # fmt: skip
        axis.plot(-0.008, 0.5, transform=axis.transAxes, clip_on=False, **look[model].marked(6))
        if np.isfinite(took := times.get(model, np.nan)):
            axis.text(
                -0.02, 0.14, f"{took:.1f} ms each", transform=axis.transAxes, ha="right", va="center",
                fontsize=10, color=MUTED,
            )  # fmt: skip


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
    time = "time per image, whole sampler and decoder (ms)"
    titles(axis, x=time, y=f"{column.title} ({column.unit})", scale=scale)


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
        look_of: dict[str, Any] = each.marked(7 * scale) | {"linestyle": "-" if numbers else "none"}
        handles.append(Line2D([], [], label=literal(text), **look_of))
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
        x_bar, y_bar, edge = _bar(row.x_err), _bar(row.y_err), 1.6 if each.hollow else 1
        axis.errorbar(row.x, row.y, y_bar, x_bar, markeredgewidth=edge, **each.error_bars(scale))


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
