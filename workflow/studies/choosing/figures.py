"""Figures of the study of ways to choose operators."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from pelap.report.figures.labels import Label, place
from pelap.report.figures.style import (
    INK,
    MUTED,
    PAPER,
    legend,
    literal,
    log_scale,
    nothing,
    panels,
    shortened,
    titles,
)
from pelap.report.tables import CACHED, MINUS, column, split_row
from workflow.studies.choosing.tables import Cell, several, shared_amount

FAMILIES: dict[str, tuple[str, ...]] = {
    "LD-Pruner's score or its terms": ("ld-pruner", "avg", "std", "product"),
    "its score and the time saved": ("per-ms", "knapsack"),
    "its score, in rounds": ("greedy", "greedy-knapsack"),
    "another criterion": ("random", "magnitude", "taylor", "output-error", "similarity"),
}
"""The methods of presets/choosing.yaml by what they go by; a method of another name is in none."""
OTHERS = "other methods"
_STYLES = (("#0072b2", "o"), ("#009e73", "D"), ("#d55e00", "s"), ("#aa4499", "^"), ("#997700", "v"))
_LOOKS = dict(zip((*FAMILIES, OTHERS), _STYLES, strict=True))
"""Colour and marker of a family."""
_DASHED = (0, (4, 2.5))
_RIVALS = ("s", "D", ">", "P", "X")
"""Markers of what saves time without pruning."""
_FAR = 4
"""Ratio of the greatest to the least value from which on an axis is logarithmic."""
_ROW = 0.28
"""Height of a method in inches."""
_STEPS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
"""Ticks of an axis that is linear around 0 and logarithmic beyond, to either side."""
_TIMES = {"before": "before fine-tuning", "after": "after fine-tuning"}
_FIELDS = {"before": "fd_pruned_mean", "after": "fd_tuned_mean"}
_WHOSE = {"before": "the dense model's", "after": "the control's"}
"""Whose distance is taken away."""


def family_of(method: object) -> str:
    """What a method goes by."""
    return next((name for name, methods in FAMILIES.items() if method in methods), OTHERS)


def threshold_figure(
    methods: pd.DataFrame, rivals: pd.DataFrame, cells: Sequence[Cell], metric: str
) -> Figure:
    """Distance against the time saved, for methods with several amounts, before and after further training.

    Args:
        methods: From `workflow.studies.choosing.tables.method_table`.
        rivals: From `rival_table`.
        cells: For the dense model's and the control's distances.
        metric: The Frechet distance.
    """
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    width = 0.8 + 5.2 * max(2, len(datasets))
    figure, axes = panels(len(datasets), (width, 7.6), rows=2)
    curves = _with_several(methods)
    rivals = _beside(rivals, cells[0]).dropna(subset=["time_saved_mean", "fd_mean"])
    kinds = _kinds(rivals, cells[0])
    places = [(when, dataset) for when in _TIMES for dataset in datasets]
    for axis, (when, dataset) in zip(axes, places, strict=True):
        lines, beside = curves[curves["dataset"] == dataset], rivals[rivals["dataset"] == dataset]
        _levels(axis, [cell for cell in cells if cell.dataset == dataset], metric)
        for row in beside.to_dict(orient="records"):
            _point(axis, row, "time_saved", "fd", color=MUTED, marker=kinds[row["model"]][0], markersize=5.5)
        for method, rows in lines.groupby("method", sort=False):
            _curve(axis, str(method), rows, when)
        titles(
            axis,
            f"{literal(dataset)}, {_TIMES[when]}",
            "time saved (%): of a UNet pass; grey: of a picture",
            _distance(metric),
        )
        log_scale(axis, [*lines[_FIELDS[when]], *beside["fd_mean"]], least=_FAR)
    for above, below in zip(axes[: len(datasets)], axes[len(datasets) :], strict=True):
        reach = [*above.get_xlim(), *below.get_xlim()]
        for axis in (above, below):
            axis.set_xlim(min(reach), max(reach))
    handles = [*_curve_handles(curves), *_level_handles(cells[0]), *_kind_handles(kinds)]
    legend(figure, handles=handles, loc="outside lower center", ncols=3, fontsize=9.5)
    for axis, (when, dataset) in zip(axes, places, strict=True):
        lines, beside = curves[curves["dataset"] == dataset], rivals[rivals["dataset"] == dataset]
        _label(axis, lines, beside, _FIELDS[when])
    return figure


def _distance(metric: str) -> str:
    shown = column(metric)
    return f"{shown.title} ({shown.unit})"


def _with_several(methods: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods with more than one amount."""
    counts = methods.groupby("method")["amount"].transform("nunique")
    return methods[counts > 1]


