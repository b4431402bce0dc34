"""Figures of the study of ways to choose operators."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pelap.report.figures.style import (
    INK,
    MUTED,
    PAPER,
    Label,
    literal,
    log_scale,
    nothing,
    place,
    shortened,
    titles,
)
from pelap.report.tables import CACHED, MINUS, column, split_row
from workflow.studies.choosing.plans import Cell
from workflow.studies.choosing.tables import several, shared_amount
from workflow.studies.common import (
    around_zero,
    legend_below,
    mark,
    of_dataset,
    panel_grid,
    rows_down,
    seed_dots,
)

FAMILIES: dict[str, tuple[str, ...]] = {  # of the methods of presets/choosing.yaml, by what they go by
    "LD-Pruner's score or its terms": ("ld-pruner", "avg", "std", "product"),
    "its score and the time saved": ("per-ms", "knapsack"),
    "its score, in rounds": ("greedy", "greedy-knapsack"),
    "another criterion": ("random", "magnitude", "taylor", "output-error", "similarity"),
}
OTHERS = "other methods"
_STYLES = (("#0072b2", "o"), ("#009e73", "D"), ("#d55e00", "s"), ("#aa4499", "^"), ("#997700", "v"))
_LOOKS = dict(zip((*FAMILIES, OTHERS), _STYLES, strict=True))  # colour and marker of a family
_DASHED: Any = (0, (4, 2.5))
_RIVALS = ("s", "D", ">", "P", "X")  # markers of what saves time without pruning
_FAR = 4  # ratio of the greatest to the least value from which on an axis is logarithmic
_ROW = 0.28  # height of a method in inches
_STEPS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)  # ticks to either side of 0
_TIMES = {"before": "before fine-tuning", "after": "after fine-tuning"}
_FIELDS = {"before": "fd_pruned", "after": "fd_tuned"}
_WHOSE = {"before": "the dense model's", "after": "the control's"}  # whose distance is taken away


def family_of(method: object) -> str:
    """What a method goes by."""
    return next((name for name, methods in FAMILIES.items() if method in methods), OTHERS)


def threshold_figure(
    methods: pd.DataFrame, rivals: pd.DataFrame, cells: Sequence[Cell], metric: str
) -> Figure:
    """Distance against the time saved, for methods with several amounts, before and after further training.

    By `method_table` and `rival_table`; the cells are for the dense model's and the control's distances.
    """
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    figure, places = panel_grid(_TIMES, datasets, (0.8 + 5.2 * max(2, len(datasets)), 7.6))
    curves = methods[methods.groupby("method")["amount"].transform("nunique") > 1]
    rivals = _beside(rivals, cells[0]).dropna(subset=["time_saved_mean", "fd_mean"])
    kinds = _kinds(rivals, cells[0])
    time, distance = "time saved (%): of a UNet pass; grey: of a picture", column(metric)
    for axis, when, dataset in places:
        lines, points = of_dataset(curves, dataset), of_dataset(rivals, dataset)
        _levels(axis, [cell for cell in cells if cell.dataset == dataset], metric)
        for model, rows in points.groupby("model", sort=False):
            look: Any = {"color": MUTED, "marker": kinds[str(model)][0], "linestyle": "none"}
            _points(axis, rows, "time_saved", "fd", markersize=5.5, **look)
        for method, rows in lines.groupby("method", sort=False):
            _curve(axis, str(method), rows, when)
        title = f"{literal(dataset)}, {_TIMES[when]}"
        titles(axis, title, time, f"{distance.title} ({distance.unit})")
        log_scale(axis, [*lines[f"{_FIELDS[when]}_mean"], *points["fd_mean"]], least=_FAR)
    for dataset in datasets:
        column_of_axes = [axis for axis, _, name in places if name == dataset]
        reach = [end for axis in column_of_axes for end in axis.get_xlim()]
        for axis in column_of_axes:
            axis.set_xlim(min(reach), max(reach))
    legend_below(figure, list(_threshold_handles(curves, cells[0], kinds)), 3, fontsize=9.5)
    for axis, when, dataset in places:
        _label(axis, of_dataset(curves, dataset), of_dataset(rivals, dataset), f"{_FIELDS[when]}_mean")
    return figure


def _beside(rivals: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """All but the dense model and the control themselves, which are drawn as levels."""
    full = rivals.loc[rivals["model"] == cell.dense, "steps"].max()
    levels = rivals["model"].isin([cell.dense, cell.control]) & (rivals["steps"] == full)
    others: pd.DataFrame = rivals[~levels]
    return others


def _kinds(rivals: pd.DataFrame, cell: Cell) -> dict[str, tuple[str, str]]:
    """Marker and meaning of every rival's model."""
    names = {
        model: "cached features; numbers: interval"
        if split_row(model, ())[0] == CACHED
        else f"{'dense' if model == cell.dense else shortened(model)}, fewer steps; numbers: steps"
        for model in dict.fromkeys(rivals["model"])
    }
    texts = list(dict.fromkeys(names.values()))
    return {model: (_RIVALS[texts.index(text) % len(_RIVALS)], text) for model, text in names.items()}


