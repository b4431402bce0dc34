"""Figures of the operator scores: which operators matter, which went, what they cost."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pelap.report.figures import nothing
from pelap.report.style import INK, KEPT, MUTED, REMOVED, legend, log_scale, panels, titles

LOWEST, HIGHEST = 40, 10
"""Operators that the bar chart names when there are many more."""


def operator_bars(scores: pd.DataFrame, removed: Collection[str]) -> Figure:
    """Scores as bars, lowest on top; with many operators the middle is left out."""
    ordered = scores.sort_values("score", kind="stable")
    skipped = len(ordered) - LOWEST - HIGHEST
    if skipped > 5:
        ordered = pd.concat([ordered.head(LOWEST), ordered.tail(HIGHEST)])
    gap = 2 if skipped > 5 else 0
    rows = np.arange(len(ordered), dtype=float)
    rows[LOWEST:] += gap
    figure, (axis,) = panels(1, (9.6, 1.5 + 0.185 * (len(ordered) + gap)))
    if ordered.empty:
        nothing(axis, "no operator was scored")
        return figure
    _bars(axis, ordered, rows, removed)
    if gap:
        axis.text(
            0.5, LOWEST + 0.5, f"… {skipped} more …", ha="center", va="center", fontsize=9, color=MUTED,
            transform=axis.get_yaxis_transform(),
        )  # fmt: skip
    return figure


def _bars(axis: Axes, ordered: pd.DataFrame, rows: "np.ndarray[tuple[int], np.dtype[np.float64]]",
          removed: Collection[str]) -> None:  # fmt: skip
    colours = [REMOVED if name in removed else KEPT for name in ordered["operator"]]
    axis.barh(rows, _drawable(ordered["score"]), height=0.72, color=colours)
    axis.set_yticks(rows, list(ordered["operator"]), family="monospace", fontsize=7.5)
    for label, name in zip(axis.get_yticklabels(), ordered["operator"], strict=True):
        label.set_color(INK if name in removed else MUTED)
    axis.set_ylim(rows[-1] + 0.8, -0.8)
    axis.grid(visible=False, axis="y")
    log_scale(axis, ordered["score"], "x")
    titles(axis, x="score: change of the latents' mean and spread (latent units)")
    legend(axis, loc="lower left", bbox_to_anchor=(0, 1), ncols=2,
           handles=[Patch(color=REMOVED, label="taken out"), Patch(color=KEPT, label="kept")])  # fmt: skip


def _drawable(scores: "pd.Series[float]") -> "pd.Series[float]":
    """Zero has no place on a logarithmic axis: show it just below the least positive score."""
    positive = scores[scores > 0]
    return scores.clip(lower=positive.min() / 2) if len(positive) else scores


def score_latency(scores: pd.DataFrame, removed: Collection[str]) -> Figure:
    """Score against the time that an operator takes; cheap harm and much time lie right and low."""
    figure, (axis,) = panels(1, (8.6, 4.0))
    heights = _drawable(scores["score"])
    taken = scores["operator"].isin(list(removed))
    for chosen, colour, marker in ((~taken, KEPT, "o"), (taken, REMOVED, "v")):
        axis.plot(
            scores.loc[chosen, "latency_share"] * 100, heights[chosen], marker, color=colour,
            markersize=6, alpha=0.85, linestyle="none",
        )  # fmt: skip
    log_scale(axis, scores["score"])
    titles(axis, x="share of the UNet's time (%)", y="score (latent units)")
    legend(axis, loc="lower right", handles=[_dot("taken out", REMOVED, "v"), _dot("kept", KEPT, "o")])
    return figure


def _dot(label: str, colour: str, marker: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)
