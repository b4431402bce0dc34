"""Figures of training and of distillation."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pelap.report.style import INK, legend, log_scale, looks, panels, shortened, titles

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
