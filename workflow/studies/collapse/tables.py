"""The collapse study: every control over seeds as a table and as one figure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from pelap.report.figures.style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    Look,
    legend,
    literal,
    log_scale,
    looks,
    panels,
    titles,
)

MIN_SEEDS = 3
"""Fewer say nothing about a standard deviation."""
DISTANCE = "fd_effnet_lite0"
CELL_COLUMNS = ["control", "dataset", "seed", "metric", "value"]
_KEYS = ["dataset", "control", "metric"]
_SUMMARY_COLUMNS = ["control", "dataset", "metric", "mean", "std", "n"]
_ROW = 0.29
"""Height of a control in inches."""
_OFFSETS = {1: (0.0,), 2: (-0.2, 0.2)}
"""Where the series of a panel lie around a control's line."""
_MARGIN = 1.3
"""Room at the ends of a logarithmic axis, as a factor."""
_ONE_DECADE, _FEW_DECADES = 20, 300
"""Ranges of a logarithmic axis below which there is room for labels at 2, 5, ... and at 3, 30, ..."""


@dataclass(frozen=True)
class Series:
    """A metric as a marker."""

    metric: str
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """What one column of the figure shows of every control."""

    title: str
    label: str
    series: tuple[Series, ...]
    log: bool = False
    floors: tuple[str, ...] = ()
    """Metrics that are drawn as reference marks."""
    line: float | None = None
    """A value that every control is compared with."""


PANELS = (
    Panel("Mask", "mean; active channels at the right", (Series("mean_mask"),)),
    Panel("Scale", "standard deviation of the UNet's input", (Series("unet_input_std"),), log=True, line=1.0),
    Panel(
        "Noise loss",
        "mean squared error of the noise",
        (Series("diffusion_loss"),),
        log=True,
        floors=("gaussian_floor", "zero_latent_floor"),
    ),
    Panel(
        "Reconstruction",
        "squared error of a picture",
        (Series("recon_mse"), Series("masked_recon_mse", hollow=True)),
        log=True,
    ),
    Panel("Fréchet distance", "to train pictures, effnet_lite0", (Series(DISTANCE),)),
)
OPEN, CHANNELS = "active_channels", "latent_channels"
FIGURE_METRICS = tuple(
    metric for panel in PANELS for metric in (*(each.metric for each in panel.series), *panel.floors)
)
_FLOOR_LOOKS: dict[str, tuple[str | int, float, int, str]] = {
    "gaussian_floor": ("|", 0.0, 13, "Gaussian floor"),
    "zero_latent_floor": (7, 0.22, 5, "floor of a zero latent"),
}
"""Marker, how far above the control's line, size, and meaning."""