def _levels(axis: Axes, cells: Sequence[Cell], metric: str) -> None:
    """The dense model as a line; the control as a band, its mean and standard deviation over seeds."""
    dense = np.array([cell.value(cell.dense, metric) for cell in cells])
    axis.axhline(float(dense.mean()), color=INK, linewidth=1.0, linestyle=_DASHED, zorder=1.5)
    control = np.array([cell.value(cell.control, metric) for cell in cells])
    if np.isnan(control).any():
        return
    mean, std = float(control.mean()), float(control.std(ddof=1)) if len(control) > 1 else 0.0
    axis.axhspan(mean - std, mean + std, color=MUTED, alpha=0.22, linewidth=0, zorder=1.4)
    axis.axhline(mean, color=MUTED, linewidth=1.2, zorder=1.5)


def _curve(axis: Axes, method: str, rows: pd.DataFrame, when: str) -> None:
    """Hollow and dashed before further training, filled and with a line after it."""
    (colour, marker), field, before = _LOOKS[family_of(method)], _FIELDS[when], when == "before"
    there = rows.dropna(subset=["time_reduction_mean", f"{field}_mean"]).sort_values("amount")
    _points(axis, there, "time_reduction", field, color=colour, marker=marker, markersize=7, linewidth=1.6,
            linestyle=_DASHED if before else "-", markerfacecolor=PAPER if before else colour,
            markeredgewidth=1.5)  # fmt: skip


def _points(axis: Axes, rows: pd.DataFrame, x: str, y: str, **look: Any) -> None:
    """Means with standard deviations in both directions."""
    axis.errorbar(
        100 * rows[f"{x}_mean"], rows[f"{y}_mean"], xerr=100 * rows[f"{x}_std"], yerr=rows[f"{y}_std"],
        elinewidth=1, zorder=3, **look,
    )  # fmt: skip


def _threshold_handles(
    curves: pd.DataFrame, cell: Cell, kinds: Mapping[str, tuple[str, str]]
) -> Iterator[Line2D]:
    """Of methods, of the levels, and of what saves time without pruning."""
    for method in dict.fromkeys(curves["method"]):
        colour, marker = _LOOKS[family_of(method)]
        yield mark(shortened(str(method)), color=colour, marker=marker, markersize=7, linestyle="-")
    yield mark("dense", color=INK, linewidth=1.0, linestyle=_DASHED)
    if cell.control is not None:
        text = f"{shortened(cell.control)}: trained as long, mean ± std"
        yield mark(text, linewidth=7, alpha=0.4, linestyle="-")
    for marker, text in dict.fromkeys(kinds.values()):
        yield mark(text, marker=marker, markersize=5.5)


def _label(axis: Axes, curves: pd.DataFrame, rivals: pd.DataFrame, field: str) -> None:
    """Numbers beside the rivals, which cover nothing of the curves."""
    labels = []
    for row in rivals.to_dict(orient="records"):
        family, interval = split_row(row["model"], ())
        text = str(interval) if family == CACHED else f"{row['steps']:g}"
        labels.append(Label(100 * row["time_saved_mean"], row["fd_mean"], text))
    known = (
        curves.assign(x=100 * curves["time_reduction_mean"]).dropna(subset=["x", field]).sort_values("amount")
    )
    lines = [rows[["x", field]].to_numpy(dtype=float) for _, rows in known.groupby("method")]
    place(axis, labels, lines, 9)


