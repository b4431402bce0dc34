"""The report as one page that needs nothing else: no network, no other file."""

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pelap.config.rules import REAL_ROW
from pelap.report import (
    collapse,
    distillation,
    modality,
    protocol,
    words,
)
from pelap.report.data import RunData
from pelap.report.figures import (
    collapse as figures_collapse,
)
from pelap.report.figures import (
    depth as figures_depth,
)
from pelap.report.figures import (
    overview as figures,
)
from pelap.report.figures import (
    pruning as figures_pruning,
)
from pelap.report.figures import (
    training as figures_training,
)
from pelap.report.figures.style import looks, to_svg
from pelap.report.tables import (
    DASH,
    GROUPS,
    Column,
    columns,
    number,
)

_GRID_WIDTH = 548
"""Pixels that a grid of pictures may take on the page; two stand side by side."""
_ARROWS = ("", "→ ")
"""What stands before the number before, and before the number after."""
_QUANTITIES = (("params", 1, 0), ("macs", 1e-6, 1), ("latency_ms", 1, 2))
"""Columns of the listing of changes: key, factor and decimals."""


@dataclass(frozen=True)
class Grid:
    """A grid of pictures or spectrograms, magnified by a whole number."""

    name: str
    uri: str
    width: int
    height: int
    sound: str = ""
    """What is heard of it, as a WAV file."""


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
        words=words.headline(run),
        meaning=words.meaning(run),
        certainty=words.certainty(run),
        depth=words.depth(run),
        plans=list(_plans(run)),
        changes=list(_changes(run)),
        look=looks(run.models),
        tables=list(_tables(run.frame)),
        headings={group: say(heading) for group, heading in GROUPS.items()},
        protocol_line=protocol.line(run.protocol),
        notes=protocol.notes(run.protocol),
        trained=distillation.trained(run),
        controls=distillation.controls(run),
        compared=distillation.compared(run),
        latencies=distillation.latencies(run.latencies),
        collapse=collapse.numbers(run.collapse),
        verdicts=collapse.verdicts(run.collapse),
        # drawn by us; text inside is escaped
        figures={name: Markup(svg) for name, svg in _figures(run)},
        samples=_grids(run.samples, run.sounds),
        reconstructions=_grids(run.reconstructions),
        heard=bool(run.sounds),
        prompts=modality.prompts(run.protocol),
        num_prompts=modality.num_prompts(run.protocol),
        guidance=modality.guidance(run.protocol),
        agreement=modality.agreement(run.protocol),
        guided=modality.guided(run.protocol),
        protocol={key: say(text) if key == "notes" else text for key, text in flat(run.protocol)},
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Any nesting of mappings as `outer.inner: text`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _tables(frame: pd.DataFrame) -> Iterator[tuple[str, list[Column], list[tuple[str, list[str]]]]]:
    """The table of models in parts that fit a page, each with the models that have something in it."""
    for group in GROUPS:
        shown = [each for each in columns(frame) if each.group == group]
        part = frame.dropna(how="all", subset=[each.key for each in shown])
        rows = [(str(model), [each.of(row) for each in shown]) for model, row in part.iterrows()]
        if rows:
            yield group, shown, rows


def _plans(run: RunData) -> Iterator[tuple[str, list[str]]]:
    """What each plan replaced, promised and gave."""
    for plan, result in run.prune_result.items():
        times = [result.get(f"latency_ms_{side}") for side in ("before", "after")]
        params = [result.get(f"params_{side}") for side in ("before", "after")]
        yield (
            plan,
            [
                number(len(run.replaced_by(plan)), 0),
                *(_share(result.get(f"{kind}_time_reduction")) for kind in ("promised", "measured")),
                *(f"{arrow}{_optional(ms, 2)}" for arrow, ms in zip(_ARROWS, times, strict=True)),
                *(f"{arrow}{_optional(count, 0)}" for arrow, count in zip(_ARROWS, params, strict=True)),
            ],
        )


def _share(value: float | None) -> str:
    return DASH if value is None else f"{number(100 * value, 1)} %"


def _optional(value: float | None, decimals: int) -> str:
    return DASH if value is None else number(value, decimals)


def _changes(run: RunData) -> Iterator[tuple[str, list[str]]]:
    """The whole denoiser and what the first plan replaced: the action, then quantities before and after."""
    for _, row in run.changed_by(run.plans[0]).iterrows() if run.plans else ():
        numbers = [
            f"{arrow}{number(row[f'{key}_{side}'] * scale, decimals)}"
            for key, scale, decimals in _QUANTITIES
            for arrow, side in zip(_ARROWS, ("before", "after"), strict=True)
        ]
        yield row["operator"], [row["action"], *numbers]


def _figures(run: RunData) -> Iterator[tuple[str, str]]:
    """Every drawn figure as an SVG element."""
    drawn = {
        "quality": figures.quality(run),
        "training": figures_training.training_curves(run.history, run.validation, run.models),
        "epochs": figures_collapse.epoch_curves(run.epochs, run.models),
        "timesteps": figures_collapse.timestep_curves(run.timesteps, run.models),
        "masks": figures_collapse.mask_heatmap(run.masks),
        "bars": figures_pruning.operator_bars(run.scores, run.replaced),
        "depth": figures_depth.score_depth(run.scores, run.replaced),
        "scatter": figures_pruning.score_latency(run.scores, run.replaced),
        "distill": figures_training.distillation_curves(run.distill, run.models),
        "validation": figures_training.distillation_quality(run.distill_validation, run.students, run.models),
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
