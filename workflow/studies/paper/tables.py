"""The paper at full scale: every metric over seeds, beside the paper's own figures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pelap.report.figures.style import (
    Look,
    legend,
    literal,
    log_scale,
    looks,
    panels,
    titles,
)
from pelap.report.tables import PLUS_MINUS, is_distance

VALUE_COLUMNS = ["dataset", "part", "seed", "model", "metric", "value"]
KEYS = ["dataset", "part", "model", "metric"]
TABLE_COLUMNS = [*KEYS, "mean", "sd", "n", "paper", "budget"]
ALL_MODELS = "all models"
"""The row of what is measured of a run as a whole."""
SECONDS = "seconds_"
"""Begins the metrics that say how long a stage took."""
PAPER_PART = "pelap-a"
"""The part that is what the paper did; no other is set beside its figures."""
PAPER_FIGURES = {
    ("baseline", "diffusion_loss"): "0.0240",
    ("baseline", "recon_mse"): "24.67",
    ("pelap", "mean_mask"): "near 0",
    ("pelap", "diffusion_loss"): "0.0236",
    ("pelap", "recon_mse"): "22.59",
    ("pelap", "predictor_params"): "292",
}
"""All figures that the paper reports: CIFAR-10, lambda 0.01, 100 epochs, one seed."""
MASK_METRICS = (
    "mean_mask",
    "active_channels",
    "unet_input_std",
    "diffusion_loss",
    "gaussian_floor",
    "zero_latent_floor",
    "recon_mse",
    "masked_recon_mse",
)
QUALITY_METRICS = ("kid", "recall", "psnr", "recovered", "latency_ms", "image_ms", "params")
"""After the Frechet distances."""
ABLATION_PANELS = (
    ("Mask", "mean", "mean_mask"),
    ("Noise loss", "mean squared error of the noise", "diffusion_loss"),
    ("Reconstruction", "squared error of a picture", "recon_mse"),
    ("Scale", "standard deviation of the UNet's input", "unet_input_std"),
)


class Part(NamedTuple):
    """A part on a data set, as the page names it."""

    dataset: str
    name: str
    budget: str


def summarise(values: pd.DataFrame, budgets: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Statistics over seeds.

    Args:
        values: `VALUE_COLUMNS`, one value a row; missing and infinite ones are not counted.
        budgets: What the numbers of a data set and part were made with.

    Returns:
        `TABLE_COLUMNS`, in order of appearance: mean, sd (of a sample, NaN of a single seed), n, the paper's
        own figure as it is printed there (empty where there is none), and the budget.
    """
    finite = values[np.isfinite(values["value"].astype(float))]
    groups = finite.groupby(KEYS, sort=False)["value"]
    table = pd.DataFrame({"mean": groups.mean(), "sd": groups.std(ddof=1), "n": groups.count()})
    table = table.reset_index()
    keys = zip(table["part"], table["model"], table["metric"], strict=True)
    paper = [PAPER_FIGURES.get((model, name), "") if part == PAPER_PART else "" for part, model, name in keys]
    places = zip(table["dataset"], table["part"], strict=True)
    return table.assign(paper=paper, budget=[budgets[place] for place in places])[TABLE_COLUMNS]


def markdown(table: pd.DataFrame, parts: Sequence[Part], figures: Mapping[Part, Sequence[str]]) -> str:
    """The page: the paper's figures beside ours, then every part's main columns, figures and seconds.

    Args:
        table: From `summarise`.
        parts: What is shown, in this order.
        figures: Paths of each part's figures, relative to the page.
    """
    blocks = [
        "# The paper's study\n",
        f"Mean {PLUS_MINUS} sample standard deviation (number of seeds); `table.csv` has every metric.\n",
        *_beside_paper(table),
    ]
    for part in parts:
        rows = table[(table["dataset"] == part.dataset) & (table["part"] == part.name)]
        blocks.append(f"## {part.name} on {part.dataset}\n")
        blocks.append(f"Budget: {part.budget}.\n")
        if rows.empty:
            blocks.append("Nothing is finished yet.\n")
            continue
        blocks += _wide(rows, [name for name in MASK_METRICS if name in set(rows["metric"])])
        blocks += _wide(rows, _quality_metrics(rows["metric"]))
        blocks += [f"![{path}]({path})\n" for path in figures.get(part, ())]
        blocks += _seconds(rows)
    return "\n".join(blocks)


