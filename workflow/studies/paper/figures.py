"""The figure of the ablation: what changes with lambda."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pelap.report.figures.style import legend, literal, log_scale, looks, panels, titles

ABLATION_PANELS = (
    ("Mask", "mean", "mean_mask"),
    ("Noise loss", "mean squared error of the noise", "diffusion_loss"),
    ("Reconstruction", "squared error of a picture", "recon_mse"),
    ("Scale", "standard deviation of the UNet's input", "unet_input_std"),
)


def ablation_figure(values: pd.DataFrame, lambdas: Mapping[str, float]) -> Figure:
    """What changes with lambda: mean and standard deviation over seeds, seeds as dots, a line a data set.

    Args:
        values: Columns dataset, seed, model, metric, value, of one part.
        lambdas: The penalty of each model, all above 0.
    """
    figure, axes = panels(len(ABLATION_PANELS), (4 * len(ABLATION_PANELS), 3.6))
    chosen = values[values["model"].isin(lambdas)].assign(x=values["model"].map(lambdas))
    look = looks(dict.fromkeys(chosen["dataset"]))
    for axis, (title, label, metric) in zip(axes, ABLATION_PANELS, strict=True):
        rows = chosen[chosen["metric"] == metric]
        for dataset, own in rows.groupby("dataset", sort=False):
            each, over = look[str(dataset)], own.groupby("x")["value"]
            style: Any = {"color": each.colour, "marker": each.marker, "label": literal(dataset)}
            axis.plot(own["x"], own["value"], ".", color=each.colour, alpha=0.5, mew=0, markersize=7)
            spread = over.std(ddof=1).fillna(0.0)
            axis.errorbar(over.mean().index, over.mean(), yerr=spread, capsize=3, linewidth=1.6, **style)
        log_scale(axis, list(lambdas.values()), "x")
        log_scale(axis, rows["value"], least=10)
        if axis.get_yscale() == "linear":
            axis.set_ylim(bottom=0)  # what hardly changes has to look so
        titles(axis, title, "lambda", label)
    legend(figure, handles=axes[0].get_legend_handles_labels()[0], loc="outside lower center", ncols=4)
    return figure
