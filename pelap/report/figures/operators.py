"""Figures of the operator scores: which matter, which went, where they are, what they cost."""

import itertools
import math
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from pelap.report.figures.style import (
    GRID,
    INK,
    INSIDE,
    KEPT,
    MUTED,
    PAPER,
    REMOVED,
    legend,
    literal,
    log_scale,
    nothing,
    panels,
    titles,
)

# What became of an operator, its colour and marker; in this order, so that what was chosen lies on top.
FATES = {"kept": (KEPT, "o"), "gone with a replaced one": (INSIDE, "d"), "replaced": (REMOVED, "v")}
LOWEST, HIGHEST = 40, 10  # operators that the bar chart names when there are many more
HATCH, FAINT = "/////", 0.4  # how a bar and a marker say that scoring stopped early
STOPPED = "stopped early: fewer latents"
_INFINITE = "∞"
_FEW, _GAP = 5, 2  # operators not worth leaving out; rows that the dots in their place take
# Colours and widths of an interval's line: the first lets it stand out from a bar in dark and in light.
_WHISKER = ((PAPER, 2.4), (INK, 0.9))
_MOST = 60  # operators that can be named below the axis of depth
_KINDS = {
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
_TOPS = {
    "conv_in": "in", "block_in": "in", "down_blocks": "down", "block_down": "down", "mid_block": "mid",
    "block_mid": "mid", "up_blocks": "up", "block_up": "up", "conv_norm_out": "out", "conv_act": "out",
    "conv_out": "out",
}  # fmt: skip
"""First parts of names in the order in which diffusers' UNets and ours run them, and where that is."""
_PARTS = (
    "resnets", "attentions", "motion_modules", "downsamplers", "upsamplers", "norm", "group_norm", "proj_in",
    "transformer_blocks", "norm1", "act1", "nonlinearity", "conv1", "time_emb_proj", "time_proj", "norm2",
    "act2", "to_q", "to_k", "to_v", "to_out", "conv2", "conv", "conv_shortcut", "proj_out",
)  # fmt: skip
"""Parts of one block in the order in which it runs them; a number between them counts turns."""


def fates_of(scores: pd.DataFrame, replaced: Collection[str]) -> "pd.Series[str]":
    """One of `FATES` for every operator."""

    def fate(name: str) -> str:
        if name in replaced:
            return "replaced"
        inside = any(name.startswith(f"{other}.") for other in replaced)
        return "gone with a replaced one" if inside else "kept"

    return scores["operator"].map(fate)


def outermost(scores: pd.DataFrame) -> pd.DataFrame:
    """Operators that lie in no other, in the order of execution, with their `section`.

    That is `in`, `down 0`, `mid`, `up 2` or `out`. Names that are not like those of a known UNet come last,
    in the order of the names, numbers counted, with an empty one.
    """
    rows = scores[scores["parent"].isna()]
    names = sorted(rows["operator"], key=_place)
    return (
        rows.set_index("operator").loc[names].reset_index().assign(section=[_section(name) for name in names])
    )


def median_by_section(scores: pd.DataFrame) -> dict[str, float]:
    """Median score of the outermost operators of each part of the network: in, down, mid, up and out."""
    rows = outermost(scores)
    part = [name.partition(" ")[0] for name in rows["section"]]
    return {str(name): float(group.median()) for name, group in rows.groupby(part, sort=False)["score"]}


def _section(name: str) -> str:
    top, *rest = name.split(".")
    where = _TOPS.get(top, "")
    return f"{where} {rest[0]}" if where and top.endswith("_blocks") and rest else where


def _place(name: str) -> tuple[object, ...]:
    """Sorts in the order of execution: by block, in it by turn with samplers last, in a turn by part."""
    top, *rest = name.split(".")
    if top not in _TOPS:
        return len(_TOPS), [_part(part) for part in (top, *rest)]
    block = int(rest.pop(0)) if rest and rest[0].isdigit() else 0
    turn = int(rest.pop(1)) if len(rest) > 1 and rest[1].isdigit() else 0
    last = bool(rest) and rest[0].endswith("samplers")
    return list(_TOPS).index(top), block, last, turn, [_part(part) for part in rest]


def _part(part: str) -> tuple[int, int, str]:
    if part.isdigit():
        return 0, int(part), ""
    return 1, _PARTS.index(part) if part in _PARTS else len(_PARTS), part


def _heights(scores: pd.DataFrame) -> pd.DataFrame:
    """Where scores and their intervals go on a logarithmic axis, which has no place for 0 and infinity.

    Returns:
        The columns score, low and high (NaN without an interval), infinite and early, in the index of
        `scores`. What is 0 stands below the least positive number, an infinite score above all finite ones.
    """
    columns = {"score": "score", "score_low": "low", "score_high": "high"}
    table = scores[list(columns)].rename(columns=columns).astype(float)
    infinite = np.isinf(table["score"])
    table = table.where(np.isfinite(table))
    values = table.to_numpy()
    positive = values[values > 0]
    if len(positive):
        table = table.clip(lower=positive.min() / 2)
    table[["low", "high"]] = table[["low", "high"]].where(~infinite)
    table["score"] = table["score"].where(~infinite, positive.max() * 1.5 if len(positive) else 1.0)
    return table.assign(infinite=infinite, early=scores["stopped_early"].astype(bool))


def operator_bars(scores: pd.DataFrame, replaced: Mapping[str, str]) -> Figure:
    """Scores as bars, lowest on top: the extremes, the replaced and the first one kept, dots for the rest.

    Args:
        scores: A row an operator.
        replaced: What stands in the place of each replaced operator.
    """
    ordered = scores.sort_values("score", kind="stable", ignore_index=True)
    ranks = np.flatnonzero(_named(fates_of(ordered, replaced)))
    skipped = np.diff(ranks, prepend=-1) - 1
    rows = np.arange(len(ranks)) + _GAP * np.cumsum(skipped > 0)
    figure, (axis,) = panels(1, (9.6, 1.5 + 0.185 * (max(rows, default=0) + 1)))
    if not len(ranks):
        nothing(axis, "no operator was scored")
        return figure
    _bars(axis, ordered.loc[ranks], rows, replaced)
    for row, count in zip(rows[skipped > 0], skipped[skipped > 0], strict=True):
        axis.text(
            0.5, row - _GAP / 2 - 0.5, f"… {count} more …", ha="center", va="center", fontsize=9,
            color=MUTED, transform=axis.get_yaxis_transform(),
        )  # fmt: skip
    return figure


def _named(fates: "pd.Series[str]") -> NDArray[np.bool_]:
    """Which operators get a bar: all of them if there are few, and those whose room dots would take."""
    if len(fates) <= LOWEST + HIGHEST + _FEW:
        return np.ones(len(fates), dtype=bool)
    rank = np.arange(len(fates))
    named: NDArray[np.bool_] = np.array(fates == "replaced")
    named |= (rank < LOWEST) | (rank >= len(fates) - HIGHEST) | (rank == np.argmax(fates == "kept"))
    ends = np.append(np.flatnonzero(named), len(fates))
    for start, end in itertools.pairwise(ends):
        named[start:end] |= end - start - 1 <= _GAP
    return named


def _bars(axis: Axes, ordered: pd.DataFrame, rows: NDArray[np.int64], replaced: Mapping[str, str]) -> None:
    fates, where = fates_of(ordered, replaced), _heights(ordered)
    bars = axis.barh(rows, where["score"], height=0.72, color=[FATES[each][0] for each in fates])
    for bar, early in zip(bars, where["early"], strict=True):
        if early:
            bar.set(hatch=HATCH, edgecolor=PAPER, linewidth=0)
    for colour, width in _WHISKER:
        axis.hlines(rows, where["low"], where["high"], color=colour, linewidth=width)
    axis.set_yticks(rows, [literal(name) for name in ordered["operator"]], family="monospace", fontsize=7.5)
    for label, each in zip(axis.get_yticklabels(), fates, strict=True):
        label.set_color(MUTED if each == "kept" else INK)
    axis.set_ylim(rows[-1] + 0.8, -0.8)
    axis.grid(visible=False, axis="y")
    log_scale(axis, ordered.loc[~where["infinite"], "score"], "x")
    if where["infinite"].any():
        axis.set_xlim(right=where["score"].max())
    for row, name, (score, _, high, infinite, _) in zip(
        rows, ordered["operator"], where.itertuples(index=False, name=None), strict=True
    ):
        text = f"{_INFINITE if infinite else ''} {replaced.get(name, '')}".strip()
        if text:
            _beside(axis, literal(text), np.nanmax([score, high]), row, 4, 10 if infinite else 7.5)
    titles(axis, x="score: change of the generated latents; thin lines: 95 % intervals")
    handles: list[Patch | Line2D] = [Patch(color=colour, label=each) for each, (colour, _) in FATES.items()]
    _legend_above(axis, handles, where, Patch(facecolor=KEPT, edgecolor=PAPER, linewidth=0, hatch=HATCH))


def score_latency(scores: pd.DataFrame, replaced: Mapping[str, str]) -> Figure:
    """Score against the time that an operator takes; cheap harm and much time lie right and low."""
    figure, (axis,) = panels(1, (8.6, 4.0))
    fates, where, share = fates_of(scores, replaced), _heights(scores), scores["latency_share"] * 100
    for each, (colour, marker) in FATES.items():
        for early, alpha in ((True, FAINT), (False, 0.85)):
            chosen = (fates == each) & (where["early"] == early)
            axis.plot(share[chosen], where.loc[chosen, "score"], marker, color=colour, markersize=6,
                      alpha=alpha, linestyle="none")  # fmt: skip
    log_scale(axis, scores.loc[~where["infinite"], "score"])
    _mark_infinite(axis, share, where)
    titles(axis, x="share of the UNet's time (%)", y="score (change of the latents)")
    handles: list[Patch | Line2D] = [_dot(each, *look) for each, look in FATES.items()]
    _legend_above(axis, handles, where, _dot("", KEPT, "o", FAINT))
    return figure


def _legend_above(
    axis: Axes, fates: list[Patch | Line2D], where: pd.DataFrame, stopped: Patch | Line2D
) -> None:
    stopped.set_label(STOPPED)
    handles = [*reversed(fates), *([stopped] if where["early"].any() else [])]
    legend(axis, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), handles=handles)


