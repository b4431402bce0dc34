"""Figures of training, of the masks and of distillation."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pelap.report.style import INK, legend, literal, log_scale, looks, panels, shortened, titles

_LOSSES = (
    ("noise", "Noise prediction", "mean squared error"),
    ("recon", "Reconstruction", "mean squared error per value"),
    ("mean_mask", "Mask", "mean over channels (0 to 1)"),
)
_TERMS = (
    ("loss", "weighted sum", INK, "-"),
    ("task", "task: the true noise", "#0072b2", "-"),
    ("output", "output: the teacher's prediction", "#e69f00", "-"),
    ("feature", "features: the teacher's blocks", "#009e73", "-"),
)
_MOST_CLASSES, _MOST_CHANNELS = 24, 8
"""With more classes the heat map names only some; with more of either it writes no numbers."""
_BRIGHT = 0.6
"""From this value on the colour map wants dark numbers."""


def training_curves(
    history: Mapping[str, pd.DataFrame], validation: Mapping[str, pd.DataFrame], models: Sequence[str]
) -> Figure:
    """Losses by step: thin lines on training batches, thick lines with markers on test pictures."""
    figure, axes = panels(3, (11, 3.7))
    look = looks(models)
    for axis, (column, title, unit) in zip(axes, _LOSSES, strict=True):
        for variant, table in history.items():
            _line(axis, table, column, color=look[variant].colour, linewidth=0.8, alpha=0.45)
        for variant, table in validation.items():
            _line(
                axis, table, column, color=look[variant].colour, linewidth=1.8, label=shortened(variant),
                marker=look[variant].marker, markersize=4.5,
            )  # fmt: skip
        titles(axis, title, "training step", unit)
        if column == "mean_mask":
            axis.set_ylim(-0.04, 1.06)
        else:
            log_scale(axis, _values(history, validation, column))
    handles, labels = axes[0].get_legend_handles_labels()
    legend(figure, handles=handles, labels=labels, loc="outside lower center", ncols=6)
    return figure


def _line(axis: Axes, table: pd.DataFrame, column: str, **look: object) -> None:
    if column in table:
        axis.plot(table["step"], table[column], **look)  # type: ignore[arg-type]


def _values(*groups: pd.DataFrame | Mapping[str, pd.DataFrame] | str) -> list[float]:
    """All values of a column, the last argument, in several tables."""
    *tables, column = groups
    return [
        value
        for group in tables
        if isinstance(group, Mapping)
        for table in group.values()
        if column in table
        for value in table[str(column)]
    ]


def distillation_curves(history: pd.DataFrame) -> Figure:
    """Each term of the distillation loss by step."""
    figure, (axis,) = panels(1, (8.6, 3.7))
    for column, label, colour, style in _TERMS:
        if column in history:
            axis.plot(
                history["step"], history[column], style, color=colour, label=label,
                linewidth=2.2 if column == "loss" else 1.4,
            )  # fmt: skip
    log_scale(axis, history[[name for name, *_ in _TERMS if name in history]].to_numpy().ravel())
    titles(axis, x="distillation step", y="loss (squared error)")
    legend(figure, loc="outside right center")
    return figure


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
