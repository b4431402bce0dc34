"""What the page says in numbers: the headline, how sure the scores are, and every table."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pelap.core.paths import REAL_ROW
from pelap.report.data import RunData
from pelap.report.figures.operators import fates_of, median_by_section
from pelap.report.figures.style import plain_number
from pelap.report.tables import (
    DASH,
    GROUPS,
    PLUS_MINUS,
    Column,
    Heading,
    Sheet,
    columns,
    listed,
    number,
    percent,
    quality_column,
)

_FIXED_SPACE = "\N{NO-BREAK SPACE}"
_STARTS = {"pruned": "the pruned weights", "scratch": "fresh weights", "dense": "the dense network"}
_RULES = {
    "last": "the last", "loss": "least held-out task loss", "distance": "least Fréchet distance on the way",
}  # fmt: skip
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
         "The least error there of a UNet that knows the noise up to mean and scale: 0 where it begins "
         "with a convolution, more where a norm comes first. No strict bound: the norm's epsilon lets some "
         "of the scale through."),
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


def headline(run: RunData) -> list[str]:
    """What each plan saved and its students are worth, what became of the latents, and what to beware of."""
    found = run.collapse.groupby("verdict", sort=False)["variant"].agg(listed)
    latents = "; ".join(f"{said} in {names}" for said, names in found.items())
    plans = [" ".join(_plan(run, plan, result)) for plan, result in run.prune_result.items()]
    caution = f"This is one run with one seed ({run.seed}): small differences can be chance"
    caution += "; a sweep over seeds shows the spread."
    if run.students and not run.started("dense"):
        steps = number(max(how["steps"] for how in run.students.values()), 0)
        caution += f" The pruned UNets were trained on for {steps} steps that the dense one did not have."
    return [*plans, *([f"Latents: {latents}."] if latents else []), caution]


def _plan(run: RunData, plan: str, result: Mapping[str, Any]) -> Iterator[str]:
    saved = [f"{len(run.replaced_by(plan))} operators replaced"]
    shares = {"UNet time": -_value(result, "measured_time_reduction"), "parameters": _shrunk(result)}
    saved += [f"{name} {percent(share)}" for name, share in shares.items() if not math.isnan(share)]
    yield f"Plan {plan}: {', '.join(saved)}."
    key = quality.key if (quality := quality_column(run.frame)) else ""
    for control in run.unpruned:
        words: dict[str, list[str]] = {}
        for row, how in run.students.items():
            gap = run.difference(row, control, key)
            if how["plan"] == plan and gap is not None:
                words.setdefault(gap[2], []).append(row)
        parts = [f"{listed(rows)} {word}" for word, rows in words.items()]
        yield from [f"Against {control}: {'; '.join(parts)}."] if parts else []


def _value(result: Mapping[str, Any], key: str) -> float:
    """A number of `prune/result.json`; NaN where there is none."""
    return math.nan if result.get(key) is None else float(result[key])


def _shrunk(result: Mapping[str, Any]) -> float:
    """Relative change of the number of parameters; NaN where it is not known."""
    before = _value(result, "params_before")
    return _value(result, "params_after") / before - 1 if before else math.nan


def findings(run: RunData) -> Sheet | None:
    """The dense network, what was made of it and real pictures; columns without data are left out."""
    scored, frame, quality = run.scored, run.frame, quality_column(run.frame)
    if quality is None or scored is None or scored not in frame.index:
        return None
    points = run.points.drop_duplicates("model")
    distances = dict(zip(points["model"], points["y"], strict=True))
    distances |= {str(model): distance for model, distance in frame[quality.key].items()}
    rows = [row for row in [*run.denoisers, REAL_ROW] if not math.isnan(distances.get(row, math.nan))]
    table = frame.reindex(rows).assign(**{quality.key: [distances[row] for row in rows]})

    columns = {Heading("UNet time", "change"): _changes(table, "latency_ms", scored)}
    columns[Heading("parameters", "change")] = _changes(table, "params", scored)
    cells = [quality.of(row) for _, row in table.iterrows()]
    columns[Heading(f"{quality.title} {quality.better}", quality.unit)] = cells
    columns[Heading("distance", "change")] = _changes(table, quality.key, scored)
    for control in run.unpruned:
        columns[Heading(f"against {control}")] = [_against(run, row, control, quality) for row in rows]
        rivals = run.started("pruned") + (run.cached if control == scored else [])
        cells = [_at_equal_time(run, control, row, quality) if row in rivals else DASH for row in rows]
        columns[Heading(f"{control}, as fast", "fewer steps")] = cells
    shown = {heading: cells for heading, cells in columns.items() if set(cells) != {DASH}}
    return _sheet("findings", "model", rows, shown)


def _sheet(name: str, first: str, rows: list[str], cells: Mapping[Heading, list[str]]) -> Sheet:
    """From its columns."""
    return Sheet(name, first, list(cells), list(zip(rows, zip(*cells.values(), strict=True), strict=True)))


def _changes(table: pd.DataFrame, key: str, scored: str) -> list[str]:
    """Relative changes of a metric against the dense network's; a dash where there is none."""
    if key not in table or not table[key][scored]:
        return [DASH] * len(table)
    return [percent(share) for share in table[key] / table[key][scored] - 1]