def _beside(rivals: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    """All but the dense model and the control themselves, which are drawn as levels."""
    full = rivals.loc[rivals["model"] == cell.dense, "steps"].max()
    others: pd.DataFrame = rivals[
        ~(rivals["model"].isin([cell.dense, cell.control]) & (rivals["steps"] == full))
    ]
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
    (colour, marker), field = _LOOKS[family_of(method)], _FIELDS[when]
    there = rows.dropna(subset=["time_reduction_mean", field]).sort_values("amount")
    axis.plot(100 * there["time_reduction_mean"], there[field], color=colour, linewidth=1.6,
              linestyle=_DASHED if when == "before" else "-", zorder=2.5)  # fmt: skip
    for row in there.to_dict(orient="records"):
        _point(axis, row, "time_reduction", field.removesuffix("_mean"), color=colour, marker=marker,
               markersize=7, markerfacecolor=PAPER if when == "before" else colour,
               markeredgewidth=1.5)  # fmt: skip


def _point(axis: Axes, row: Mapping[Any, Any], x: str, y: str, **look: Any) -> None:
    """A mean with standard deviations in both directions."""
    std_x, std_y = 100 * row[f"{x}_std"], row[f"{y}_std"]
    axis.errorbar(
        100 * row[f"{x}_mean"], row[f"{y}_mean"], xerr=std_x if np.isfinite(std_x) else None,
        yerr=std_y if np.isfinite(std_y) else None, elinewidth=1, zorder=3, **look,
    )  # fmt: skip


def _curve_handles(curves: pd.DataFrame) -> list[Line2D]:
    looks = {str(method): _LOOKS[family_of(method)] for method in dict.fromkeys(curves["method"])}
    return [
        Line2D([], [], color=colour, marker=marker, markersize=7, label=literal(shortened(method)))
        for method, (colour, marker) in looks.items()
    ]


def _level_handles(cell: Cell) -> list[Line2D]:
    handles = [Line2D([], [], color=INK, linewidth=1.0, linestyle=_DASHED, label="dense")]
    if cell.control is not None:
        text = f"{literal(shortened(cell.control))}: trained as long, mean ± std"
        handles.append(Line2D([], [], color=MUTED, linewidth=7, alpha=0.4, label=text))
    return handles


def _kind_handles(kinds: dict[str, tuple[str, str]]) -> list[Line2D]:
    return [
        Line2D([], [], color=MUTED, marker=marker, linestyle="none", markersize=5.5, label=literal(text))
        for marker, text in dict.fromkeys(kinds.values())
    ]


def _label(axis: Axes, curves: pd.DataFrame, rivals: pd.DataFrame, field: str) -> None:
    """Numbers beside the rivals, which cover nothing of the curves."""
    labels = []
    for row in rivals.to_dict(orient="records"):
        family, interval = split_row(row["model"], ())
        text = str(interval) if family == CACHED else f"{row['steps']:g}"
        labels.append(Label(100 * row["time_saved_mean"], row["fd_mean"], text))
    lines = [
        _corners(100 * rows["time_reduction_mean"], rows[field])
        for _, rows in curves.sort_values("amount").groupby("method")
    ]
    place(axis, labels, [line for line in lines if len(line)], 9)


def _corners(x: "pd.Series[float]", y: "pd.Series[float]") -> NDArray[np.float64]:
    corners: NDArray[np.float64] = np.stack([x.to_numpy(dtype=float), y.to_numpy(dtype=float)], axis=1)
    return corners[np.isfinite(corners).all(axis=1)]


def methods_figure(plans: pd.DataFrame, methods: pd.DataFrame, metric: str) -> Figure:
    """What each method costs at the amount that most have: seeds as dots, mean and standard deviation.

    Args:
        plans: From `plan_table`.
        methods: From `method_table`.
        metric: The Frechet distance.
    """
    amount = shared_amount(methods)
    means, seeds = methods[methods["amount"] == amount], plans[plans["amount"] == amount]
    datasets = list(dict.fromkeys(means["dataset"])) or [""]
    names = _ranked(means)
    height = 1.0 + len(datasets) * (1.0 + _ROW * max(3, len(names)))
    figure, axes = panels(2, (10.5, height), rows=len(datasets))
    places = [(dataset, when) for dataset in datasets for when in _TIMES]
    for axis, (dataset, when) in zip(axes, places, strict=True):
        if not names:
            nothing(axis, "no plan has a method and an amount")
            continue
        _methods(axis, seeds[seeds["dataset"] == dataset], means[means["dataset"] == dataset], names, when)
        titles(axis, f"{literal(dataset)}, {_TIMES[when]}", f"{column(metric).title} less {_WHOSE[when]}")
        axis.set_yticks(
            range(len(names)), [literal(shortened(name)) if when == "before" else "" for name in names]
        )
        axis.tick_params(axis="y", labelcolor=INK)
    if names:
        handles = [*_family_handles(names), *_words(amount, seeds)]
        legend(figure, handles=handles, loc="outside lower center", ncols=2, fontsize=9.5)
    return figure


def _words(amount: float, plans: pd.DataFrame) -> list[Line2D]:
    """What is shown, as lines of a legend."""
    unit = " % of the time" if plans["target"].eq("time_reduction").all() else ""
    texts = (f"asked for: {amount:g}{unit}", f"mean ± std of {plans['seed'].nunique()} seeds")
    return [Line2D([], [], linestyle="none", label=text) for text in texts]


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
    for height, name in enumerate(names):
        colour, marker = _LOOKS[family_of(name)]
        values = seeds.loc[seeds["method"] == name, f"lost_{when}"].dropna()
        axis.plot(values, [height - 0.22] * len(values), "o", color=colour, markersize=3.6, alpha=0.6,
                  markeredgewidth=0)  # fmt: skip
        for row in means[means["method"] == name].to_dict(orient="records"):
            std = row[f"lost_{when}_std"]
            axis.errorbar(
                row[f"lost_{when}_mean"], height + 0.08, xerr=std if np.isfinite(std) else None, color=colour,
                marker=marker, markerfacecolor=PAPER if when == "before" else colour, markersize=7,
                markeredgewidth=1.5, capsize=3, elinewidth=1.5,
            )  # fmt: skip
    axis.axvline(0, color=MUTED, linewidth=1.1, zorder=1.5)
    _around_zero(axis, seeds[f"lost_{when}"], "x")
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def _around_zero(axis: Axes, values: "pd.Series[float]", which: str) -> None:
    """An axis that is logarithmic to either side of 0 where the values are far apart."""
    size = values.abs()[lambda all_: all_ > 0].dropna()
    if not len(size) or size.max() < _FAR * size.median():
        return
    linear = max(1.0, 10 ** np.floor(np.log10(size.median())))
    getattr(axis, f"set_{which}scale")("symlog", linthresh=linear, linscale=0.6)
    side = axis.xaxis if which == "x" else axis.yaxis
    steps = [step for step in _STEPS if step == 0 or step >= linear]
    side.set_major_locator(FixedLocator([-step for step in steps[:0:-1]] + steps))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    low, high = float(values.min()), float(values.max())
    room = 0.4 * linear
    getattr(axis, f"set_{which}lim")(1.6 * low if low < -room else -room, 1.6 * high if high > room else room)


def _family_handles(methods: Iterable[object]) -> list[Line2D]:
    there = {family_of(method) for method in methods}
    return [
        Line2D([], [], color=colour, marker=marker, linestyle="none", label=family)
        for family, (colour, marker) in _LOOKS.items()
        if family in there
    ]


def additivity_figure(plans: pd.DataFrame, additivity: pd.DataFrame) -> Figure:
    """The joint score of plans against the sum of their scores, and the root of the sum of squares.

    Args:
        plans: From `plan_table`.
        additivity: From `additivity_table`, for the rank correlations.
    """
    chosen = several(plans)
    datasets = list(dict.fromkeys(chosen["dataset"])) or [""]
    figure, axes = panels(2, (10, 0.8 + 3.9 * len(datasets)), rows=len(datasets))
    places = [(dataset, name) for dataset in datasets for name in ("sum", "norm")]
    words = {"sum": "sum of the scores", "norm": "root of the sum of squared scores"}
    for axis, (dataset, name) in zip(axes, places, strict=True):
        x = f"{name}_of_scores"
        points = chosen[(chosen["dataset"] == dataset) & (chosen["joint_score"] > 0) & (chosen[x] > 0)]
        if points.empty:
            nothing(axis, "no plan has more than one operator")
            continue
        _scatter(axis, points, x, "joint_score")
        ends = [points[[x, "joint_score"]].min(axis=None), points[[x, "joint_score"]].max(axis=None)]
        axis.plot(ends, ends, color=MUTED, linewidth=1.1, linestyle=_DASHED, zorder=1.5)
        for which in "xy":
            log_scale(axis, points[x if which == "x" else "joint_score"], which)
        titles(axis, literal(dataset), words[name], "joint score of the plan")
        _rho(axis, _overall(additivity, dataset), f"rho_{name}")
    if len(chosen):
        legend(figure, handles=[*_family_handles(chosen["method"]), _equal()], loc="outside lower center",
               ncols=3, fontsize=9.5)  # fmt: skip
    return figure


def _equal() -> Line2D:
    return Line2D([], [], color=MUTED, linewidth=1.1, linestyle=_DASHED, label="equal")


def _scatter(axis: Axes, points: pd.DataFrame, x: str, y: str, hollow: bool = False) -> None:
    """Every plan in the colour of its method's family."""
    for family, rows in points.groupby(points["method"].map(family_of), sort=False):
        colour, marker = _LOOKS[str(family)]
        axis.plot(
            rows[x], rows[y], marker, color=colour, markersize=5.5, alpha=0.85, markeredgewidth=1.2,
            markerfacecolor=PAPER if hollow else colour, markeredgecolor=colour if hollow else PAPER,
        )  # fmt: skip


def _overall(additivity: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """The row of all amounts."""
    return additivity[(additivity["dataset"] == dataset) & additivity["amount"].isna()]


def _rho(axis: Axes, rows: pd.DataFrame, name: str, std: str = "") -> None:
    """A rank correlation above the right edge, if there is one."""
    if rows.empty or np.isnan(rows[name].iloc[0]):
        return
    text = f"{rows[name].iloc[0]:.2f}"
    if std and np.isfinite(rows[std].iloc[0]):
        text += f" ± {rows[std].iloc[0]:.2f}"
    axis.set_title(f"Spearman {text}".replace("-", MINUS), loc="right", fontsize=9.5, color=MUTED)


def prediction_figure(plans: pd.DataFrame, prediction: pd.DataFrame, metric: str) -> Figure:
    """What plans cost against their joint score, before and after further training.

    Args:
        plans: From `plan_table`.
        prediction: From `prediction_table`, for the rank correlations.
        metric: The Frechet distance.
    """
    chosen = several(plans)
    datasets = list(dict.fromkeys(chosen["dataset"])) or [""]
    figure, axes = panels(2, (10, 0.8 + 3.7 * len(datasets)), rows=len(datasets))
    places = [(dataset, when) for dataset in datasets for when in _TIMES]
    for axis, (dataset, when) in zip(axes, places, strict=True):
        target = f"lost_{when}"
        points = chosen[(chosen["dataset"] == dataset) & (chosen["joint_score"] > 0) & chosen[target].notna()]
        if points.empty:
            nothing(axis, "no plan of more than one operator was evaluated")
            continue
        _scatter(axis, points, "joint_score", target, hollow=when == "before")
        axis.axhline(0, color=MUTED, linewidth=1.1, zorder=1.5)
        log_scale(axis, points["joint_score"], "x")
        _around_zero(axis, points[target], "y")
        keys = (prediction["of"] == "plans") & (prediction["predictor"] == "joint_score")
        rows = prediction[keys & (prediction["dataset"] == dataset) & (prediction["target"] == target)]
        lost = f"{column(metric).title} less {_WHOSE[when]}"
        titles(axis, f"{literal(dataset)}, {_TIMES[when]}", "joint score of the plan", lost)
        _rho(axis, rows, "rho", "rho_std")
    if len(chosen):
        legend(figure, handles=_family_handles(chosen["method"]), loc="outside lower center", ncols=4,
               fontsize=9.5)  # fmt: skip
    return figure
