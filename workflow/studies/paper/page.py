"""The paper's table over seeds, and its page in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pelap.report.tables import PLUS_MINUS, is_distance, markdown
from workflow.studies.common import over_seeds

VALUE_COLUMNS = ["dataset", "part", "seed", "model", "metric", "value"]
TABLE_COLUMNS = ["dataset", "part", "model", "metric", "mean", "sd", "n", "paper", "budget"]
ALL_MODELS = "all models"  # the row of what is measured of a run as a whole
SECONDS = "seconds_"  # begins the metrics that say how long a stage took
PAPER_PART = "pelap-a"  # the part that is what the paper did; no other is set beside its figures
PAPER_FIGURES = {
    ("baseline", "diffusion_loss"): "0.0240",
    ("baseline", "recon_mse"): "24.67",
    ("pelap", "mean_mask"): "near 0",
    ("pelap", "diffusion_loss"): "0.0236",
    ("pelap", "recon_mse"): "22.59",
    ("pelap", "predictor_params"): "292",
}
"""All figures that the paper reports: CIFAR-10, lambda 0.01, 100 epochs, one seed."""
NOTE = (
    "The paper's: cifar10, lambda 0.01, 100 epochs, width 64, one seed; squared error summed over 3072 "
    "values. Figures of another data set or budget are not comparable with them.\n"
)
MASK_METRICS = (
    *("mean_mask", "active_channels", "unet_input_std", "diffusion_loss"),
    *("gaussian_floor", "zero_latent_floor", "recon_mse", "masked_recon_mse"),
)
QUALITY_METRICS = ("kid", "recall", "psnr", "recovered", "latency_ms", "image_ms", "params")
"""After the Frechet distances."""


class Part(NamedTuple):
    """A part on a data set, as the page names it, and what its numbers were made with."""

    dataset: str
    name: str
    budget: str


def over_parts(values: pd.DataFrame, parts: Sequence[Part]) -> pd.DataFrame:
    """Statistics over seeds of a table of `VALUE_COLUMNS`; missing and infinite values are not counted.

    Returns:
        `TABLE_COLUMNS`, in order of appearance: mean, sd (of a sample, NaN of a single seed), n, the paper's
        own figure as it is printed there (empty where there is none), and the budget of the part.
    """
    table = over_seeds(values, ["dataset", "part", "model", "metric"]).rename(columns={"std": "sd"})
    keys = zip(table["part"], table["model"], table["metric"], strict=True)
    paper = [PAPER_FIGURES.get((model, name), "") if part == PAPER_PART else "" for part, model, name in keys]
    budgets = {(part.dataset, part.name): part.budget for part in parts}
    made = [budgets[place] for place in zip(table["dataset"], table["part"], strict=True)]
    return table.assign(paper=paper, budget=made)[TABLE_COLUMNS]


def page(table: pd.DataFrame, parts: Sequence[Part], figures: Mapping[Part, Sequence[str]]) -> str:
    """The page: the paper's figures beside ours, then every part's main columns, figures and seconds.

    By `over_parts`; paths of each part's figures are relative to the page.
    """
    blocks = [
        "# The paper's study\n",
        f"Mean {PLUS_MINUS} sample standard deviation (number of seeds); `table.csv` has every metric.\n",
        *_beside_paper(table),
    ]
    for part in parts:
        rows = table[(table["dataset"] == part.dataset) & (table["part"] == part.name)]
        blocks += [f"## {part.name} on {part.dataset}\n", f"Budget: {part.budget}.\n"]
        if rows.empty:
            blocks.append("Nothing is finished yet.\n")
            continue
        blocks += _wide(rows, [name for name in MASK_METRICS if name in set(rows["metric"])])
        blocks += _wide(rows, _quality_metrics(rows["metric"]))
        blocks += [f"![{path}]({path})\n" for path in figures.get(part, ())]
        blocks += _seconds(rows)
    return "\n".join(blocks)


def _beside_paper(table: pd.DataFrame) -> list[str]:
    columns = ["model", "metric", "here", "paper", "dataset", "budget"]
    rows = [row | {"here": _of(row)} for row in table[table["paper"] != ""].to_dict(orient="records")]
    if not rows:
        return []
    headings = [*columns[:4], "data set here", "budget here"]
    lines = markdown(headings, [[row[name] for name in columns] for row in rows], left=(0, 1, 4, 5))
    return ["## Beside the paper's own figures\n", NOTE, lines]


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
    shown: dict[str, dict[str, str]] = {}
    for row in rows[rows["metric"].isin(metrics)].to_dict(orient="records"):
        shown.setdefault(row["model"], {})[row["metric"]] = _of(row)
    lines = [[model, *(cells.get(name, "") for name in metrics)] for model, cells in shown.items()]
    return [markdown(["model", *metrics], lines)] if lines else []


def _seconds(rows: pd.DataFrame) -> list[str]:
    """How long the stages took, and all of them together."""
    shown = rows[rows["metric"].str.startswith(SECONDS)].to_dict(orient="records")
    stages = ", ".join(f"{row['metric'].removeprefix(SECONDS)} {_of(row)}" for row in shown)
    return [f"Seconds a seed: {stages}; together {sum(row['mean'] for row in shown):.0f}.\n"] if shown else []