def methods_figure(plans: pd.DataFrame, methods: pd.DataFrame, metric: str) -> Figure:
    """What each method costs at the amount that most have, by `plan_table` (dots) and `method_table`."""
    amount = shared_amount(methods)
    means, seeds = (table[table["amount"] == amount] for table in (methods, plans))
    names = _ranked(means)
    datasets = list(means["dataset"].unique()) or [""]
    size = (10.5, 1.0 + len(datasets) * (1.0 + _ROW * max(3, len(names))))
    figure, places = panel_grid(datasets, _TIMES, size)
    for axis, dataset, when in places:
        if not names:
            nothing(axis, "no plan has a method and an amount")
            continue
        _methods(axis, of_dataset(seeds, dataset), of_dataset(means, dataset), names, when)
        titles(axis, f"{literal(dataset)}, {_TIMES[when]}", f"{column(metric).title} less {_WHOSE[when]}")
        rows_down(axis, [literal(shortened(name)) if when == "before" else "" for name in names])
        axis.tick_params(axis="y", labelcolor=INK)
    if names:
        unit = " % of the time" if seeds["target"].eq("time_reduction").all() else ""
        texts = (f"asked for: {amount:g}{unit}", f"mean ± std of {seeds['seed'].nunique()} seeds")
        legend_below(figure, [*_family_handles(names), *map(mark, texts)], 2, fontsize=9.5)
    return figure


def _ranked(means: pd.DataFrame) -> list[str]:
    """Methods by their mean rank over data sets, after further training where all have that, else before."""
    for name in ("lost_after_mean", "lost_before_mean"):
        ranks = means.groupby("dataset")[name].rank()
        mean = ranks.groupby(means["method"]).mean()
        if mean.notna().all():
            break
    order: list[str] = mean.sort_values(kind="stable").index.tolist()
    return order


def _methods(axis: Axes, seeds: pd.DataFrame, means: pd.DataFrame, names: Sequence[str], when: str) -> None:
    """One panel; an axis around 0."""
    lost = f"lost_{when}"
    for height, name in enumerate(names):
        colour, marker = _LOOKS[family_of(name)]
        values = seeds.loc[seeds["method"] == name, lost].dropna()
        for row in means[means["method"] == name].to_dict(orient="records"):
            seed_dots(
                axis, height, list(values), row[f"{lost}_mean"], row[f"{lost}_std"], color=colour,
                marker=marker, markerfacecolor=PAPER if when == "before" else colour,
            )  # fmt: skip
    axis.axvline(0, color=MUTED, linewidth=1.1, zorder=1.5)
    _far_apart(axis, seeds[lost], "x")


def _far_apart(axis: Axes, values: "pd.Series[float]", which: str) -> None:
    """An axis that is logarithmic to either side of 0 where the values are far apart."""
    size = values.abs()[lambda all_: all_ > 0].dropna()
    if not len(size) or size.max() < _FAR * size.median():
        return
    linear = max(1.0, 10 ** np.floor(np.log10(size.median())))
    around_zero(axis, which, linear, 0.6, [step for step in _STEPS if step >= linear])
    low, high, room = float(values.min()), float(values.max()), 0.4 * linear
    getattr(axis, f"set_{which}lim")(1.6 * low if low < -room else -room, 1.6 * high if high > room else room)


def _family_handles(methods: Iterable[object]) -> list[Line2D]:
    there = {family_of(method) for method in methods}
    looks = {family: look for family, look in _LOOKS.items() if family in there}
    return [mark(family, color=colour, marker=marker) for family, (colour, marker) in looks.items()]


