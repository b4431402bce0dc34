"""Many runs together: mean, spread and paired comparison over seeds."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from pelap.core.errors import DataError
from pelap.report.figures.budget import draw, finish, key
from pelap.report.figures.style import (
    INK,
    Look,
    literal,
    looks,
    nothing,
    panels,
    shortened,
    titles,
)
from pelap.report.tables import column, is_distance

BASELINE = "baseline"
"""The model that every other one is compared with, seed by seed."""
REAL_ROW = "real"
"""The row of real pictures."""
MAIN_METRICS = ("psnr", "ssim", "latency_ms", "image_ms")
"""Shown after the Frechet distances; what a sweep has of them."""
_KEYS = ["dataset", "model", "metric"]
_ROUNDING = 1e-12
"""Relative size below which a spread of differences is rounding, not data."""


def summarise(cells: pd.DataFrame, control: str | None = None) -> pd.DataFrame:
    """Statistics over seeds.

    Args:
        cells: One value per row: dataset, seed, model, metric, value; missing values are left out.
        control: Another model that every one is compared with, such as the dense one trained on.

    Returns:
        One row per dataset, model and metric, in order of appearance: mean, std (of a sample), n;
        diff_to_baseline and diff_std of the differences to `baseline` at the same seed; p_value of
        the paired t-test, NaN where there is none (no pair, one pair, differences that do not vary). With
        a control the same of it: diff_to_<control>, diff_to_<control>_std, p_value_to_<control>.

    Raises:
        DataError: A value is given twice.
    """
    cells = cells.dropna(subset=["value"])
    twice = cells[cells.duplicated([*_KEYS, "seed"])]
    if len(twice):
        where = ", ".join(f"{key} {twice.iloc[0][key]}" for key in [*_KEYS, "seed"])
        raise DataError(f"sweep: two values for {where}; give each run once")
    names = {BASELINE: ("diff_to_baseline", "diff_std", "p_value")}
    if control is not None and control in set(cells["model"]):
        names[control] = (f"diff_to_{control}", f"diff_to_{control}_std", f"p_value_to_{control}")
    rows = []
    for keys, group in cells.groupby(_KEYS, sort=False):
        row = dict(zip(_KEYS, keys, strict=True)) | _moments(group["value"])
        for other, columns in names.items():
            row |= zip(columns, _against(group, cells, keys, other), strict=True)
        rows.append(row)
    return pd.DataFrame(rows, columns=[*_KEYS, "mean", "std", "n", *itertools.chain(*names.values())])


def _moments(values: "pd.Series[float]") -> dict[str, float]:
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)), "n": len(values)}


def _against(
    group: pd.DataFrame, cells: pd.DataFrame, keys: tuple[object, ...], other: str
) -> tuple[float, float, float]:
    """Mean, standard deviation and p-value of the differences to another model at the same seed."""
    dataset, _, metric = keys
    same = (cells["dataset"] == dataset) & (cells["metric"] == metric) & (cells["model"] == other)
    pairs = group.merge(cells[same], on="seed", suffixes=("", "_other"))
    difference = pairs["value"] - pairs["value_other"]
    p_value = _p_value(pairs["value"].to_numpy(), pairs["value_other"].to_numpy())
    return float(difference.mean()), float(difference.std(ddof=1)), p_value


def summarise_budget(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation (of a sample) and number over seeds of time and quality.

    Args:
        cells: One value per row: dataset, seed, model, steps, metric, value; missing values are left out.

    Returns:
        One row per dataset, model, number of sampling steps and metric, in order of appearance.
    """
    keys = ["dataset", "model", "steps", "metric"]
    rows = [
        dict(zip(keys, names, strict=True)) | _moments(group["value"])
        for names, group in cells.dropna(subset=["value"]).groupby(keys, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*keys, "mean", "std", "n"])