def summarise(cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Statistics over seeds.

    Args:
        cells: `CELL_COLUMNS`, one value per row; missing and infinite values are not counted.

    Returns:
        One row per dataset, control and metric in order of appearance: mean, std (of a sample), n; and the
        rows with fewer seeds than `MIN_SEEDS`, which the first table does not have. What no seed has a value
        for is in neither.
    """
    finite = cells.assign(value=cells["value"].where(np.isfinite(cells["value"])))
    groups = finite.groupby(_KEYS, sort=False)["value"]
    table = pd.DataFrame({"mean": groups.mean(), "std": groups.std(ddof=1), "n": groups.count()})
    table = table.reset_index()[_SUMMARY_COLUMNS]
    enough = table["n"] >= MIN_SEEDS
    return table[enough].reset_index(drop=True), table[~enough & (table["n"] > 0)].reset_index(drop=True)


def left_out(few: pd.DataFrame, summary: pd.DataFrame) -> str:
    """What too few seeds have, each named as briefly as it can be: data set, control or metrics."""
    names = []
    for dataset, rows in few.groupby("dataset", sort=False):
        kept = summary[summary["dataset"] == dataset]
        if kept.empty:
            names.append(str(dataset))
            continue
        for control, metrics in rows.groupby("control", sort=False)["metric"]:
            some = f" ({', '.join(metrics)})" if (kept["control"] == control).any() else ""
            names.append(f"{dataset} {control}{some}")
    return ", ".join(names)


def family(control: str) -> str:
    """The first word of a control's name."""
    return control.partition("-")[0]


def study_figure(cells: pd.DataFrame, summary: pd.DataFrame, real: Mapping[str, float]) -> Figure:
    """A row of panels per data set, a line per control: mean and standard deviation, seeds as dots.

    Args:
        cells: `CELL_COLUMNS`.
        summary: From `summarise`.
        real: Fréchet distance of real pictures by data set.
    """
    datasets = list(dict.fromkeys(cells["dataset"]))
    controls = {
        name: list(dict.fromkeys(cells.loc[cells["dataset"] == name, "control"])) for name in datasets
    }
    look = looks(dict.fromkeys(family(name) for names in controls.values() for name in names))
    height = 0.8 + sum(0.9 + _ROW * len(names) for names in controls.values())
    figure, axes = panels(len(PANELS), (16, height), rows=len(datasets))
    places = [(dataset, panel) for dataset in datasets for panel in PANELS]
    for axis, (dataset, panel) in zip(axes, places, strict=True):
        seeds, means = cells[cells["dataset"] == dataset], summary[summary["dataset"] == dataset]
        _panel(axis, panel, seeds, means, controls[dataset], look)
        if panel is PANELS[0]:
            _open_channels(axis, seeds, controls[dataset])
            axis.set_yticks(range(len(controls[dataset])), [literal(name) for name in controls[dataset]])
            axis.tick_params(axis="y", labelcolor=INK)
            axis.set_ylabel(literal(dataset), fontsize=11, fontweight="bold", color=INK)
        if panel.series[0].metric == DISTANCE:
            axis.set_xlim(0, axis.get_xlim()[1] * 1.06)
            if math.isfinite(real.get(dataset, math.nan)):
                axis.axvline(real[dataset], color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    legend(figure, handles=_legend(look), loc="outside lower center", ncols=6)
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
    if panel.line is not None:
        axis.axvline(panel.line, color=MUTED, linewidth=0.9)
    for place, control in enumerate(controls):
        colours = look[family(control)]
        for each, offset in zip(panel.series, _OFFSETS[len(panel.series)], strict=True):
            values = _values(seeds, control, each.metric)
            _dots(axis, values, place + offset, colours, limits)
            row = means[(means["control"] == control) & (means["metric"] == each.metric)]
            if len(row):
                _mean(axis, row.iloc[0], place + offset, colours, each.hollow, limits)
        for metric in panel.floors:
            floor = _values(seeds, control, metric)
            if len(floor) and floor.mean() > 0:
                marker, above, size, _ = _FLOOR_LOOKS[metric]
                axis.plot(floor.mean(), place - above, marker=marker, color=INK, markersize=size, zorder=2)
    _between_families(axis, controls)
    axis.set_ylim(len(controls) - 0.4, -0.6)
    axis.set_yticks(range(len(controls)), [""] * len(controls))
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


def _limits(panel: Panel, seeds: pd.DataFrame) -> tuple[float, float] | None:
    """Ends of a logarithmic axis with room for all that it shows; None if nothing is above 0."""
    metrics = [each.metric for each in panel.series] + list(panel.floors)
    values = seeds.loc[seeds["metric"].isin(metrics), "value"].to_numpy(dtype=float)
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


def _dots(
    axis: Axes, values: NDArray[np.float64], place: float, look: Look, limits: tuple[float, float] | None
) -> None:
    """Seeds, just below the mean; what a logarithmic axis cannot show points off its left end."""
    style = {"color": look.colour, "markersize": 3.4, "markeredgewidth": 0, "alpha": 0.75, "linestyle": ""}
    shown = values if limits is None else values[values > 0]
    axis.plot(shown, [place + 0.17] * len(shown), "o", **style)  # type: ignore[arg-type]
    if limits is not None and len(shown) < len(values):
        axis.plot(
            limits[0], place, "<", color=look.colour, markerfacecolor=PAPER, markersize=6, clip_on=False
        )


def _mean(
    axis: Axes,
    row: "pd.Series[float]",
    place: float,
    look: Look,
    hollow: bool,
    limits: tuple[float, float] | None,
) -> None:
    """Mean and standard deviation; on a logarithmic axis a bar down to 0 or below ends at the left."""
    mean, std = float(row["mean"]), float(row["std"])
    lower = std if limits is None else min(std, mean - limits[0])
    if limits is not None and mean < limits[0]:
        return
    axis.errorbar(
        mean, place - 0.03, xerr=[[lower], [std]], color=look.colour, marker=look.marker, markersize=5.5,
        markerfacecolor=PAPER if hollow else look.colour, elinewidth=1.4, capsize=2.5, zorder=3,
    )  # fmt: skip


def _between_families(axis: Axes, controls: Sequence[str]) -> None:
    axis.grid(visible=False, axis="y")
    for place in range(1, len(controls)):
        if family(controls[place]) != family(controls[place - 1]):
            axis.axhline(place - 0.5, color=GRID, linewidth=1.2)


def _open_channels(axis: Axes, seeds: pd.DataFrame, controls: Sequence[str]) -> None:
    """The mask's own scale, and how many channels are open at its right."""
    axis.set_xlim(-0.04, 1.04)
    beside = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 9}
    axis.text(1.0, -0.95, "active", color=MUTED, **beside)  # type: ignore[arg-type]
    for place, control in enumerate(controls):
        there, of = (_values(seeds, control, metric) for metric in (OPEN, CHANNELS))
        if len(there) and len(of):
            text = f"{there.mean():.2g}/{of.mean():.2g}"
            axis.text(1.02, place, text, color=INK, **beside)  # type: ignore[arg-type]


def _legend(look: Mapping[str, Look]) -> Iterable[Line2D]:
    """What colours and marks mean."""

    def mark(label: str, marker: str | int, colour: str = INK, **more: Any) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, label=label, **more)  # type: ignore[arg-type]

    families = [mark(literal(name), each.marker, each.colour) for name, each in look.items()]
    floors = [mark(label, marker, markersize=size) for marker, _, size, label in _FLOOR_LOOKS.values()]
    return [
        *families,
        mark("a seed (above it mean ± standard deviation)", "o", MUTED, markersize=3.4),
        mark("decoded from z", "o", MUTED),
        mark("decoded from z*m", "o", MUTED, markerfacecolor=PAPER),
        *floors,
        mark("0, which this axis has not", "<", MUTED, markerfacecolor=PAPER),
        Line2D([], [], color=MUTED, linewidth=0.9, label="scale of the noise"),
        Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (4, 3)), label="real pictures"),
    ]
