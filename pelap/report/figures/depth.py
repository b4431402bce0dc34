"""Figure of the scores along the network: where it is that operators are hardly missed."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pelap.report.figures.overview import nothing
from pelap.report.figures.pruning import (
    FAINT,
    STOPPED,
    WHISKER,
    dot,
    mark_infinite,
)
from pelap.report.figures.style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    legend,
    literal,
    log_scale,
    panels,
    titles,
)
from pelap.report.operators import outermost, places, section

_LOOKS = {
    "residual_block": ("#0072b2", "o"),
    "block": ("#0072b2", "o"),
    "attention": ("#e69f00", "s"),
    "transformer": ("#e69f00", "s"),
    "transformer_block": ("#e69f00", "s"),
    "downsampler": ("#009e73", "v"),
    "upsampler": ("#cc79a7", "^"),
    "convolution": ("#882255", "P"),
    "linear": ("#999933", "p"),
    "normalisation": ("#56b4e9", "D"),
    "activation": ("#aa4499", "h"),
    "feed_forward": ("#44aa99", "H"),
}
_OTHER = ("#7f8790", "*")
_MOST = 60
"""Operators that can be named below the axis."""


def score_depth(scores: pd.DataFrame, replaced: Mapping[str, str]) -> Figure:
    """Scores of the outermost operators in the order of execution, coloured by kind."""
    rows = outermost(scores)
    figure, (axis,) = panels(1, (11, 4.6))
    if rows.empty:
        nothing(axis, "no operator was scored")
        return figure
    where, stopped = places(rows), rows["stopped_early"].astype(bool)
    axis.vlines(rows.index, where["low"], where["high"], color=INK, linewidth=WHISKER[-1][1])
    points = zip(rows["operator"], rows["kind"], stopped, where["score"], strict=True)
    for index, (name, kind, early, place) in enumerate(points):
        colour, marker = _LOOKS.get(kind, _OTHER)
        axis.plot(
            index, place, marker, color=colour, markersize=7.5, markeredgewidth=1.6,
            markerfacecolor=PAPER if name in replaced else colour, alpha=FAINT if early else None,
        )  # fmt: skip
    log_scale(axis, rows.loc[~where["infinite"], "score"])
    mark_infinite(axis, rows.index.to_series(), where)
    _name(axis, rows)
    titles(axis, y="score (change of the latents)")
    kinds = [kind for kind in dict.fromkeys([*_LOOKS, *rows["kind"]]) if kind in set(rows["kind"])]
    handles = [dot(literal(kind.replace("_", " ")), *_LOOKS.get(kind, _OTHER)) for kind in kinds]
    if rows["operator"].isin(list(replaced)).any():
        handles.append(dot("hollow: replaced", MUTED, "o"))
        handles[-1].set(markerfacecolor=PAPER, markeredgewidth=1.6)
    if stopped.any():
        handles.append(dot(STOPPED, MUTED, "o", FAINT))
    ncols = len(handles) if len(handles) < 8 else math.ceil(len(handles) / 2)
    legend(figure, loc="outside lower center", ncols=ncols, handles=handles)
    return figure


def _name(axis: Axes, rows: pd.DataFrame) -> None:
    """Parts of the network above the axis with lines between them, operators below."""
    axis.grid(visible=False, axis="x")
    axis.set_xlim(-0.7, len(rows) - 0.3)
    labels = [literal(_inner(name)) for name in rows["operator"]]
    if len(rows) > _MOST:
        labels = [""] * len(rows)
    axis.set_xticks(rows.index, labels, rotation=90, family="monospace", fontsize=7.5)
    starts = np.flatnonzero(rows["section"] != rows["section"].shift())
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        if start:
            axis.axvline(start - 0.5, color=GRID, linewidth=1.2)
        axis.text(
            (start + end - 1) / 2, 1.01, rows["section"].iloc[start], ha="center", va="bottom", fontsize=9,
            color=INK, fontweight="bold", transform=axis.get_xaxis_transform(),
        )  # fmt: skip


def _inner(name: str) -> str:
    """The name without the block, where that is what its section stands for."""
    if not section(name):
        return name
    top, *rest = name.split(".")
    rest = rest[1:] if rest and rest[0].isdigit() else rest
    return ".".join(rest) or top
