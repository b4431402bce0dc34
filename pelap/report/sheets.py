"""The tables of the page: models, times, collapse, plans, changes and students."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from pelap.report.data import RunData
from pelap.report.figures.operators import fates_of
from pelap.report.findings import shrunk, value
from pelap.report.tables import DASH, GROUPS, Column, Heading, Sheet, columns, number, percent, quality_column

_STARTS = {"pruned": "the pruned weights", "scratch": "fresh weights", "dense": "the dense network"}
_RULES = {
    "last": "the last",
    "loss": "least held-out task loss",
    "distance": "least Fréchet distance on the way",
}
_QUANTITIES = (("params", 1, 0), ("macs", 1e-6, 1), ("latency_ms", 1, 2))
"""Columns of the listing of changes: key, factor and decimals."""
_SIDES = ("before", "after")
_TIME = Column("median_ms", "", error="iqr_ms", error_scale=0.5)


class Term(NamedTuple):
    """A column of the collapse and what it means."""

    key: str
    name: str
    decimals: int
    text: str


TERMS = (
    Term("mean_mask", "mean mask", 4,
         "Mean of the mask over channels and test pictures: 1 lets everything through, 0 nothing. Of a "
         "variant without mask it is 1."),
    Term("active_channels", "active channels", 0,
         "Channels whose mean mask is above the threshold, of all that the latent has."),
    Term("unet_input_std", "UNet input std", 4,
         "Standard deviation of what the UNet sees, averaged over the active channels (over all of them "
         "where every one is off); the noise that is added to it has 1. Near 0 the latent is gone, "
         "nothing is left to denoise, and a low noise loss says nothing about the pictures."),
    Term("diffusion_loss", "diffusion loss", 4,
         "Mean squared error of the predicted noise on test pictures."),
    Term("gaussian_floor", "Gaussian floor", 4,
         "That error for the best affine predictor that sees each latent value by itself. A reference "
         "for this latent scale, no lower bound: a network that uses structure goes below it."),
    Term("floor_ratio", "floor ratio", 2,
         "Diffusion loss divided by the Gaussian floor: comparable between latent scales, which the loss "
         "alone is not."),
    Term("zero_latent_loss", "zero-latent loss", 4,
         "The same UNet's error where the clean latent is 0 and only noise comes in. The closer to the "
         "diffusion loss, the less difference the latent makes to the UNet."),
    Term("zero_latent_floor", "zero-latent floor", 4,
         "The least error that a UNet of this structure can reach there: 0 where it begins with a "
         "convolution, more where a norm comes first and takes the noise's own scale away."),
    Term("recon_mse", "recon. from z", 2,
         "Squared error of pictures decoded from the plain latent, summed over the values of a picture."),
    Term("masked_recon_mse", "recon. from z·m", 2,
         "The same, decoded from the masked latent, which is all that sampling can give; far above the "
         "other, the decoder has never learned to use the mask."),
    Term("hard_recon_mse", "recon. from hard mask", 2,
         "The same, from the masked latent with the channels below the threshold set to 0: what is lost "
         "when they are taken out."),
)  # fmt: skip
"""The most telling columns of collapse.csv; docs/collapse.md defines all."""


def models(run: RunData) -> Iterator[Sheet]:
    """The table of models in parts that fit a page, each with the models that have something in it."""
    say = run.modality_names.put
    for group in GROUPS:
        shown = [each for each in columns(run.frame) if each.group == group]
        part = run.frame.dropna(how="all", subset=[each.key for each in shown])
        rows = [(str(model), [each.of(row) for each in shown]) for model, row in part.iterrows()]
        titles = [f"{say(each.title)}\N{NO-BREAK SPACE}{each.better}".strip() for each in shown]
        if rows:
            headings = [Heading(title, each.unit) for title, each in zip(titles, shown, strict=True)]
            yield Sheet(group, "model", headings, rows)


def latencies(table: pd.DataFrame) -> Sheet:
    """Times of one pass: a column for each mode and batch size."""
    keys = ["mode", "batch_size"]
    kinds = list(table[keys].drop_duplicates().itertuples(index=False, name=None))
    cells = {(row["model"], *row[keys]): _TIME.of(row) for _, row in table.iterrows()}
    rows = [(model, [cells.get((model, *kind), DASH) for kind in kinds]) for model in table["model"].unique()]
    headings = [Heading(f"{mode}, {size} latent{'s' * (size != 1)}") for mode, size in kinds]
    return Sheet("latencies", "one pass of the UNet (ms)", headings, rows)


def verdicts(run: RunData) -> Sheet:
    """What happened to each variant's latent and why, and how good its samples are."""
    quality, names = quality_column(run.frame), list(run.collapse["variant"])
    headings, cells = (
        [Heading("verdict"), Heading("reason")],
        run.collapse[["verdict", "reason"]].values.tolist(),
    )
    if quality is not None:
        headings.append(Heading(f"{quality.title} {quality.better}", quality.unit))
        cells = [
            [*cell, quality.of(row)]
            for cell, (_, row) in zip(cells, run.frame.reindex(names).iterrows(), strict=True)
        ]
    return Sheet("verdicts", "variant", headings, list(zip(names, cells, strict=True)))