def _p_value(values: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Two-sided paired t-test, or NaN where it says nothing."""
    if len(values) < 2:
        return float("nan")
    size = max(np.abs(values).max(), np.abs(others).max())
    if np.ptp(values - others) <= _ROUNDING * size:
        return float("nan")
    return float(stats.ttest_rel(values, others).pvalue)


def sweep_figure(summary: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """A panel per dataset (rows) and main metric (columns): seeds as dots, mean and std below."""
    datasets = list(dict.fromkeys(summary["dataset"])) or [""]
    metrics = _main_metrics(summary) or [""]
    models = list(dict.fromkeys(summary["model"]))
    size = (2 + 2.7 * len(metrics), (1.2 + 0.34 * max(3, len(models))) * len(datasets))
    figure, axes = panels(len(metrics), size, rows=len(datasets), sharey=True)
    places = [(dataset, metric) for dataset in datasets for metric in metrics]
    for axis, (dataset, metric) in zip(axes, places, strict=True):
        inside = (summary["dataset"] == dataset) & (summary["metric"] == metric)
        dots = (cells["dataset"] == dataset) & (cells["metric"] == metric)
        _panel(axis, summary[inside], cells[dots], models)
        titles(axis, dataset if metric == metrics[0] else "", x=column(metric).heading)
    return figure


def budget_figure(budget: pd.DataFrame, dense: Mapping[str, str], cells: pd.DataFrame) -> Figure:
    """Quality against time per image, a panel a data set; bars are standard deviations over seeds.

    Args:
        budget: From `summarise_budget`.
        dense: The model that has a point for each number of steps, by data set.
        cells: All values of the sweep: for the colours of its models, and the distance of real pictures.
    """
    metric = next((str(name) for name in budget["metric"] if is_distance(name)), None)
    panel = {} if metric is None else _points(budget, metric)
    figure, axes = panels(max(1, len(panel)), (1 + 6.4 * max(1, len(panel)), 5.2))
    if metric is None or not panel:
        nothing(axes[0], "times were not measured")
        return figure
    floors = _floors(cells, metric)
    look = looks(dict.fromkeys([*cells["model"], *budget["model"]]))
    for axis, (dataset, rows) in zip(axes, panel.items(), strict=True):
        draw(axis, rows, look, dense.get(dataset, ""), column(metric))
    key(figure, pd.concat(panel.values()), look, next(iter(dense.values()), ""))
    for axis, (dataset, rows) in zip(axes, panel.items(), strict=True):
        finish(axis, rows, dense.get(dataset, ""), floors.get(dataset, np.nan), column(metric))
        title = f"{dataset}: {_over(rows['n'])}"
        axis.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold")
    return figure


def _floors(cells: pd.DataFrame, metric: str) -> dict[str, float]:
    """Mean distance of real pictures over seeds, by data set."""
    rows = cells[(cells["model"] == REAL_ROW) & (cells["metric"] == metric)]
    return {str(name): float(group["value"].mean()) for name, group in rows.groupby("dataset")}


def _over(counts: "pd.Series[int]") -> str:
    """What the points and bars of a panel are, and of how many seeds."""
    few, many = int(counts.min()), int(counts.max())
    if many == 1:
        return "1 seed"
    return f"mean ± std of {many} seeds" if few == many else f"mean ± std of {few} to {many} seeds"


def _points(budget: pd.DataFrame, metric: str) -> dict[str, pd.DataFrame]:
    """What `draw` takes, and the number of seeds `n` of each point, by data set."""
    keys = ["dataset", "model", "steps"]
    names = {"mean": "", "std": "_err", "n": "_n"}
    time, quality = (
        budget[budget["metric"] == name][[*keys, *names]].rename(
            columns={old: f"{axis}{new}" for old, new in names.items()}
        )
        for name, axis in (("image_ms", "x"), (metric, "y"))
    )
    both = time.merge(quality, on=keys)
    both["n"] = both[["x_n", "y_n"]].min(axis=1)
    return {str(name): rows for name, rows in both.groupby("dataset", sort=False)}


def _main_metrics(summary: pd.DataFrame) -> list[str]:
    """Distances and the other main metrics; a sweep without any shows the first ones that it has."""
    there = list(dict.fromkeys(summary["metric"]))
    distances = [metric for metric in there if is_distance(metric)]
    return distances + [metric for metric in MAIN_METRICS if metric in there] or there[:4]


def _panel(axis: Axes, summary: pd.DataFrame, cells: pd.DataFrame, models: Sequence[str]) -> None:
    look = looks(models)
    scale = column(str(summary["metric"].iloc[0])).scale if len(summary) else 1.0
    for model, mean, std in zip(summary["model"], summary["mean"], summary["std"], strict=True):
        values = cells.loc[cells["model"] == model, "value"] * scale
        _model(axis, models.index(model), values, (mean * scale, std * scale), look[model])
    axis.set_yticks(range(len(models)), [literal(shortened(model)) for model in models])
    axis.set_ylim(len(models) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def _model(
    axis: Axes, place: int, values: "pd.Series[float]", moments: tuple[float, float], look: Look
) -> None:
    mean, std = moments
    axis.plot(values, [place - 0.2] * len(values), "o", color=look.colour, markersize=4.5, alpha=0.55,
              markeredgewidth=0)  # fmt: skip
    axis.errorbar(
        mean, place + 0.1, xerr=std, color=look.colour, marker=look.marker, markerfacecolor=look.face,
        markersize=7, capsize=3, elinewidth=1.6, ecolor=INK,
    )  # fmt: skip
