"""Figures that compare models: quality against time, and the overview for the README."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from PIL import Image

from pelap.report.style import (
    INK,
    MUTED,
    PAPER,
    Look,
    literal,
    looks,
    panels,
    quiet,
    shortened,
    spread,
    titles,
    to_png,
    to_svg,
)
from pelap.report.tables import Column, quality_column

__all__ = ["image_strip", "nothing", "overview", "quality_latency", "to_png", "to_svg"]

GRID_COLUMNS = 8
"""Pictures in a row of the grids that the evaluation saves."""
_LABEL_GAP = 0.075
"""Least distance of two labels, in heights of the axes."""
_LABEL_WIDTH = 0.33
"""Room that a label takes, in widths of the axes."""


def quality_latency(frame: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Distance to real pictures against the UNet's time: left and down is better.

    Args:
        frame: From `tables.metrics_frame`.
        models: All models of the report, which fixes the colours.
    """
    figure, axes = panels(1, (8.6, 4.3))
    _quality_latency(axes[0], frame, looks(models))
    return figure


def overview(frame: pd.DataFrame, strips: Mapping[str, NDArray[np.uint8]], models: Sequence[str]) -> Figure:
    """The README's figure, 16:7: quality against time, and one row of samples of each model."""
    look = looks(models)
    figure = Figure(figsize=(16, 7), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12), facecolor=PAPER)
    parts = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.12), facecolor=PAPER)
    left, right = parts[0]
    axis = left.subplots()
    _restyle(axis)
    _quality_latency(axis, frame, look, scale=1.45)
    title = "Quality against time" if "latency_ms" in frame else "Quality"
    axis.set_title(title, loc="left", fontsize=16, color=INK, fontweight="bold", pad=12)
    _strips(right, strips, look)
    return figure


def image_strip(png: bytes) -> NDArray[np.uint8]:
    """First row of a grid of pictures as an array (H, W, 3)."""
    with Image.open(io.BytesIO(png)) as image:
        grid = image.convert("RGB")
        return np.asarray(grid.crop((0, 0, grid.width, min(grid.height, grid.width // GRID_COLUMNS))))


def nothing(axis: Axes, text: str) -> None:
    """Say that there is nothing to draw."""
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, color=MUTED, ha="center", va="center", transform=axis.transAxes)


def _restyle(axis: Axes) -> None:
    quiet(axis)
    axis.tick_params(labelsize=13)


def _quality_latency(axis: Axes, frame: pd.DataFrame, look: Mapping[str, Look], scale: float = 1.0) -> None:
    column = quality_column(frame)
    if column is None:
        nothing(axis, "quality was not measured")
        return
    if "latency_ms" not in frame:
        _quality_alone(axis, frame, column, look, scale)
        return
    shown = frame.dropna(subset=[column.key, "latency_ms"])
    for model, row in shown.iterrows():
        _point(axis, row, column.key, look[str(model)], scale)
    floor = frame[column.key].get("real", np.nan)
    titles(axis, x="time of one UNet pass over a batch (ms)", y=f"{column.title} ({column.unit})")
    for label in (axis.xaxis.label, axis.yaxis.label):
        label.set_fontsize(9.5 * scale)
    _room(axis, shown, column, floor)
    _name_points(axis, shown, column, look, scale)
    _floor(axis, floor, column, scale)


def _quality_alone(
    axis: Axes, frame: pd.DataFrame, column: Column, look: Mapping[str, Look], scale: float
) -> None:
    """Where no times were measured: the models side by side in the table's order."""
    values = frame[column.key].drop("real", errors="ignore").dropna()
    for place, (model, value) in enumerate(values.items()):
        colour, marker = look[str(model)].colour, look[str(model)].marker
        axis.plot(place, value, marker, color=colour, markersize=9 * scale, markeredgecolor=PAPER, zorder=3)
        axis.annotate(
            column.cell(value), (place, value), xytext=(0, 9 * scale), textcoords="offset points",
            ha="center", fontsize=9 * scale, color=INK,
        )  # fmt: skip
    names = [literal(shortened(str(model))) for model in values.index]
    axis.set_xticks(range(len(names)), names, rotation=0 if len(names) < 6 else 30)
    axis.margins(0.12, 0.18)
    titles(axis, y=f"{column.title} ({column.unit})")
    axis.yaxis.label.set_fontsize(9.5 * scale)
    _floor(axis, frame[column.key].get("real", np.nan), column, scale)


def _floor(axis: Axes, value: float, column: Column, scale: float) -> None:
    """The distance between two draws of real pictures as a dashed line, if it was measured."""
    if np.isnan(value):
        return
    axis.axhline(value, color=MUTED, linestyle=(0, (5, 4)), linewidth=1.3)
    axis.annotate(
        f"real against other real pictures: {column.cell(value)}",
        (1, value), xycoords=("axes fraction", "data"), xytext=(0, -4), textcoords="offset points",
        ha="right", va="top", fontsize=9 * scale, color=MUTED,
    )  # fmt: skip


def _point(axis: Axes, row: "pd.Series[float]", key: str, look: Look, scale: float) -> None:
    spread_ms = row.get("latency_iqr_ms", np.nan)
    axis.errorbar(
        row["latency_ms"], row[key], xerr=None if np.isnan(spread_ms) else spread_ms / 2,
        color=look.colour, marker=look.marker, markersize=9 * scale, markeredgecolor=PAPER,
        elinewidth=1.4, zorder=3,
    )  # fmt: skip


def _room(axis: Axes, shown: pd.DataFrame, column: Column, floor: float) -> None:
    """Margins for labels; the floor at the bottom of the picture."""
    values = [*shown[column.key], *([] if np.isnan(floor) else [floor])]
    times = shown["latency_ms"]
    if not len(times):
        return
    height = (max(values) - min(values)) or abs(max(values)) or 1.0
    width = (times.max() - times.min()) or times.max() or 1.0
    axis.set_ylim(min(values) - 0.12 * height, max(values) + 0.12 * height)
    axis.set_xlim(times.min() - 0.12 * width, times.max() + 0.38 * width)


def _name_points(
    axis: Axes, shown: pd.DataFrame, column: Column, look: Mapping[str, Look], scale: float
) -> None:
    """Names right of the points, moved apart where points lie close."""
    low, high = axis.get_ylim()
    left, right = axis.get_xlim()
    points = list(
        zip(
            (shown["latency_ms"] - left) / (right - left),
            (shown[column.key] - low) / (high - low),
            strict=True,
        )
    )
    for (model, row), y in zip(shown.iterrows(), spread(points, _LABEL_GAP, _LABEL_WIDTH), strict=True):
        axis.annotate(
            f"{shortened(str(model))}  {column.cell(row[column.key])}",
            (row["latency_ms"], row[column.key]),
            xytext=(row["latency_ms"] + 0.035 * (right - left), y),
            textcoords=("data", "axes fraction"),
            arrowprops={"arrowstyle": "-", "color": look[str(model)].colour, "lw": 0.8, "shrinkB": 5},
            va="center", fontsize=10 * scale, color=INK,
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
        axis.plot(-0.008, 0.5, look[model].marker, color=look[model].colour, transform=axis.transAxes,
                  clip_on=False)  # fmt: skip