def terms(table: pd.DataFrame) -> list[Term]:
    """The numbers of the collapse that the table has."""
    return [term for term in TERMS if term.key in table]


def collapse(table: pd.DataFrame) -> Sheet:
    """The numbers behind the verdicts."""
    rows = [
        (row["variant"], [_collapse_cell(row, term) for term in terms(table)])
        for row in table.to_dict("records")
    ]
    return Sheet("collapses", "variant", [Heading(term.name) for term in terms(table)], rows)


def _collapse_cell(row: Mapping[Any, Any], term: Term) -> str:
    """The number; of open channels with how many there are, where that is known: `1 of 4`."""
    text, total = number(row[term.key], term.decimals), row.get("latent_channels", float("nan"))
    known = term.key == "active_channels" and text != DASH and not pd.isna(total)
    return f"{text} of {number(total, 0)}" if known else text


def plans(run: RunData) -> Sheet:
    """What each plan replaced, promised and gave."""
    rows = []
    for plan, result in run.prune_result.items():
        replaced = run.replaced_by(plan)
        inside = (fates_of(run.scores, replaced) == "gone with a replaced one").sum()
        rows.append((plan, [
            f"{len(replaced)} of {len(run.scores)}",
            number(inside, 0),
            *(percent(value(result, f"{kind}_time_reduction"), False) for kind in ("promised", "measured")),
            *_before_after([value(result, f"latency_ms_{side}") for side in _SIDES], 2),
            *_before_after([value(result, f"params_{side}") for side in _SIDES], 0),
            percent(shrunk(result)),
        ]))  # fmt: skip
    headings = [
        *map(Heading, ("operators replaced", "gone with them", "less time, promised", "less time, measured")),
        *(Heading("time", "ms", 2), Heading("parameters", "", 2), Heading("parameters", "change")),
    ]
    return Sheet("plans", "plan", headings, rows)


def changes(run: RunData) -> Sheet:
    """The whole denoiser and what the first plan replaced, before and after."""
    rows = []
    for row in run.changed_by(run.plans[0]).to_dict("records") if run.plans else ():
        cells = [row["action"]]
        for key, factor, decimals in _QUANTITIES:
            cells += _before_after([row[f"{key}_{side}"] * factor for side in _SIDES], decimals)
        rows.append((row["operator"], cells))
    quantities = (Heading("parameters", "", 2), Heading("MACs", "million", 2), Heading("time", "ms", 2))
    return Sheet("changes", "operator", [Heading("action"), *quantities], rows)


def students(run: RunData) -> Sheet:
    """How each student was trained: start, weights of the three terms, steps, the step kept and its rule."""
    rows = []
    for row, how in run.students.items():
        weights = [f"{how[f'{term}_weight']:g}" for term in ("task", "output", "feature")]
        steps = [number(how[key], 0) for key in ("steps", "kept_step")]
        start, rule = (
            names.get(how[key], str(how[key])) for key, names in (("start", _STARTS), ("select", _RULES))
        )
        rows.append((row, [start, *weights, *steps, rule]))
    terms = [Heading(term, "weight") for term in ("task", "output", "features")]
    headings = [Heading("starts from"), *terms, *map(Heading, ("steps", "step kept", "rule"))]
    return Sheet("students", "student", headings, rows)


def _before_after(values: list[float], decimals: int) -> list[str]:
    """Two cells, an arrow before the second."""
    before, after = (number(each, decimals) for each in values)
    return [before, f"→ {after}"]