def score_depth(scores: pd.DataFrame, replaced: Mapping[str, str]) -> Figure:
    """Scores of the outermost operators in the order of execution, coloured by kind."""
    rows = outermost(scores)
    figure, (axis,) = panels(1, (11, 4.6))
    if rows.empty:
        nothing(axis, "no operator was scored")
        return figure
    where, hollow = _heights(rows), rows["operator"].isin(list(replaced))
    early = where["early"]
    axis.vlines(rows.index, where["low"], where["high"], color=INK, linewidth=_WHISKER[-1][1])
    for index, kind in enumerate(rows["kind"]):
        colour, marker = _KINDS.get(kind, _OTHER)
        axis.plot(
            index, where["score"][index], marker, color=colour, markersize=7.5, markeredgewidth=1.6,
            markerfacecolor=PAPER if hollow[index] else colour, alpha=FAINT if early[index] else None,
        )  # fmt: skip
    log_scale(axis, rows.loc[~where["infinite"], "score"])
    _mark_infinite(axis, rows.index.to_series(), where)
    _name(axis, rows)
    titles(axis, y="score (change of the latents)")
    kinds = [kind for kind in dict.fromkeys([*_KINDS, *rows["kind"]]) if kind in set(rows["kind"])]
    handles = [_dot(literal(kind.replace("_", " ")), *_KINDS.get(kind, _OTHER)) for kind in kinds]
    if hollow.any():
        handles.append(_dot("hollow: replaced", MUTED, "o"))
        handles[-1].set(markerfacecolor=PAPER, markeredgewidth=1.6)
    if early.any():
        handles.append(_dot(STOPPED, MUTED, "o", FAINT))
    ncols = len(handles) if len(handles) < 8 else math.ceil(len(handles) / 2)
    legend(figure, loc="outside lower center", ncols=ncols, handles=handles)
    return figure