def _against(run: RunData, model: str, control: str, quality: Column) -> str:
    """`worse (+4.32 ± 1.10)`."""
    gap = run.difference(model, control, quality.key)
    if gap is None:
        return DASH
    shown = [number(gap[0], quality.decimals, signed=True), PLUS_MINUS, number(gap[1], quality.decimals)]
    return f"{gap[2]} ({_FIXED_SPACE.join(shown)})"


def _at_equal_time(run: RunData, model: str, other: str, quality: Column) -> str:
    """The distance of a model with several numbers of steps where it takes the time of another."""
    curve = run.points[run.points["model"] == model].sort_values("x")
    times = run.points.loc[run.points["model"] == other, "x"]
    if len(curve) < 2 or times.empty or not curve["x"].iloc[0] <= times.iloc[0] < curve["x"].iloc[-1]:
        return DASH
    return quality.cell(float(np.interp(times.iloc[0], curve["x"], curve["y"])))


def scoring(run: RunData) -> str:
    """What the scores are from and how sure they are, as one line; what was not measured is left out."""
    return " · ".join(_scoring(run)) if len(run.scores) else ""


def _scoring(run: RunData) -> Iterator[str]:
    how, scores, early = run.score_protocol, run.scores, run.scores["stopped_early"].astype(bool)
    yield f"{number(how['num_latents'], 0)} latents an operator"
    yield f"noise of {how['num_seeds']} seed{'s' * (how['num_seeds'] != 1)}"
    off = how["early_stop"] is None and not early.any()
    yield "no early stop" if off else f"stopped early: {early.sum()} of {len(scores)} operators"
    correlation = how["rank_correlation"]
    if correlation is not None:
        shown = number(correlation if correlation == 1 else min(correlation, 0.999), 3)
        yield f"rank correlation between the seeds {shown} (Spearman; 1: the same order)"
    fates = fates_of(scores, run.replaced)
    known = scores["score_high"].notna() & ~early
    kept, replaced = scores[(fates == "kept") & known], scores[(fates == "replaced") & known]
    if len(kept) and len(replaced):
        first = kept.iloc[0]
        apart = (replaced["score_high"] < first["score_low"]) | (replaced["score_low"] > first["score_high"])
        yield (
            f"95 % interval overlapping that of {first['operator']}, the least missed of those kept: "
            f"{(~apart).sum()} of the {len(replaced)} replaced"
        )
    medians = {part: median for part, median in median_by_section(scores).items() if part}
    if len(medians) > 1:
        parts = (f"{part} {plain_number(median)}".replace("inf", "∞") for part, median in medians.items())
        yield f"median score of the outermost: {listed(parts)}"


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
    shown = {Heading(key): list(run.collapse[key]) for key in ("verdict", "reason")}
    if quality is not None:
        cells = [quality.of(row) for _, row in run.frame.reindex(names).iterrows()]
        shown[Heading(f"{quality.title} {quality.better}", quality.unit)] = cells
    return _sheet("verdicts", "variant", names, shown)


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
            *(percent(_value(result, f"{kind}_time_reduction"), False) for kind in ("promised", "measured")),
            *_before_after(result, "latency_ms", 2),
            *_before_after(result, "params", 0),
            percent(_shrunk(result)),
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
        quantities = (("params", 0, 1.0), ("macs", 1, 1e-6), ("latency_ms", 2, 1.0))
        cells = [cell for each in quantities for cell in _before_after(row, *each)]
        rows.append((row["operator"], [row["action"], *cells]))
    headings = (Heading("parameters", "", 2), Heading("MACs", "million", 2), Heading("time", "ms", 2))
    return Sheet("changes", "operator", [Heading("action"), *headings], rows)


def students(run: RunData) -> Sheet:
    """How each student was trained: start, weights of the three terms, steps, the step kept and its rule.

    Behind a weight stands the term's share of the gradient's norm at the step kept, where that was measured.
    """
    rows, measured = [], run.distill_validation.set_index(["student", "step"])
    for row, how in run.students.items():
        at_kept = measured.loc[(row, how["kept_step"])] if (row, how["kept_step"]) in measured.index else {}
        weights = [_weight(how, at_kept, term) for term in ("task", "output", "feature")]
        steps = [number(how[key], 0) for key in ("steps", "kept_step")]
        start, rule = _STARTS.get(how["start"], how["start"]), _RULES.get(how["select"], how["select"])
        rows.append((row, [str(start), *weights, *steps, str(rule)]))
    terms = [Heading(term, "weight") for term in ("task", "output", "features")]
    headings = [Heading("starts from"), *terms, *map(Heading, ("steps", "step kept", "rule"))]
    return Sheet("students", "student", headings, rows)


def _weight(how: Mapping[str, Any], measured: Mapping[Any, Any], term: str) -> str:
    weight, share = f"{how[f'{term}_weight']:g}", _value(measured, f"{term}_gradient_share")
    return weight if math.isnan(share) else f"{weight} ({number(100 * share, 0)} %)"


def _before_after(result: Mapping[Any, Any], key: str, decimals: int, factor: float = 1.0) -> list[str]:
    """Two cells, an arrow before the second."""
    sides = (_value(result, f"{key}_{side}") for side in ("before", "after"))
    before, after = (number(side * factor, decimals) for side in sides)
    return [before, f"→ {after}"]
