"""Many runs together: mean, spread and paired comparison over seeds."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from pelap.errors import DataError
from pelap.report.style import INK, Look, looks, panels, shortened, titles
from pelap.report.tables import column

BASELINE = "baseline"
"""The model that every other one is compared with, seed by seed."""
MAIN_METRICS = ("fid", "psnr", "ssim", "latency_ms")
"""Shown after the Frechet distances; what a sweep has of them."""
_KEYS = ["dataset", "model", "metric"]
_ROUNDING = 1e-12
"""Relative size below which a spread of differences is rounding, not data."""


def summarise(cells: pd.DataFrame) -> pd.DataFrame:
    """Statistics over seeds.

    Args:
        cells: One value per row: dataset, seed, model, metric, value; missing values are left out.

    Returns:
        One row per dataset, model and metric, in order of appearance: mean, std (of a sample), n;
        diff_to_baseline and diff_std of the differences to `baseline` at the same seed; p_value of
        the paired t-test, NaN where there is none (no pair, one pair, differences that do not vary).

    Raises:
        DataError: A value is given twice.
    """
    cells = cells.dropna(subset=["value"])
    twice = cells[cells.duplicated([*_KEYS, "seed"])]
    if len(twice):
        where = ", ".join(f"{key} {twice.iloc[0][key]}" for key in [*_KEYS, "seed"])
        raise DataError(f"sweep: two values for {where}; give each run once")
    rows = [
        dict(zip(_KEYS, keys, strict=True)) | _statistics(group, _baseline(cells, *keys))
        for keys, group in cells.groupby(_KEYS, sort=False)
    ]
    names = [*_KEYS, "mean", "std", "n", "diff_to_baseline", "diff_std", "p_value"]
    return pd.DataFrame(rows, columns=names)


def _baseline(cells: pd.DataFrame, dataset: object, _: object, metric: object) -> pd.DataFrame:
    same = (cells["dataset"] == dataset) & (cells["metric"] == metric)
    return cells[same & (cells["model"] == BASELINE)]


def _statistics(group: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, float]:
    pairs = group.merge(baseline, on="seed", suffixes=("", "_baseline"))
    difference = pairs["value"] - pairs["value_baseline"]
    return {
        "mean": float(group["value"].mean()),
        "std": float(group["value"].std(ddof=1)),
        "n": len(group),
        "diff_to_baseline": float(difference.mean()),
        "diff_std": float(difference.std(ddof=1)),
        "p_value": _p_value(pairs["value"].to_numpy(), pairs["value_baseline"].to_numpy()),
    }


def _p_value(values: NDArray[np.float64], baseline: NDArray[np.float64]) -> float:
    """Two-sided paired t-test, or NaN where it says nothing."""
    if len(values) < 2:
        return float("nan")
    size = max(np.abs(values).max(), np.abs(baseline).max())
    if np.ptp(values - baseline) <= _ROUNDING * size:
        return float("nan")
    return float(stats.ttest_rel(values, baseline).pvalue)


def sweep_figure(summary: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """A panel per dataset (rows) and main metric (columns): seeds as dots, mean and std beside."""
    datasets = list(dict.fromkeys(summary["dataset"])) or [""]
    metrics = _main_metrics(summary) or [""]
    models = list(dict.fromkeys(summary["model"]))
    size = (1.2 + len(metrics) * (1.4 + 0.42 * max(4, len(models))), 0.9 + 2.7 * len(datasets))
    figure, axes = panels(len(metrics), size, rows=len(datasets))
    places = [(dataset, metric) for dataset in datasets for metric in metrics]
    for axis, (dataset, metric) in zip(axes, places, strict=True):
        inside = (summary["dataset"] == dataset) & (summary["metric"] == metric)
        dots = (cells["dataset"] == dataset) & (cells["metric"] == metric)
        _panel(axis, summary[inside], cells[dots], models)
        heading = column(metric)
        titles(axis, dataset if metric == metrics[0] else "", y=heading.heading)
    return figure


def _main_metrics(summary: pd.DataFrame) -> list[str]:
    """Distances and the other main metrics; a sweep without any shows the first ones that it has."""
    there = list(dict.fromkeys(summary["metric"]))
    distances = [metric for metric in there if metric.startswith("fd_")]
    return distances + [metric for metric in MAIN_METRICS if metric in there] or there[:4]


def _panel(axis: Axes, summary: pd.DataFrame, cells: pd.DataFrame, models: Sequence[str]) -> None:
    look = looks(models)
    scale = column(str(summary["metric"].iloc[0])).scale if len(summary) else 1.0
    for model, mean, std in zip(summary["model"], summary["mean"], summary["std"], strict=True):
        values = cells.loc[cells["model"] == model, "value"] * scale
        _model(axis, models.index(model), values, (mean * scale, std * scale), look[model])
    names = [shortened(model) for model in models]
    axis.set_xticks(range(len(models)), names, rotation=35, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.6, len(models) - 0.4)
    axis.grid(visible=False, axis="x")


def _model(
    axis: Axes, place: int, values: "pd.Series[float]", moments: tuple[float, float], look: Look
) -> None:
    mean, std = moments
    axis.plot([place - 0.14] * len(values), values, "o", color=look.colour, markersize=4.5, alpha=0.55,
              markeredgewidth=0)  # fmt: skip
    axis.errorbar(
        place + 0.1, mean, yerr=std, color=look.colour, marker=look.marker,
        markersize=7, capsize=3, elinewidth=1.6, ecolor=INK,
    )  # fmt: skip
