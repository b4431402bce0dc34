"""Figures of the collapse: by epoch, by time step, and the masks of every class."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pelap.report.figures.style import (
    INK,
    MUTED,
    Look,
    legend,
    literal,
    log_scale,
    looks,
    panels,
    shortened,
    titles,
)

_FLOOR_LINE = (0, (4, 2))
"""How the Gaussian floor is dashed."""
_MOST_CLASSES, _MOST_CHANNELS = 24, 8
"""With more classes the heat map names only some; with more of either it writes no numbers."""
_BRIGHT = 0.6
"""From this value on the colour map wants dark numbers."""


def epoch_curves(epochs: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Mask, scale of the UNet's input, and noise loss beside its floor, after every epoch."""
    figure, (masks, scale, losses) = panels(3, (11, 3.9))
    look = looks(models)
    for variant, rows in _by_variant(epochs):
        colour = look[variant].colour
        marked = {"color": colour, "marker": look[variant].marker, "markersize": 4.5, "linewidth": 1.8}
        if {"min_mask", "max_mask"} <= set(rows):
            masks.fill_between(
                rows["epoch"], rows["min_mask"], rows["max_mask"], color=colour, alpha=0.16, linewidth=0
            )
        _line(masks, rows, "epoch", "mean_mask", **marked)
        _line(scale, rows, "epoch", "unet_input_std", **marked)
        _line(losses, rows, "epoch", "diffusion_loss", **marked)
        _line(losses, rows, "epoch", "gaussian_floor", color=colour, linewidth=1.4, linestyle=_FLOOR_LINE)
    masks.set_ylim(-0.04, 1.06)
    log_scale(scale, _values(epochs, "unet_input_std"))
    log_scale(losses, _values(epochs, "diffusion_loss", "gaussian_floor"))
    titles(masks, "Mask", "epoch", "mean and range over pictures")
    titles(scale, "Scale of the UNet's input", "epoch", "standard deviation")
    titles(losses, "Noise loss", "epoch", "mean squared error")
    for axis in (masks, scale, losses):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _key(figure, epochs, look)
    return figure


def timestep_curves(timesteps: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Noise loss by diffusion time step beside its Gaussian floor, and the ratio of the two."""
    figure, (losses, ratios) = panels(2, (11, 3.9))
    look = looks(models)
    floor = timesteps["gaussian_floor"]
    columns = timesteps.assign(
        middle=(timesteps["first_step"] + timesteps["last_step"]) / 2,
        ratio=timesteps["diffusion_loss"] / floor.where(floor > 0),  # no channel has a floor of 0
    )
    for variant, rows in _by_variant(columns):
        colour = look[variant].colour
        marked = {"color": colour, "marker": look[variant].marker, "markersize": 4.5, "linewidth": 1.8}
        _line(losses, rows, "middle", "diffusion_loss", **marked)
        _line(losses, rows, "middle", "gaussian_floor", color=colour, linewidth=1.4, linestyle=_FLOOR_LINE)
        _line(ratios, rows, "middle", "ratio", **marked)
    log_scale(losses, _values(columns, "diffusion_loss", "gaussian_floor"))
    log_scale(ratios, _values(columns, "ratio"))
    ratios.axhline(1, color=MUTED, linestyle=_FLOOR_LINE, linewidth=1.2)
    titles(losses, "Noise loss by time step", "diffusion time step (0: least noise)", "mean squared error")
    titles(ratios, "Loss over floor", "diffusion time step", "ratio")
    _key(figure, columns, look)
    return figure


def _by_variant(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for variant in dict.fromkeys(table["variant"]):
        yield str(variant), table[table["variant"] == variant]


def _line(axis: Axes, table: pd.DataFrame, x: str, y: str, **look: object) -> None:
    if y in table:
        axis.plot(table[x], table[y], **look)  # type: ignore[arg-type]


def _values(table: pd.DataFrame, *columns: str) -> list[float]:
    return [value for column in columns if column in table for value in table[column]]


def _key(figure: Figure, table: pd.DataFrame, look: Mapping[str, Look]) -> None:
    """Colours of the variants, and what the dashes are."""
    handles = [
        Line2D([], [], color=look[name].colour, marker=look[name].marker, label=literal(shortened(name)))
        for name, _ in _by_variant(table)
    ]
    handles.append(Line2D([], [], color=MUTED, linestyle=_FLOOR_LINE, label="Gaussian floor"))
    legend(figure, handles=handles, loc="outside lower center", ncols=6)


def mask_heatmap(masks: pd.DataFrame) -> Figure:
    """Mean mask of every class and latent channel, one panel per variant."""
    variants = list(dict.fromkeys(masks["variant"]))
    classes = masks["class_name"].nunique()
    height = 1.3 + min(classes, 2 * _MOST_CLASSES) * (0.27 if classes <= _MOST_CLASSES else 0.12)
    figure, axes = panels(max(1, len(variants)), (11, height), sharey=True)
    mesh = None
    for axis, variant in zip(axes, variants, strict=False):
        rows = masks[masks["variant"] == variant]
        table = rows.pivot_table(index="class_name", columns="channel", values="mean_mask", sort=False)
        mesh = axis.pcolormesh(table.to_numpy(), cmap="viridis", vmin=0, vmax=1)
        _label_cells(axis, table)
        titles(axis, shortened(str(variant)), "latent channel")
    if mesh is not None:
        bar = figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.01)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0, colors=INK)
        bar.set_label("mean mask (0 off, 1 open)", fontsize=9, color=INK)
    return figure


def _label_cells(axis: Axes, table: pd.DataFrame) -> None:
    """Class names on the left, channels below, values inside where they fit."""
    classes, channels = table.shape
    every = 1 if classes <= _MOST_CLASSES else 5
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set_ylim(classes, 0)  # first class on top; inverting a shared axis twice would undo it
    axis.set_xticks(np.arange(channels) + 0.5, [literal(name) for name in table.columns])
    axis.set_yticks(np.arange(0, classes, every) + 0.5, [literal(name) for name in table.index[::every]])
    if classes > _MOST_CLASSES or channels > _MOST_CHANNELS:
        return
    values = table.to_numpy(dtype=float)
    for row, column in np.ndindex(classes, channels):
        value = values[row, column]
        ink = "#ffffff" if value < _BRIGHT else "#000000"
        axis.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
