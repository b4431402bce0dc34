"""The figure of the collapse study: every control over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from pelap.report.figures.style import GRID, INK, MUTED, PAPER, Look, literal, log_scale, looks, titles
from workflow.studies.common import legend_below, mark, of_dataset, panel_grid, rows_down, seed_dots

DISTANCE = "fd_effnet_lite0"
OPEN, CHANNELS = "active_channels", "latent_channels"
_ROW = 0.29  # height of a control in inches
_OFFSETS = (-0.2, 0.2)  # where two series of a panel lie around a control's line
_MARGIN = 1.3  # room at the ends of a logarithmic axis, as a factor
_ONE_DECADE, _FEW_DECADES = 20, 300
"""Ranges of a logarithmic axis below which there is room for labels at 2, 5, ... and at 3, 30, ..."""
_DASHED: Any = (0, (4, 3))


@dataclass(frozen=True)
class Panel:
    """What one column of the figure shows of every control."""

    title: str
    label: str
    metrics: tuple[str, ...]  # the second has hollow markers
    log: bool = False
    floors: tuple[str, ...] = ()  # metrics that are drawn as reference marks
    line: float | None = None  # a value that every control is compared with


_FLOORS = ("gaussian_floor", "zero_latent_floor")
PANELS = (
    Panel("Mask", "mean; active channels at the right", ("mean_mask",)),
    Panel("Scale", "standard deviation of the UNet's input", ("unet_input_std",), log=True, line=1.0),
    Panel("Noise loss", "mean squared error of the noise", ("diffusion_loss",), log=True, floors=_FLOORS),
    Panel("Reconstruction", "squared error of a picture", ("recon_mse", "masked_recon_mse"), log=True),
    Panel("Fréchet distance", "to train pictures, effnet_lite0", (DISTANCE,)),
)
FIGURE_METRICS = tuple(metric for panel in PANELS for metric in (*panel.metrics, *panel.floors))
_FLOOR_LOOKS: dict[str, tuple[str | int, float, int, str]] = {
    "gaussian_floor": ("|", 0.0, 13, "Gaussian floor"),
    "zero_latent_floor": (7, 0.22, 5, "floor of a zero latent"),
}
"""Marker, how far above the control's line, size, and meaning."""


def family(control: str) -> str:
    """The first word of a control's name."""
    return control.partition("-")[0]


def study_figure(cells: pd.DataFrame, summary: pd.DataFrame, real: Mapping[str, float]) -> Figure:
    """A row of panels per data set, a line per control: mean and standard deviation, seeds as dots.

    Args:
        cells: Columns control, dataset, seed, metric, value.
        summary: The controls and metrics whose mean is drawn.
        real: Fréchet distance of real pictures by data set.
    """
    controls = {
        str(name): list(dict.fromkeys(own["control"])) for name, own in cells.groupby("dataset", sort=False)
    }
    look = looks(dict.fromkeys(family(name) for names in controls.values() for name in names))
    height = 0.8 + sum(0.9 + _ROW * len(names) for names in controls.values())
    figure, places = panel_grid(controls, PANELS, (16, height))
    for axis, dataset, panel in places:
        seeds, names = of_dataset(cells, dataset), controls[dataset]
        _panel(axis, panel, seeds, of_dataset(summary, dataset), names, look)
        if panel is PANELS[0]:
            _open_channels(axis, seeds, names)
            axis.set_yticks(range(len(names)), [literal(name) for name in names])
            axis.tick_params(axis="y", labelcolor=INK)
            axis.set_ylabel(literal(dataset), fontsize=11, fontweight="bold", color=INK)
        if DISTANCE in panel.metrics:
            axis.set_xlim(0, axis.get_xlim()[1] * 1.06)
            if math.isfinite(real.get(dataset, math.nan)):
                axis.axvline(real[dataset], color=INK, linewidth=1.1, linestyle=_DASHED)
    legend_below(figure, _legend(look), 6)
    return figure


