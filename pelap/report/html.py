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

from pelap.report import (
    collapse,
    figures,
    figures_collapse,
    figures_depth,
    figures_pruning,
    figures_training,
    words,
)
from pelap.report.changes import changed
from pelap.report.data import RunData
from pelap.report.style import looks, to_svg
from pelap.report.tables import DASH, columns, number

_GRID_WIDTH = 548
"""Pixels that a grid of pictures may take on the page; two stand side by side."""
_LONGEST = 36
"""Characters of a value in the line of the protocol below the table."""

_QUANTITIES = (("params", 1, 0), ("macs", 1e-6, 1), ("latency_ms", 1, 2))
"""Columns of the listing of changes: key, factor and decimals."""


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
        meaning=words.meaning(run),
        certainty=words.certainty(run),
        depth=words.depth(run),
        changes=list(_changes(run.changes)),
        look=looks(run.models),
        columns=columns(run.frame),
        rows=list(_rows(run.frame)),
        collapse=collapse.numbers(run.collapse),
        verdicts=collapse.verdicts(run.collapse),
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


def _changes(changes: pd.DataFrame) -> Iterator[tuple[str, list[str]]]:
    """The whole denoiser and what was replaced in it: the action, then every quantity before and after."""
    for _, row in changed(changes).iterrows():
        numbers = [
            f"{arrow}{number(row[f'{key}_{side}'] * scale, decimals)}"
            for key, scale, decimals in _QUANTITIES
            for side, arrow in (("before", ""), ("after", "→ "))
        ]
        yield row["operator"], [row["action"], *numbers]


def _figures(run: RunData) -> Iterator[tuple[str, str]]:
    """Every drawn figure as an SVG element."""
    drawn = {
        "quality": figures.quality_latency(run.frame, run.models),
        "training": figures_training.training_curves(run.history, run.validation, run.models),
        "epochs": figures_collapse.epoch_curves(run.epochs, run.models),
        "timesteps": figures_collapse.timestep_curves(run.timesteps, run.models),
        "masks": figures_collapse.mask_heatmap(run.masks),
        "bars": figures_pruning.operator_bars(run.scores, run.replaced),
        "depth": figures_depth.score_depth(run.scores, run.replaced),
        "scatter": figures_pruning.score_latency(run.scores, run.replaced),
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