def _beside_paper(table: pd.DataFrame) -> list[str]:
    rows = table[table["paper"] != ""]
    if rows.empty:
        return []
    lines = [["model", "metric", "here", "paper", "data set here", "budget here"]]
    lines.append([":--", ":--", "--:", "--:", ":--", ":--"])
    for row in rows.to_dict(orient="records"):
        lines.append([row["model"], row["metric"], _of(row), row["paper"], row["dataset"], row["budget"]])
    note = (
        "The paper's: cifar10, lambda 0.01, 100 epochs, width 64, one seed; squared error summed over 3072 "
        "values. Figures of another data set or budget are not comparable with them.\n"
    )
    return ["## Beside the paper's own figures\n", note, _table(lines)]


def cell(mean: float, sd: float, n: int) -> str:
    """Mean, spread and number of seeds."""
    spread = f" {PLUS_MINUS} {sd:.2g}" if np.isfinite(sd) else ""
    text = f"{mean:,.0f}" if abs(mean) >= 10_000 else f"{mean:.4g}"
    return f"{text}{spread} ({n})"


def _of(row: Mapping[Any, Any]) -> str:
    return cell(row["mean"], row["sd"], row["n"])


def _quality_metrics(metrics: Iterable[str]) -> list[str]:
    there = list(dict.fromkeys(metrics))
    distances = [name for name in there if is_distance(name)]
    families = [name for each in QUALITY_METRICS for name in there if name in (each, f"{each}_effnet_lite0")]
    return distances + families


def _wide(rows: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """A line a model, a column a metric; models that have none of these are left out."""
    shown = rows[rows["metric"].isin(metrics)]
    if shown.empty:
        return []
    lines = [["model", *metrics], [":--", *("--:" for _ in metrics)]]
    for model, own in shown.groupby("model", sort=False):
        cells = {row["metric"]: _of(row) for row in own.to_dict(orient="records")}
        lines.append([str(model), *(cells.get(name, "") for name in metrics)])
    return [_table(lines)]


def _seconds(rows: pd.DataFrame) -> list[str]:
    """How long the stages took, and all of them together."""
    shown = rows[rows["metric"].str.startswith(SECONDS)]
    if shown.empty:
        return []
    stages = ", ".join(
        f"{row['metric'].removeprefix(SECONDS)} {_of(row)}" for row in shown.to_dict(orient="records")
    )
    return [f"Seconds a seed: {stages}; together {shown['mean'].sum():.0f}.\n"]


def _table(lines: Iterable[Sequence[object]]) -> str:
    return "".join(
        f"| {' | '.join(str(text).replace('|', chr(92) + '|') for text in line)} |\n" for line in lines
    )


def ablation_figure(values: pd.DataFrame, lambdas: Mapping[str, float]) -> Figure:
    """What changes with lambda: mean and standard deviation over seeds, seeds as dots, a line a data set.

    Args:
        values: `VALUE_COLUMNS` of one part.
        lambdas: The penalty of each model, all above 0.
    """
    figure, axes = panels(len(ABLATION_PANELS), (4 * len(ABLATION_PANELS), 3.6))
    chosen = values[values["model"].isin(lambdas)].assign(x=values["model"].map(lambdas))
    look = looks(dict.fromkeys(chosen["dataset"]))
    for axis, (title, label, metric) in zip(axes, ABLATION_PANELS, strict=True):
        rows = chosen[chosen["metric"] == metric]
        for dataset, own in rows.groupby("dataset", sort=False):
            _over_lambda(axis, own, look[str(dataset)], str(dataset))
        log_scale(axis, list(lambdas.values()), "x")
        log_scale(axis, rows["value"], least=10)
        if axis.get_yscale() == "linear":
            axis.set_ylim(bottom=0)  # what hardly changes has to look so
        titles(axis, title, "lambda", label)
    legend(figure, handles=axes[0].get_legend_handles_labels()[0], loc="outside lower center", ncols=4)
    return figure


def _over_lambda(axis: Axes, rows: pd.DataFrame, look: Look, name: str) -> None:
    axis.plot(rows["x"], rows["value"], ".", color=look.colour, alpha=0.5, markeredgewidth=0, markersize=7)
    groups = rows.groupby("x")["value"]
    means, spread = groups.mean(), groups.std(ddof=1).fillna(0.0)
    axis.errorbar(means.index, means, yerr=spread, color=look.colour, marker=look.marker, capsize=3,
                  linewidth=1.6, label=literal(name))  # fmt: skip
