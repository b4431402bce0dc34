"""The report as one page that needs nothing else: no network, no other file."""

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pelap.core.paths import REAL_ROW
from pelap.report import protocol, sheets
from pelap.report.data import RunData
from pelap.report.figures import operators, overview, training
from pelap.report.figures.style import looks, to_svg
from pelap.report.tables import DASH

_GRID_WIDTH = 548  # pixels that a grid of pictures may take on the page; two stand side by side


@dataclass(frozen=True)
class Grid:
    """A grid of pictures or spectrograms, magnified by a whole number."""

    name: str
    uri: str
    width: int
    height: int
    sound: str = ""  # what is heard of it, as a WAV file


def render(run: RunData) -> str:
    """The whole page."""
    source = resources.files("pelap.report").joinpath("template.html").read_text(encoding="utf-8")
    say = run.modality_names.put
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["say"] = say
    return environment.from_string(say(source)).render(  # its prose is about pictures
        run=run,
        look=looks(run.models),
        headline=sheets.headline(run),
        scoring=sheets.scoring(run),
        sheets=sheets,
        protocol=protocol,
        findings=sheets.findings(run),
        terms=sheets.terms(run.collapse),
        # drawn by us; text inside is escaped
        figures={name: Markup(svg) for name, svg in _figures(run)},
        samples=_grids(run.samples, run.sounds),
        reconstructions=_grids(run.reconstructions),
        entries={
            key: say(_text(value)) if key == "notes" else _text(value)
            for key, value in protocol.flat(run.protocol)
        },
    )


def _text(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _figures(run: RunData) -> Iterator[tuple[str, str]]:
    """Every drawn figure as an SVG element."""
    drawn = {
        "quality": overview.quality(run),
        "training": training.training_curves(run.history, run.validation, run.models),
        "epochs": training.epoch_curves(run.epochs, run.models),
        "timesteps": training.timestep_curves(run.timesteps, run.models),
        "masks": training.mask_heatmap(run.masks),
        "bars": operators.operator_bars(run.scores, run.replaced),
        "depth": operators.score_depth(run.scores, run.replaced),
        "scatter": operators.score_latency(run.scores, run.replaced),
        "distill": training.distillation_curves(run.distill, run.models),
        "validation": training.distillation_quality(run.distill_validation, run.students, run.models),
    }
    for name, figure in drawn.items():
        yield name, to_svg(run.modality_names.label(figure), name)


def _grids(pngs: Mapping[str, bytes], sounds: Mapping[str, bytes] | None = None) -> list[Grid]:
    """In the order given; of sounds the real ones first, so that one knows what to listen for."""
    heard = sounds or {}
    grids = []
    for name in sorted(pngs, key=lambda name: bool(heard) and name != REAL_ROW):
        width, height = struct.unpack(">II", pngs[name][16:24])  # of the header, the first chunk of every PNG
        magnification = max(1, _GRID_WIDTH // width)
        size = width * magnification, height * magnification
        sound = _uri("audio/wav", heard[name]) if name in heard else ""
        grids.append(Grid(name, _uri("image/png", pngs[name]), *size, sound))
    return grids


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
