"""The figure of a comparison."""

from collections.abc import Mapping

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from pelap.report.figures.style import INK, looks, panels, titles
from pelap.report.tables import quality_column

SURE = 1.96  # standard errors in half of a 95 % interval


def side_by_side(table: pd.DataFrame, samples: Mapping[str, torch.Tensor]) -> Figure:
    """Quality against time, lower left is better; below it pictures of every model from the same noise.

    Args:
        table: From `pelap.report.tables.metrics_frame`.
        samples: The first pictures of its rows, uint8 (N, C, H, W).
    """
    figure, (axis, strip) = panels(1, (7.2, 3.6 + 0.9 * len(samples)), rows=2)
    axis.get_gridspec().set_height_ratios([3.2, 0.9 * len(samples)])  # type: ignore[union-attr]
    quality, time = quality_column(table), "image_ms" if "image_ms" in table else "latency_ms"
    if quality is not None and time in table:
        errors = SURE * table.get(f"{quality.key}_se", pd.Series(0.0, index=table.index))
        for name, look in looks(str(each) for each in table.index[table[time].notna()]).items():
            x, y = table[time][name], table[quality.key][name]
            axis.errorbar(x, y, errors[name], color=look.colour, marker=look.marker, markersize=8, capsize=3)
            axis.annotate(name, (x, y), xytext=(8, 5), textcoords="offset points", fontsize=9, color=INK)
        axis.margins(0.25)
        titles(axis, x="time per image (ms)" if time == "image_ms" else "time per pass (ms)", y=quality.title)
    framed = (nn.functional.pad(images, (0, 1, 0, 1), value=255) for images in samples.values())
    rows = [torch.cat(list(images), dim=-1) for images in framed]  # (C, H, N * W)
    strip.imshow(torch.cat(rows, dim=-2).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", aspect="auto")
    height = rows[0].shape[-2]
    strip.set_yticks([height * (place + 0.5) for place in range(len(rows))], list(samples), color=INK)
    strip.set_xticks([])
    strip.grid(visible=False)
    return figure
