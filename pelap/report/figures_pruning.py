"""Figures of the operator scores: which operators matter, which went, what they cost."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pelap.report.figures import nothing
from pelap.report.style import INK, INSIDE, KEPT, MUTED, REMOVED, legend, log_scale, panels, titles

LOWEST, HIGHEST = 40, 10
"""Operators that the bar chart names when there are many more."""
FATES = {"taken out": REMOVED, "part of one taken out": INSIDE, "kept": KEPT}
"""What became of an operator, and its colour."""
MARKERS = {"kept": "o", "part of one taken out": "d", "taken out": "v"}
"""In drawing order: what was chosen lies on top."""
_FEW, _GAP = 5, 2
"""Operators not worth leaving out; rows that the dots in their place take."""


def operator_bars(scores: pd.DataFrame, removed: Collection[str]) -> Figure:
    """Scores as bars, lowest on top: the extremes and whatever was taken out, dots for the rest."""
    ordered = scores.sort_values("score", kind="stable", ignore_index=True)
    ranks = np.flatnonzero(_named(ordered, removed))
    rows = np.arange(len(ranks)) + _GAP * np.cumsum(np.diff(ranks, prepend=-1) > 1)
    figure, (axis,) = panels(1, (9.6, 1.5 + 0.185 * (max(rows, default=0) + 1)))
    if not len(ranks):
        nothing(axis, "no operator was scored")
        return figure
    _bars(axis, ordered.loc[ranks], rows, removed)
    for row, skipped in zip(rows, np.diff(ranks, prepend=-1) - 1, strict=True):
        if skipped:
            axis.text(
                0.5, row - _GAP / 2 - 0.5, f"… {skipped} more …", ha="center", va="center", fontsize=9,
                color=MUTED, transform=axis.get_yaxis_transform(),
            )  # fmt: skip
    return figure


def _named(ordered: pd.DataFrame, removed: Collection[str]) -> NDArray[np.bool_]:
    """Which operators get a bar: all of them if few are left out otherwise."""
    rank = np.arange(len(ordered))
    named = (rank < LOWEST) | (rank >= len(ordered) - HIGHEST)
    named |= ordered["operator"].isin(list(removed)).to_numpy()
    return named if (~named).sum() > _FEW else np.ones_like(named)


def _bars(axis: Axes, ordered: pd.DataFrame, rows: NDArray[np.int64], removed: Collection[str]) -> None:
    fates = [_fate(name, removed) for name in ordered["operator"]]
    colours = [FATES[fate] for fate in fates]
    axis.barh(rows, _drawable(ordered["score"]), height=0.72, color=colours)
    axis.set_yticks(rows, list(ordered["operator"]), family="monospace", fontsize=7.5)
    for label, fate in zip(axis.get_yticklabels(), fates, strict=True):
        label.set_color(MUTED if fate == "kept" else INK)
    axis.set_ylim(rows[-1] + 0.8, -0.8)
    axis.grid(visible=False, axis="y")
    log_scale(axis, ordered["score"], "x")
    titles(axis, x="score: change of the latents' mean and spread (latent units)")
    legend(axis, loc="lower left", bbox_to_anchor=(0, 1), ncols=3,
           handles=[Patch(color=colour, label=fate) for fate, colour in FATES.items()])  # fmt: skip


def _fate(name: str, removed: Collection[str]) -> str:
    """One of `FATES`."""
    if name in removed:
        return "taken out"
    return "part of one taken out" if any(name.startswith(f"{other}.") for other in removed) else "kept"


def _drawable(scores: "pd.Series[float]") -> "pd.Series[float]":
    """Zero has no place on a logarithmic axis: show it just below the least positive score."""
    positive = scores[scores > 0]
    return scores.clip(lower=positive.min() / 2) if len(positive) else scores


def score_latency(scores: pd.DataFrame, removed: Collection[str]) -> Figure:
    """Score against the time that an operator takes; cheap harm and much time lie right and low."""
    figure, (axis,) = panels(1, (8.6, 4.0))
    heights = _drawable(scores["score"])
    fates = scores["operator"].map(lambda name: _fate(name, removed))
    for fate, marker in MARKERS.items():
        chosen = fates == fate
        axis.plot(
            scores.loc[chosen, "latency_share"] * 100, heights[chosen], marker, color=FATES[fate],
            markersize=6, alpha=0.85, linestyle="none",
        )  # fmt: skip
    log_scale(axis, scores["score"])
    titles(axis, x="share of the UNet's time (%)", y="score (latent units)")
    legend(
        axis,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        handles=[_dot(fate, FATES[fate], marker) for fate, marker in MARKERS.items()],
    )
    return figure


def _dot(label: str, colour: str, marker: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)
