"""Figures of training and of distillation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pelap.report.figures.budget import SURE
from pelap.report.figures.style import (
    Look,
    legend,
    literal,
    log_scale,
    looks,
    panels,
    shortened,
    titles,
)
from pelap.report.tables import column, is_distance

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
_LOGARITHMIC = 4
"""Ratio of the greatest to the least value from which on a loss has a logarithmic axis."""


def training_curves(
    history: Mapping[str, pd.DataFrame], validation: Mapping[str, pd.DataFrame], models: Sequence[str]
) -> Figure:
    """Losses by step: thin lines on training batches, thick lines with markers on test pictures."""
    figure, axes = panels(3, (11, 3.7))
    look = looks(models)
    for axis, (loss, title, unit) in zip(axes, _LOSSES, strict=True):
        for variant, table in history.items():
            _line(axis, table, loss, color=look[variant].colour, linewidth=0.8, alpha=0.45)
        for variant, table in validation.items():
            _line(
                axis, table, loss, color=look[variant].colour, linewidth=1.8, markersize=4.5,
                marker=look[variant].marker, label=literal(shortened(variant)),
            )  # fmt: skip
        titles(axis, title, "training step", unit)
        if loss == "mean_mask":
            axis.set_ylim(-0.04, 1.06)
        else:
            log_scale(axis, _values(history, validation, loss))
    _key(figure, axes[0])
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


def distillation_curves(history: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Each term of the distillation loss by step, a panel a term that any student has, a line a student."""
    known = history.dropna(axis="columns", how="all").columns
    shown = [each for each in _TERMS if each[0] in known] or _TERMS[:1]
    figure, axes = panels(len(shown), (2 + 3 * len(shown), 3.9))
    look = looks(models)
    for axis, (term, title) in zip(axes, shown, strict=True):
        for student, rows in _by_student(history):
            each = look[student]
            _line(axis, rows, term, color=each.colour, linestyle=each.dashes, linewidth=1.4,
                  label=literal(shortened(student)))  # fmt: skip
        log_scale(axis, history.get(term, ()), least=_LOGARITHMIC)
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
    distance = next((name for name in known if is_distance(name)), None)
    shown = [("task", "Task loss on test pictures", "mean squared error")]
    if distance is not None:
        heading = column(distance)
        shown.append((distance, heading.title, heading.heading))
    figure, axes = panels(len(shown), (5.5 * len(shown), 4.0))
    look = looks(models)
    for axis, (name, title, unit) in zip(axes, shown, strict=True):
        for student, rows in _by_student(validation):
            _validated(axis, rows, name, look[student], student, students.get(student, {}).get("kept_step"))
        log_scale(axis, validation.get(name, ()), least=_LOGARITHMIC)
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


def _by_student(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for student, rows in table.groupby("student", sort=False):
        yield str(student), rows


def _key(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        legend(figure, handles=handles, labels=labels, loc="outside lower center", ncols=5)