def _panel(
    axis: Axes,
    panel: Panel,
    seeds: pd.DataFrame,
    means: pd.DataFrame,
    controls: Sequence[str],
    look: Mapping[str, Look],
) -> None:
    """One panel of one data set."""
    limits = _limits(panel, seeds) if panel.log else None
    shown = set(means[["control", "metric"]].itertuples(index=False, name=None))
    if panel.line is not None:
        axis.axvline(panel.line, color=MUTED, linewidth=0.9)
    rows_down(axis, [""] * len(controls))
    for place, control in enumerate(controls):
        offsets = _OFFSETS if len(panel.metrics) > 1 else (0.0,)
        for number, (metric, offset) in enumerate(zip(panel.metrics, offsets, strict=True)):
            values, each = _values(seeds, control, metric), look[family(control)]
            face = PAPER if number else each.colour
            _row(axis, place + offset, values, (control, metric) in shown, limits,
                 color=each.colour, marker=each.marker, markerfacecolor=face)  # fmt: skip
        for metric in panel.floors:
            floor = _values(seeds, control, metric)
            if len(floor) and floor.mean() > 0:
                marker, above, size, _ = _FLOOR_LOOKS[metric]
                axis.plot(floor.mean(), place - above, marker=marker, color=INK, markersize=size, zorder=2)
        if place and family(control) != family(controls[place - 1]):
            axis.axhline(place - 0.5, color=GRID, linewidth=1.2)
    if limits is not None:
        axis.set_xlim(*limits)
        log_scale(axis, limits, "x")
        _log_ticks(axis, limits)
    titles(axis, panel.title, x=panel.label)


def _values(seeds: pd.DataFrame, control: str, metric: str) -> NDArray[np.float64]:
    """The finite values of a control's seeds."""
    chosen = seeds[(seeds["control"] == control) & (seeds["metric"] == metric)]
    values: NDArray[np.float64] = chosen["value"].to_numpy(dtype=np.float64)
    return values[np.isfinite(values)]


def _row(
    axis: Axes,
    place: float,
    values: NDArray[np.float64],
    enough: bool,
    limits: tuple[float, float] | None,
    **look: Any,
) -> None:
    """Seeds and, of enough of them, the mean; what a logarithmic axis cannot show points off its left end."""
    shown, mean, bars = values, math.nan, (0.0, 0.0)
    if enough:
        mean, std = float(values.mean()), float(values.std(ddof=1))
        bars = (std, std)
    if limits is not None:
        shown = values[values > 0]
        mean = mean if mean >= limits[0] else math.nan
        bars = (min(bars[0], mean - limits[0]), bars[1])  # a bar down to 0 or below ends at the left
        if len(shown) < len(values):
            axis.plot(
                limits[0], place, "<", color=look["color"], markerfacecolor=PAPER, markersize=6, clip_on=False
            )
    seed_dots(
        axis, place + 0.06, list(shown), mean, [[bars[0]], [bars[1]]], gap=-0.2, markersize=5.5,
        capsize=2.5, markeredgewidth=1, zorder=3, **look,
    )  # fmt: skip


def _limits(panel: Panel, seeds: pd.DataFrame) -> tuple[float, float] | None:
    """Ends of a logarithmic axis with room for all that it shows; None if nothing is above 0."""
    values = seeds.loc[seeds["metric"].isin([*panel.metrics, *panel.floors]), "value"].to_numpy(dtype=float)
    shown = values[np.isfinite(values) & (values > 0)]
    if not len(shown):
        return None
    extremes = np.append(shown, shown if panel.line is None else panel.line)
    return float(extremes.min()) / _MARGIN, float(extremes.max()) * _MARGIN


def _log_ticks(axis: Axes, limits: tuple[float, float]) -> None:
    """As many labels as a narrow panel has room for."""
    reach = limits[1] / limits[0]
    between = "25" if reach < _ONE_DECADE else "3" if reach < _FEW_DECADES else ""
    axis.xaxis.set_major_locator(LogLocator(numticks=5))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in between else "")


def _open_channels(axis: Axes, seeds: pd.DataFrame, controls: Sequence[str]) -> None:
    """The mask's own scale, and how many channels are open at its right."""
    axis.set_xlim(-0.04, 1.04)
    beside: Any = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 9}
    axis.text(1.0, -0.95, "active", color=MUTED, **beside)
    for place, control in enumerate(controls):
        there, of = (_values(seeds, control, metric) for metric in (OPEN, CHANNELS))
        if len(there) and len(of):
            axis.text(1.02, place, f"{there.mean():.2g}/{of.mean():.2g}", color=INK, **beside)


def _legend(look: Mapping[str, Look]) -> list[Line2D]:
    """What colours and marks mean."""
    hollow: Any = {"markerfacecolor": PAPER}
    floors = [
        mark(label, marker=marker, color=INK, markersize=size)
        for marker, _, size, label in _FLOOR_LOOKS.values()
    ]
    return [
        *(mark(name, marker=each.marker, color=each.colour) for name, each in look.items()),
        mark("a seed (above it mean ± standard deviation)", marker="o", markersize=3.4),
        mark("decoded from z", marker="o"),
        mark("decoded from z*m", marker="o", **hollow),
        *floors,
        mark("0, which this axis has not", marker="<", **hollow),
        mark("scale of the noise", linestyle="-", linewidth=0.9),
        mark("real pictures", linestyle=_DASHED, color=INK, linewidth=1.1),
    ]
