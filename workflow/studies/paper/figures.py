"""The ablation against lambda, and a run of the paper's two models beside its own figures."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pelap.report.figures.style import INK, MUTED, literal, log_scale, looks, panels, titles
from workflow.studies.common import legend_below
from workflow.studies.paper.page import PAPER_FIGURES

PAPER_EPOCHS = 100
_DASHED: Any = (0, (4, 3))
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
    legend_below(figure, axes[0].get_legend_handles_labels()[0], 4)
    return figure


def collapse_figure(epochs: pd.DataFrame, timesteps: pd.DataFrame, collapse: pd.DataFrame) -> Figure:
    """A run of the paper's two models by epoch, and its noise loss by time step; stars: the paper's figures.

    Args:
        epochs: Of the stage `collapse`.
        timesteps: Of it.
        collapse: Of it, for the least loss of the UNet at latents of zero.
    """
    floor = float(collapse["zero_latent_floor"].iloc[0])
    figure, (loss, scale, recon, steps) = panels(4, (16, 3.9))
    for model, each in looks(dict.fromkeys(epochs["variant"])).items():
        own, at = epochs[epochs["variant"] == model], timesteps[timesteps["variant"] == model]
        style: Any = {"color": each.colour, "linewidth": 1.7}
        loss.plot(own["epoch"], own["diffusion_loss"], label=literal(model), **style)
        scale.plot(own["epoch"], own["unet_input_std"], **style)
        recon.plot(own["epoch"], own["recon_mse"], **style)
        recon.plot(own["epoch"], own["masked_recon_mse"], linestyle=_DASHED, **style)
        middle = (at["first_step"] + at["last_step"]) / 2
        steps.plot(middle, at["diffusion_loss"], marker=each.marker, markersize=5, **style)
        for axis, metric in ((loss, "diffusion_loss"), (recon, "recon_mse")):
            stated = float(PAPER_FIGURES[model, metric])
            axis.plot(PAPER_EPOCHS, stated, "*", color=each.colour, markersize=11, clip_on=False)
    for axis in (loss, steps):
        axis.axhline(floor, color=INK, linewidth=1.1, linestyle=_DASHED)
    loss.set_ylim(0.98 * floor, 1.3 * floor)  # the first epochs are far above
    log_scale(scale, epochs["unet_input_std"])
    log_scale(recon, epochs["masked_recon_mse"])
    titles(loss, "Noise loss", "epoch", "mean squared error of the noise")
    titles(scale, "What the UNet gets", "epoch", "standard deviation of its input (noise: 1)")
    titles(recon, "Reconstruction", "epoch", "squared error of a picture")
    titles(steps, "Where the loss is above the least", "time step", "mean squared error of the noise")
    marks = [
        *loss.get_legend_handles_labels()[0],
        Line2D([], [], linestyle="", marker="*", color=MUTED, markersize=10, label="the paper, epoch 100"),
        Line2D([], [], color=INK, linewidth=1.1, linestyle=_DASHED, label=f"least at z = 0: {floor:.4f}"),
        Line2D([], [], color=MUTED, linestyle=_DASHED, label="decoded from z·m, which the UNet sees"),
    ]
    legend_below(figure, marks, len(marks))
    return figure