def additivity_figure(plans: pd.DataFrame, additivity: pd.DataFrame) -> Figure:
    """The joint score of plans against the sum of their scores, and the root of the sum of squares.

    By `plan_table`; rank correlations by `additivity_table`.
    """
    words = {"sum": "sum of the scores", "norm": "root of the sum of squared scores"}
    overall = additivity[additivity["amount"].isna()]

    def draw(axis: Axes, points: pd.DataFrame, dataset: str, name: str) -> None:
        x, y = f"{name}_of_scores", "joint_score"
        _scatter(axis, points, x, y)
        ends = np.array([points[[x, y]].min(axis=None), points[[x, y]].max(axis=None)], dtype=float)
        axis.plot(ends, ends, color=MUTED, linewidth=1.1, linestyle=_DASHED, zorder=1.5)
        log_scale(axis, points[x], "x")
        log_scale(axis, points[y], "y")
        titles(axis, literal(dataset), words[name], "joint score of the plan")
        _rho(axis, of_dataset(overall, dataset), f"rho_{name}")

    known = {name: f"joint_score > 0 and {name}_of_scores > 0" for name in words}
    equal = mark("equal", linewidth=1.1, linestyle=_DASHED)
    return _scatter_figure(plans, known, draw, 3.9, [equal])


def prediction_figure(plans: pd.DataFrame, prediction: pd.DataFrame, metric: str) -> Figure:
    """What plans cost against their joint score, before and after further training.

    By `plan_table`; rank correlations by `prediction_table`.
    """
    of_plans = prediction[(prediction["of"] == "plans") & (prediction["predictor"] == "joint_score")]

    def draw(axis: Axes, points: pd.DataFrame, dataset: str, when: str) -> None:
        target, lost = f"lost_{when}", f"{column(metric).title} less {_WHOSE[when]}"
        _scatter(axis, points, "joint_score", target, hollow=when == "before")
        axis.axhline(0, color=MUTED, linewidth=1.1, zorder=1.5)
        log_scale(axis, points["joint_score"], "x")
        _far_apart(axis, points[target], "y")
        titles(axis, f"{literal(dataset)}, {_TIMES[when]}", "joint score of the plan", lost)
        _rho(axis, of_dataset(of_plans[of_plans["target"] == target], dataset), "rho", "rho_std")

    known = {when: f"joint_score > 0 and lost_{when} == lost_{when}" for when in _TIMES}
    return _scatter_figure(plans, known, draw, 3.7)


def _scatter_figure(
    plans: pd.DataFrame,
    known: Mapping[str, str],
    draw: Callable[[Axes, pd.DataFrame, str, str], None],
    height: float,
    handles: Sequence[Line2D] = (),
) -> Figure:
    """A row of panels a data set, one for each of `known`: its name, and which plans of several operators."""
    chosen = several(plans)
    datasets = list(chosen["dataset"].unique()) or [""]
    figure, places = panel_grid(datasets, known, (10, 0.8 + height * len(datasets)))
    for axis, dataset, name in places:
        points = chosen[chosen["dataset"] == dataset].query(known[name])
        if points.empty:
            nothing(axis, "no plan of more than one operator was measured")
        else:
            draw(axis, points, dataset, name)
    if len(chosen):
        own = [*_family_handles(chosen["method"]), *handles]
        legend_below(figure, own, 3 if handles else 4, fontsize=9.5)
    return figure


def _scatter(axis: Axes, points: pd.DataFrame, x: str, y: str, hollow: bool = False) -> None:
    """Every plan in the colour of its method's family."""
    for family, rows in points.groupby(points["method"].map(family_of), sort=False):
        colour, marker = _LOOKS[str(family)]
        axis.plot(
            rows[x], rows[y], marker, color=colour, markersize=5.5, alpha=0.85, markeredgewidth=1.2,
            markerfacecolor=PAPER if hollow else colour, markeredgecolor=colour if hollow else PAPER,
        )  # fmt: skip


def _rho(axis: Axes, rows: pd.DataFrame, name: str, std: str = "") -> None:
    """A rank correlation above the right edge, if there is one."""
    if rows.empty or np.isnan(rows[name].iloc[0]):
        return
    text = f"{rows[name].iloc[0]:.2f}"
    if std and np.isfinite(rows[std].iloc[0]):
        text += f" ± {rows[std].iloc[0]:.2f}"
    axis.set_title(f"Spearman {text}".replace("-", MINUS), loc="right", fontsize=9.5, color=MUTED)
