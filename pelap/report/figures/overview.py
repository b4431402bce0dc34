"""Figures that compare models: quality at equal time, or alone, and the overview for the README."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image

from pelap.core.paths import REAL_ROW
from pelap.report.data import RunData
from pelap.report.figures.budget import draw, finish, key
from pelap.report.figures.style import (
    INK,
    MUTED,
    PAPER,
    Look,
    literal,
    looks,
    nothing,
    panels,
    quiet,
    shortened,
    titles,
)
from pelap.report.tables import SURE, quality_column

GRID_COLUMNS = 8  # pictures in a row of the grids that the evaluation saves
_WIDTH = 16.0  # of the overview in inches
_ROW, _HEIGHTS = 0.66, (7.0, 10.0)
"""Height of a row of samples in inches where there is room for it, and bounds of the overview's height."""
_NAMES, _TITLE, _MOST = 2.2, 0.8, 0.53
"""Inches for the names beside the samples and for the title, and their largest share of the width."""


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
    _strips(right, strips, looks(run.models))
    _quality(left, axis, run, scale=1.4)
    title = "Quality at equal time" if len(run.points) else "Quality"
    axis.set_title(title, loc="left", fontsize=16, color=INK, fontweight="bold", pad=12)
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
    for place, (model, row) in enumerate(shown.iterrows()):
        each, error = look[str(model)], row.get(column.error, np.nan)
        axis.errorbar(
            row[column.key], place, xerr=SURE * error if np.isfinite(error) else None,
            color=each.colour, marker=each.marker, markersize=8 * scale, markerfacecolor=each.face,
            markeredgecolor=each.colour if each.hollow else PAPER, elinewidth=1.1 * scale, zorder=3,
        )  # fmt: skip
        axis.annotate(
            column.cell(row[column.key]), (row[column.key], place), xytext=(0, 7 * scale),
            textcoords="offset points", ha="center", fontsize=8.5 * scale, color=INK,
        )  # fmt: skip
    names = [literal(shortened(str(model))) for model in shown.index]
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.8)
    axis.margins(x=0.12)
    titles(axis, x=f"{column.title} ({column.unit})")
    axis.xaxis.label.set_fontsize(9.5 * scale)
    floor = frame[column.key].get(REAL_ROW, np.nan)
    if np.isfinite(floor):
        axis.axvline(floor, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.3)
        axis.annotate(
            f"real against other real pictures: {column.cell(floor)}", (floor, 0),
            xycoords=("data", "axes fraction"), xytext=(4, 4), textcoords="offset points",
            fontsize=8.5 * scale, color=MUTED,
        )  # fmt: skip


def _strips(part: Any, strips: Mapping[str, NDArray[np.uint8]], look: Mapping[str, Look]) -> None:
    """One row of pictures per model, the same noise in each column."""
    axes = part.subplots(max(1, len(strips)), 1, squeeze=False)[:, 0]
    axes[0].set_title(
        "Samples from the same noise", loc="left", fontsize=16, color=INK, fontweight="bold", pad=12
    )
    for axis in axes:
        axis.set_axis_off()
    for axis, (model, strip) in zip(axes, strips.items(), strict=False):
        axis.imshow(strip, interpolation="nearest")
        axis.text(
            -0.02, 0.5, shortened(model), transform=axis.transAxes, ha="right", va="center", fontsize=13,
            color=INK, fontweight="bold",
        )  # fmt: skip
        each = look[model]
        axis.plot(-0.008, 0.5, each.marker, color=each.colour, markerfacecolor=each.face,
                  transform=axis.transAxes, clip_on=False)  # fmt: skip