def _name(axis: Axes, rows: pd.DataFrame) -> None:
    """Parts of the network above the axis with lines between them, operators below."""
    axis.grid(visible=False, axis="x")
    axis.set_xlim(-0.7, len(rows) - 0.3)
    labels = [literal(_inner(name)) if len(rows) <= _MOST else "" for name in rows["operator"]]
    axis.set_xticks(rows.index, labels, rotation=90, family="monospace", fontsize=7.5)
    starts = np.flatnonzero(rows["section"] != rows["section"].shift())
    for start, end in itertools.pairwise([*starts, len(rows)]):
        if start:
            axis.axvline(start - 0.5, color=GRID, linewidth=1.2)
        axis.text(
            (start + end - 1) / 2, 1.01, rows["section"].iloc[start], ha="center", va="bottom", fontsize=9,
            color=INK, fontweight="bold", transform=axis.get_xaxis_transform(),
        )  # fmt: skip


def _inner(name: str) -> str:
    """The name without the block, where that is what its section stands for."""
    top, *rest = name.split(".")
    if top not in _TOPS:
        return name
    return ".".join(rest[1:] if rest and rest[0].isdigit() else rest) or top


def _mark_infinite(axis: Axes, across: "pd.Series[float]", where: pd.DataFrame) -> None:
    """A sign of infinity beside every marker that stands above all finite scores for want of a place."""
    for x, y in zip(across[where["infinite"]], where.loc[where["infinite"], "score"], strict=True):
        _beside(axis, _INFINITE, x, y, 6, 11)


def _beside(axis: Axes, text: str, x: float, y: float, gap: float, size: float) -> None:
    """A text on the right of a point."""
    axis.annotate(text, (x, y), xytext=(gap, 0), textcoords="offset points", va="center_baseline",
                  fontsize=size, color=INK, annotation_clip=False)  # fmt: skip


def _dot(label: str, colour: str, marker: str, alpha: float = 1.0) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", label=label, alpha=alpha)
