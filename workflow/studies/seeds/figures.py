"""Figures of a sweep: every model over seeds, and quality against time."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pelap.report.figures.overview import draw, finish, key
from pelap.report.figures.style import INK, literal, looks, nothing, panels, shortened, titles
from pelap.report.tables import column, is_distance
from workflow.studies.common import panel_grid, real_distance, rows_down, seed_dots

MAIN_METRICS = ("psnr", "ssim", "latency_ms", "image_ms")  # shown after the distances, where a sweep has them


def sweep_figure(summary: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """A panel per dataset (rows) and main metric (columns): seeds as dots, mean and std below."""
    datasets = list(summary["dataset"].unique()) or [""]
    metrics, models = _main_metrics(summary) or [""], list(summary["model"].unique())
    size = (2 + 2.7 * len(metrics), (1.2 + 0.34 * max(3, len(models))) * len(datasets))
    figure, places = panel_grid(datasets, metrics, size, sharey=True)
    for axis, dataset, metric in places:
        means, seeds = (
            table[(table["dataset"] == dataset) & (table["metric"] == metric)] for table in (summary, cells)
        )
        _panel(axis, means, seeds, models)
        titles(axis, dataset if metric == metrics[0] else "", x=column(metric).heading)
    return figure


def budget_figure(budget: pd.DataFrame, dense: Mapping[str, str], cells: pd.DataFrame) -> Figure:
    """Quality against time per image, a panel a data set; bars are standard deviations over seeds.

    Args:
        budget: Mean, std and n of every dataset, model, steps and metric.
        dense: The model that has a point for each number of steps, by data set.
        cells: The long table of the sweep: for the colours of its models, and the distance of real pictures.
    """
    metric = next((str(name) for name in budget["metric"] if is_distance(name)), None)
    panel = {} if metric is None else _points(budget, metric)
    figure, axes = panels(max(1, len(panel)), (1 + 6.4 * max(1, len(panel)), 5.2))
    if metric is None or not panel:
        nothing(axes[0], "times were not measured")
        return figure
    floors = real_distance(cells, metric)
    look = looks(dict.fromkeys([*cells["model"], *budget["model"]]))
    for axis, (dataset, rows) in zip(axes, panel.items(), strict=True):
        draw(axis, rows, look, dense.get(dataset, ""), column(metric))
    key(figure, pd.concat(panel.values()), look, next(iter(dense.values()), ""))
    for axis, (dataset, rows) in zip(axes, panel.items(), strict=True):
        finish(axis, rows, dense.get(dataset, ""), floors.get(dataset, np.nan), column(metric))
        title = f"{dataset}: {_over(rows['n'])}"
        axis.set_title(title, loc="left", fontsize=10.5, color=INK, fontweight="bold")
    return figure


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
        each, values = look[model], cells.loc[cells["model"] == model, "value"] * scale
        seed_dots(
            axis, models.index(model), list(values), mean * scale, std * scale, color=each.colour,
            marker=each.marker, markerfacecolor=each.face, ecolor=INK,
        )  # fmt: skip
    rows_down(axis, [literal(shortened(model)) for model in models])
