"""The report as one page that needs nothing else: no network, no other file."""

import base64
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pelap.report import figures, figures_pruning, figures_training, words
from pelap.report.data import RunData
from pelap.report.style import looks, to_svg
from pelap.report.tables import DASH, columns, number

_GRID_WIDTH = 548
"""Pixels that a grid of pictures may take on the page; two stand side by side."""
_LONGEST = 36
"""Characters of a value in the line of the protocol below the table."""
_COLLAPSE = (
    ("mean_mask", "mean mask", 3,
     "Mean of the mask over channels and test pictures: 1 lets everything through, 0 nothing."),
    ("active_channels", "active channels", 0, "Channels whose mean mask is above the threshold."),
    ("unet_input_std", "UNet input std", 4,
     "Standard deviation of what the UNet sees, averaged over the active channels (over all of them "
     "where every one is off); near 0 the latent is gone."),
    ("diffusion_loss", "diffusion loss", 4, "Mean squared error of the predicted noise on test pictures."),
    ("gaussian_floor", "Gaussian floor", 4,
     "That error for the best affine predictor that sees each latent value by itself. A reference for "
     "this latent scale, no lower bound: a network that uses structure goes below it."),
    ("floor_ratio", "floor ratio", 2,
     "Diffusion loss divided by the Gaussian floor: comparable between latent scales, which the loss alone "
     "is not."),
    ("recon_mse", "recon. MSE", 2,
     "Squared error of pictures decoded from the plain latent, summed over the values of a picture."),
    ("masked_recon_mse", "masked recon. MSE", 2,
     "The same, decoded from the masked latent, which is all that sampling can give; far above the other, "
     "the decoder has never learned to use the mask."),
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A grid of pictures, magnified by a whole number."""

    name: str
    uri: str
    width: int
    height: int


def render(run: RunData) -> str:
    """The whole page."""
    source = resources.files("pelap.report").joinpath("template.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(
        run=run,
        words=words.headline(run),
        look=looks(run.models),
        columns=columns(run.frame),
        rows=list(_rows(run.frame)),
        collapse=_collapse(run.collapse),
        # drawn by us; text inside is escaped
        figures={name: Markup(svg) for name, svg in _figures(run)},
        samples=_pictures(run.samples),
        reconstructions=_pictures(run.reconstructions),
        protocol=dict(flat(run.protocol)),
        in_short={key: shortened(value) for key, value in flat(merged(run.protocol))},
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Any nesting of mappings as `outer.inner: text`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def merged(values: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings with one value throughout, such as a setting that all models share, as that value."""
    return {
        key: next(iter(value.values())) if isinstance(value, Mapping) and _same(value.values()) else value
        for key, value in values.items()
    }


def _same(values: Collection[Any]) -> bool:
    return len(values) > 1 and all(value == next(iter(values)) for value in values)


def shortened(text: str) -> str:
    """Checksums and the like, as far as a line has room for them."""
    return text if len(text) <= _LONGEST else f"{text[:12]}…"


def _text(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(frame: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    shown = columns(frame)
    for model, values in zip(frame.index, frame.to_numpy(), strict=True):
        yield model, [each.cell(value) for each, value in zip(shown, values, strict=True)]


def _collapse(table: pd.DataFrame) -> dict[str, Any]:
    """Headings, explanations and cells of the columns that the table has."""
    shown = [entry for entry in _COLLAPSE if entry[0] in table]
    cells = {key: [number(value, decimals) for value in table[key]] for key, _, decimals, _ in shown}
    rows = [
        (variant, [cells[key][index] for key, *_ in shown]) for index, variant in enumerate(table["variant"])
    ]
    return {"terms": [(name, text) for _, name, _, text in shown], "rows": rows}


def _figures(run: RunData) -> Iterator[tuple[str, str]]:
    """Every drawn figure as an SVG element."""
    drawn = {
        "quality": figures.quality_latency(run.frame, run.models),
        "training": figures_training.training_curves(run.history, run.validation, run.models),
        "masks": figures_training.mask_heatmap(run.masks),
        "bars": figures_pruning.operator_bars(run.scores, run.removed),
        "scatter": figures_pruning.score_latency(run.scores, run.removed),
        "distill": figures_training.distillation_curves(run.distill),
    }
    for name, figure in drawn.items():
        yield name, to_svg(figure, name)


def _pictures(grids: Mapping[str, bytes]) -> list[Picture]:
    pictures = []
    for name, png in grids.items():
        width, height = struct.unpack(">II", png[16:24])  # of the header, the first chunk of every PNG
        magnification = max(1, _GRID_WIDTH // width)
        uri = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        pictures.append(Picture(name, uri, width * magnification, height * magnification))
    return pictures
