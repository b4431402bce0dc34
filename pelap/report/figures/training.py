"""Figures of losses over time: of training, of the collapse, of distillation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
from pelap.report.tables import SURE, column, is_distance

_LOSSES = (
    ("noise", "Noise prediction", "mean squared error"),
    ("recon", "Reconstruction", "mean squared error per value"),
    ("mean_mask", "Mask", "mean over channels (0 to 1)"),
)
_TERMS = (
    ("task", "Task: the true noise"),
    ("output", "Output: the teacher's prediction"),
    ("feature", "Features: the teacher's blocks"),
)
_LOGARITHMIC = 4  # greatest to least value from which on a loss of distillation has a logarithmic axis
_FLOOR_LINE = (0, (4, 2))  # how the Gaussian floor is dashed
# With more classes the heat map names only some; with more of either it writes no numbers.
_MOST_CLASSES, _MOST_CHANNELS = 24, 8
_BRIGHT = 0.6  # from this value on the colour map wants dark numbers


def training_curves(
    history: Mapping[str, pd.DataFrame], validation: Mapping[str, pd.DataFrame], models: Sequence[str]
) -> Figure:
    """Losses by step: thin lines on training batches, thick lines with markers on test pictures."""
    figure, axes = panels(3, (11, 3.7))
    look = looks(models)
    for axis, (loss, title, unit) in zip(axes, _LOSSES, strict=True):
        for variant, table in history.items():
            _line(axis, table, "step", loss, color=look[variant].colour, linewidth=0.8, alpha=0.45)
        for variant, table in validation.items():
            _line(axis, table, "step", loss, **_marked(look, variant))
        titles(axis, title, "training step", unit)
        if loss == "mean_mask":
            axis.set_ylim(-0.04, 1.06)
        else:
            log_scale(axis)
    _key(figure, axes[0])
    return figure


def epoch_curves(epochs: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Mask, scale of the UNet's input, and noise loss beside its floor, after every epoch."""
    figure, (masks, scale, losses) = panels(3, (11, 3.9))
    look = looks(models)
    for variant, rows in _by("variant", epochs):
        colour = look[variant].colour
        if {"min_mask", "max_mask"} <= set(rows):
            masks.fill_between(
                rows["epoch"], rows["min_mask"], rows["max_mask"], color=colour, alpha=0.16, linewidth=0
            )
        for axis, name in ((masks, "mean_mask"), (scale, "unet_input_std"), (losses, "diffusion_loss")):
            _line(axis, rows, "epoch", name, **_marked(look, variant))
        _line(losses, rows, "epoch", "gaussian_floor", color=colour, linewidth=1.4, linestyle=_FLOOR_LINE)
    masks.set_ylim(-0.04, 1.06)
    log_scale(scale)
    log_scale(losses)
    titles(masks, "Mask", "epoch", "mean and range over pictures")
    titles(scale, "Scale of the UNet's input", "epoch", "standard deviation")
    titles(losses, "Noise loss", "epoch", "mean squared error")
    for axis in (masks, scale, losses):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _key(figure, losses, with_floor=True)
    return figure


