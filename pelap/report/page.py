"""The report as one page that needs nothing else: no network, no other file."""

import base64
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from pelap.core.paths import REAL_ROW
from pelap.core.terminal import visible
from pelap.report import protocol, sheets
from pelap.report.data import RunData
from pelap.report.figures import operators, overview, training
from pelap.report.figures.style import looks, to_svg
from pelap.report.tables import DASH

_GRID_WIDTH = 548  # pixels that a grid of pictures may take on the page; two stand side by side


class Shown(NamedTuple):
    """A figure of the page."""

    section: str  # where it stands
    width: str  # narrow, broad or tall
    draw: Callable[[RunData], Figure]
    caption: str | Callable[[RunData], str]


class Drawn(NamedTuple):
    """The same of a run."""

    section: str
    width: str
    caption: str
    svg: Markup  # drawn by us; text inside is escaped


def _of_quality(run: RunData) -> str:
    timed = len(run.points) > 0
    if not timed:
        return (
            "Distance between made and real pictures; bars: 95 % intervals (1.96 standard errors). Real "
            "pictures: the distance between two draws of them, dashed."
        )
    return (
        "Distance between made and real pictures against the time that one takes. Numbers on a line: "
        "sampling steps, or the interval of caching; other labels: the plan. Hollow: pruned, not trained "
        "on. Vertical bars: 95 % intervals (1.96 standard errors); horizontal bars: interquartile range, "
        "where wider than the marker. Real pictures: the distance between two draws of them, dashed where"
        " it is on the axis."
    )


def _of_bars(run: RunData) -> str:
    replaced = f"that plan {run.plans[0]} replaced" if len(run.plans) > 1 else "that were replaced"
    return (
        "Score of each operator on a logarithmic axis, least missed on top: the lowest, the highest, the "
        f"first one kept and all {replaced}, with what stands in their place. Where 95 % intervals of the "
        "replaced and the kept overlap, the choice is a matter of chance. A sign of infinity: nothing "
        "finite comes out without that operator."
    )


FIGURES = {
    "quality": Shown("quality", "narrow", overview.quality, _of_quality),
    "training": Shown(
        "training",
        "broad",
        lambda run: training.training_curves(run.history, run.validation, run.models),
        "Thin lines: training batches. Thick lines: test pictures after each epoch. A falling noise loss "
        "alone does not mean a better model: it also falls when the latent that the UNet sees shrinks. "
        "The mask of a variant without one is 1.",
    ),
    "epochs": Shown(
        "collapse",
        "broad",
        lambda run: training.epoch_curves(run.epochs, run.models),
        "After every epoch, on test pictures. Bands: smallest and largest value of the mask over pictures"
        " and channels. Dashed: the Gaussian floor at the scale of that moment; where loss and floor fall"
        " together, the latent shrinks; where the loss alone falls, the UNet learns.",
    ),
    "timesteps": Shown(
        "collapse",
        "broad",
        lambda run: training.timestep_curves(run.timesteps, run.models),
        "Noise loss of the trained models at different amounts of noise, against the Gaussian floor at "
        "the same steps and scale. A ratio below 1 takes more than the variance of each value: structure "
        "that an affine predictor of each by itself cannot use.",
    ),
    "masks": Shown(
        "collapse",
        "broad",
        lambda run: training.mask_heatmap(run.masks),
        "Mean mask of each latent channel (columns) for test pictures of each class (rows). Rows that "
        "differ mean that the mask adapts to the picture, a static mask has equal ones; a column near 0 "
        "is a channel that is off.",
    ),
    "bars": Shown(
        "operators", "tall", lambda run: operators.operator_bars(run.scores, run.replaced), _of_bars
    ),
    "depth": Shown(
        "operators",
        "broad",
        lambda run: operators.score_depth(run.scores, run.replaced),
        "Scores of the outermost operators, those that lie in no other, in the order in which the UNet "
        "runs them; names that are not like a known UNet's come last, in their own order. Vertical lines:"
        " 95 % intervals.",
    ),
    "scatter": Shown(
        "operators",
        "narrow",
        lambda run: operators.score_latency(run.scores, run.replaced),
        "Low and far right is what pruning looks for: operators that take much time and are hardly "
        "missed. A share below zero is noise of the timing.",
    ),
    "distill": Shown(
        "distillation",
        "broad",
        lambda run: training.distillation_curves(run.distill, run.models),
        "Each term of the loss on training batches: the error against the true noise, the distance to the"
        " teacher's prediction, and the distance to the outputs of the teacher's blocks; terms without "
        "weight are not always computed.",
    ),
    "validation": Shown(
        "distillation",
        "broad",
        lambda run: training.distillation_quality(run.distill_validation, run.students, run.models),
        "On the way, step 0 before any training. Bars: 95 % intervals (1.96 standard errors), where "
        "distances were measured. Rings: the step whose weights were kept.",
    ),
}


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
    page = environment.from_string(say(source)).render(  # its prose is about pictures
        run=run,
        look=looks(run.models),
        headline=sheets.headline(run),
        scoring=sheets.scoring(run),
        sheets=sheets,
        protocol=protocol,
        findings=sheets.findings(run),
        terms=sheets.terms(run.collapse),
        figures=_figures(run),
        samples=_grids(run.samples, run.sounds),
        reconstructions=_grids(run.reconstructions),
        entries={
            key: say(_text(value)) if key == "notes" else _text(value)
            for key, value in protocol.flat(run.protocol)
        },
    )
    return visible(page)


def _text(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _figures(run: RunData) -> list[Drawn]:
    say = run.modality_names.put
    return [
        Drawn(
            each.section,
            each.width,
            say(each.caption if isinstance(each.caption, str) else each.caption(run)),
            Markup(to_svg(run.modality_names.label(each.draw(run)), name)),
        )
        for name, each in FIGURES.items()
    ]


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
