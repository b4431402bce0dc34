"""Figures of the operator scores: which operators matter, which went, what they cost."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pelap.report.figures.overview import nothing
from pelap.report.figures.style import (
    INK,
    INSIDE,
    KEPT,
    MUTED,
    PAPER,
    REMOVED,
    legend,
    literal,
    log_scale,
    panels,
    titles,
)
from pelap.report.operators import FATES, fate, places

LOWEST, HIGHEST = 40, 10
"""Operators that the bar chart names when there are many more."""
COLOURS = dict(zip(FATES, (KEPT, INSIDE, REMOVED), strict=True))
MARKERS = dict(zip(FATES, "odv", strict=True))
HATCH, FAINT = "/////", 0.4
"""How a bar and a marker say that scoring stopped early."""
STOPPED = "stopped early: fewer latents"
INFINITE = "∞"
_FEW, _GAP = 5, 2
"""Operators not worth leaving out; rows that the dots in their place take."""
WHISKER = ((PAPER, 2.4), (INK, 0.9))
"""Colours and widths of an interval's line: the first lets it stand out from a bar in dark and in light."""


def operator_bars(scores: pd.DataFrame, replaced: Mapping[str, str]) -> Figure:
    """Scores as bars, lowest on top: the extremes, the replaced and the first one kept, dots for the rest.

    Args:
        scores: A row an operator.
        replaced: What stands in the place of each replaced operator.
    """
    ordered = scores.sort_values("score", kind="stable", ignore_index=True)
    ranks = np.flatnonzero(_named(ordered, replaced))
    rows = np.arange(len(ranks)) + _GAP * np.cumsum(np.diff(ranks, prepend=-1) > 1)
    figure, (axis,) = panels(1, (9.6, 1.5 + 0.185 * (max(rows, default=0) + 1)))
    if not len(ranks):
        nothing(axis, "no operator was scored")
        return figure
    _bars(axis, ordered.loc[ranks], rows, replaced)
    for row, skipped in zip(rows, np.diff(ranks, prepend=-1) - 1, strict=True):
        if skipped:
            axis.text(
                0.5, row - _GAP / 2 - 0.5, f"… {skipped} more …", ha="center", va="center", fontsize=9,
                color=MUTED, transform=axis.get_yaxis_transform(),
            )  # fmt: skip
    return figure


def _named(ordered: pd.DataFrame, replaced: Mapping[str, str]) -> NDArray[np.bool_]:
    """Which operators get a bar: all of them if there are few, and those whose room dots would take."""
    if len(ordered) <= LOWEST + HIGHEST + _FEW:
        return np.ones(len(ordered), dtype=bool)
    rank = np.arange(len(ordered))
    fates = [fate(name, replaced) for name in ordered["operator"]]
    first_kept = fates.index("kept") if "kept" in fates else 0
    chosen = np.array([each == "replaced" for each in fates])
    named: NDArray[np.bool_] = chosen | (rank < LOWEST) | (rank >= len(ordered) - HIGHEST)
    named |= rank == first_kept
    ends = np.append(np.flatnonzero(named), len(ordered))
    for start, end in itertools.pairwise(ends):
        named[start:end] |= end - start - 1 <= _GAP
    return named


def _bars(axis: Axes, ordered: pd.DataFrame, rows: NDArray[np.int64], replaced: Mapping[str, str]) -> None:
    fates = [fate(name, replaced) for name in ordered["operator"]]
    where, stopped = places(ordered), ordered["stopped_early"].astype(bool)
    bars = axis.barh(rows, where["score"], height=0.72, color=[COLOURS[each] for each in fates])
    for bar, early in zip(bars, stopped, strict=True):
        if early:
            bar.set(hatch=HATCH, edgecolor=PAPER, linewidth=0)
    for colour, width in WHISKER:
        axis.hlines(rows, where["low"], where["high"], color=colour, linewidth=width)
    axis.set_yticks(rows, [literal(name) for name in ordered["operator"]], family="monospace", fontsize=7.5)
    for label, each in zip(axis.get_yticklabels(), fates, strict=True):
        label.set_color(MUTED if each == "kept" else INK)
    axis.set_ylim(rows[-1] + 0.8, -0.8)
    axis.grid(visible=False, axis="y")
    log_scale(axis, ordered.loc[~where["infinite"], "score"], "x")
    if where["infinite"].any():
        axis.set_xlim(right=where["score"].max())
    _name_replacements(axis, ordered["operator"], where, rows, replaced)
    titles(axis, x="score: change of the generated latents; thin lines: 95 % intervals")
    handles = [Patch(color=colour, label=each) for each, colour in reversed(COLOURS.items())]
    if stopped.any():
        handles.append(Patch(facecolor=KEPT, edgecolor=PAPER, linewidth=0, hatch=HATCH, label=STOPPED))
    legend(axis, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), handles=handles)


def _name_replacements(
    axis: Axes,
    names: "pd.Series[str]",
    where: pd.DataFrame,
    rows: NDArray[np.int64],
    replaced: Mapping[str, str],
) -> None:
    """What stands in an operator's place, behind its bar; a sign of infinity behind one that has no end."""
    for row, name, place in zip(rows, names, where.itertuples(index=False), strict=True):
        signs = [INFINITE] if place.infinite else []
        text = " ".join([*signs, *([replaced[name]] if name in replaced else [])])
        if text:
            axis.annotate(
                literal(text), (np.nanmax([place.score, place.high]), row), xytext=(4, 0),
                textcoords="offset points", va="center_baseline", fontsize=10 if signs else 7.5,
                color=INK, annotation_clip=False,
            )  # fmt: skip


def score_latency(scores: pd.DataFrame, replaced: Mapping[str, str]) -> Figure:
    """Score against the time that an operator takes; cheap harm and much time lie right and low."""
    figure, (axis,) = panels(1, (8.6, 4.0))
    where = places(scores)
    fates = scores["operator"].map(lambda name: fate(name, replaced))
    stopped = scores["stopped_early"].astype(bool)
    for each, marker in MARKERS.items():
        for early, alpha in ((True, FAINT), (False, 0.85)):
            chosen = (fates == each) & (stopped == early)
            axis.plot(
                scores.loc[chosen, "latency_share"] * 100, where.loc[chosen, "score"], marker,
                color=COLOURS[each], markersize=6, alpha=alpha, linestyle="none",
            )  # fmt: skip
    log_scale(axis, scores.loc[~where["infinite"], "score"])
    mark_infinite(axis, scores["latency_share"] * 100, where)
    titles(axis, x="share of the UNet's time (%)", y="score (change of the latents)")
    handles = [dot(each, COLOURS[each], marker) for each, marker in reversed(MARKERS.items())]
    if stopped.any():
        handles.append(dot(STOPPED, KEPT, "o", FAINT))
    legend(axis, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), handles=handles)
    return figure


def mark_infinite(axis: Axes, across: "pd.Series[float]", where: pd.DataFrame) -> None:
    """A sign of infinity beside every marker that stands above all finite scores for want of a place."""
    for x, y in zip(across[where["infinite"]], where.loc[where["infinite"], "score"], strict=True):
        axis.annotate(
            INFINITE, (x, y), xytext=(6, 0), textcoords="offset points", va="center_baseline", fontsize=11,
            color=INK, annotation_clip=False,
        )  # fmt: skip


def dot(label: str, colour: str, marker: str, alpha: float = 1.0) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label, alpha=alpha)