def timestep_curves(timesteps: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Noise loss by diffusion time step beside its Gaussian floor, and the ratio of the two."""
    figure, (losses, ratios) = panels(2, (11, 3.9))
    look = looks(models)
    floor = timesteps["gaussian_floor"]
    table = timesteps.assign(
        middle=(timesteps["first_step"] + timesteps["last_step"]) / 2,
        ratio=timesteps["diffusion_loss"] / floor.where(floor > 0),  # no channel has a floor of 0
    )
    for variant, rows in _by("variant", table):
        colour = look[variant].colour
        _line(losses, rows, "middle", "diffusion_loss", **_marked(look, variant))
        _line(losses, rows, "middle", "gaussian_floor", color=colour, linewidth=1.4, linestyle=_FLOOR_LINE)
        _line(ratios, rows, "middle", "ratio", **_marked(look, variant))
    log_scale(losses)
    log_scale(ratios)
    ratios.axhline(1, color=MUTED, linestyle=_FLOOR_LINE, linewidth=1.2)
    titles(losses, "Noise loss by time step", "diffusion time step (0: least noise)", "mean squared error")
    titles(ratios, "Loss over floor", "diffusion time step", "ratio")
    _key(figure, losses, with_floor=True)
    return figure


def mask_heatmap(masks: pd.DataFrame) -> Figure:
    """Mean mask of every class and latent channel, one panel per variant."""
    variants = list(_by("variant", masks))
    classes = masks["class_name"].nunique()
    height = 1.3 + min(classes, 2 * _MOST_CLASSES) * (0.27 if classes <= _MOST_CLASSES else 0.12)
    figure, axes = panels(max(1, len(variants)), (11, height), sharey=True)
    mesh = None
    for axis, (variant, rows) in zip(axes, variants, strict=False):
        table = rows.pivot_table(index="class_name", columns="channel", values="mean_mask", sort=False)
        mesh = axis.pcolormesh(table.to_numpy(), cmap="viridis", vmin=0, vmax=1)
        _label_cells(axis, table)
        titles(axis, shortened(variant), "latent channel")
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
    for (row, channel), value in np.ndenumerate(table.to_numpy(dtype=float)):
        ink = "#ffffff" if value < _BRIGHT else "#000000"
        axis.text(channel + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)


def distillation_curves(history: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Each term of the distillation loss by step, a panel a term that any student has, a line a student."""
    known = history.dropna(axis="columns", how="all").columns
    shown = [each for each in _TERMS if each[0] in known] or _TERMS[:1]
    figure, axes = panels(len(shown), (2 + 3 * len(shown), 3.9))
    look = looks(models)
    for axis, (term, title) in zip(axes, shown, strict=True):
        for student, rows in _by("student", history):
            each = look[student]
            _line(axis, rows, "step", term, color=each.colour, linestyle=each.dashes, linewidth=1.4,
                  label=literal(shortened(student)))  # fmt: skip
        log_scale(axis, least=_LOGARITHMIC)
        titles(axis, title, "step", "squared error" if term == "task" else "relative squared distance")
    _key(figure, axes[0])
    return figure


def distillation_quality(
    validation: pd.DataFrame, students: Mapping[str, Mapping[str, Any]], models: Sequence[str]
) -> Figure:
    """Held-out task loss by step, and the distance to real pictures where it was measured.

    Args:
        validation: Rows of `validation.csv`.
        students: How each was trained; a ring is drawn around the step `kept_step`.
        models: All models of the report, which fixes the colours.
    """
    known = [str(name) for name in validation.dropna(axis="columns", how="all")]
    shown = [("task", "Task loss on test pictures", "mean squared error")]
    shown += [(name, column(name).title, column(name).heading) for name in known if is_distance(name)][:1]
    figure, axes = panels(len(shown), (5.5 * len(shown), 4.0))
    look = looks(models)
    for axis, (name, title, unit) in zip(axes, shown, strict=True):
        for student, rows in _by("student", validation):
            _validated(axis, rows, name, look[student], student, students.get(student, {}).get("kept_step"))
        log_scale(axis, least=_LOGARITHMIC)
        titles(axis, title, "step (0: before training)", unit)
    _key(figure, axes[0])
    return figure


def _validated(axis: Axes, rows: pd.DataFrame, name: str, look: Look, student: str, kept: int | None) -> None:
    """A line with 95 % intervals where there are standard errors, and a ring around the step kept."""
    if name not in rows:
        return
    rows = rows.dropna(subset=[name])
    error = rows.get(f"{name}_se")
    axis.errorbar(
        rows["step"], rows[name], yerr=None if error is None else SURE * error.fillna(0),
        color=look.colour, linestyle=look.dashes, marker=look.marker, markersize=4.5, linewidth=1.4,
        elinewidth=0.9, label=literal(shortened(student)),
    )  # fmt: skip
    rows = rows[rows["step"] == kept]
    axis.plot(rows["step"], rows[name], "o", markersize=11, markerfacecolor="none",
              markeredgecolor=look.colour, linestyle="none")  # fmt: skip


def _by(name: str, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows of each variant or student."""
    for value, rows in table.groupby(name, sort=False):
        yield str(value), rows


def _marked(look: Mapping[str, Look], name: str) -> dict[str, Any]:
    return look[name].marked(4.5) | {"linewidth": 1.8, "label": literal(shortened(name))}


def _line(axis: Axes, table: pd.DataFrame, x: str, y: str, **look: Any) -> None:
    if y in table:
        axis.plot(table[x], table[y], **look)


def _key(figure: Figure, axis: Axes, with_floor: bool = False) -> None:
    """The lines of an axis, and what the dashes are."""
    handles, _ = axis.get_legend_handles_labels()
    if with_floor:
        handles.append(Line2D([], [], color=MUTED, linestyle=_FLOOR_LINE, label="Gaussian floor"))
    if handles:
        legend(figure, handles=handles, loc="outside lower center", ncols=6 if with_floor else 5)
