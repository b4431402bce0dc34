"""Sentences that say what the numbers say, computed from them, whichever way they came out."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pelap.report.data import RunData
from pelap.report.distillation import difference, verdict
from pelap.report.figures.budget import records
from pelap.report.figures.style import plain_number
from pelap.report.operators import fate, median_by_section
from pelap.report.rows import PRUNED, split_row
from pelap.report.tables import Column, number, quality_column

_AGREEMENT = (
    (0.95, "the order hardly depends on the noise"),
    (0.8, "the order depends on the noise in places"),
    (0.5, "the order depends much on the noise"),
    (-1.0, "the order is largely that of the noise; more latents (score.num_latents) make it surer"),
)
"""What a rank correlation from this value on means."""
_WHERE = {
    "in": "at the input",
    "down": "on the way down",
    "mid": "in the middle",
    "up": "on the way up",
    "out": "at the output",
}


def headline(run: RunData) -> list[str]:
    """What this run shows, most important first; sentences without data are left out."""
    parts = (
        pruning(run),
        quality(run),
        equal_time(run),
        controls(run),
        variants(run),
        verdicts(run),
        latents(run),
        caution(run),
    )
    return [sentence for sentence in parts if sentence]


def compared(before: float, after: float, less: str = "less", more: str = "more") -> str:
    """`12.3 % less`, `4.0 % more` or `no different`, to the digit shown."""
    if not before or not math.isfinite(after / before):
        return "not comparable"
    share = f"{abs(after / before - 1) * 100:.1f}"
    if float(share) == 0:
        return "no different"
    return f"{share} % {less if after < before else more}"


def time_change(reduction: float) -> str:
    """A reduction of time as words: `25.0 % less time`, `3.1 % more time`."""
    words = compared(1.0, 1.0 - reduction)
    return "no less time" if words == "no different" else f"{words} time"


def listed(items: Iterable[str]) -> str:
    """`a, b and c`."""
    items = list(items)
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def pruning(run: RunData) -> str:
    """How much went by each plan and what it saved."""
    return " ".join(_plan(run, plan, result) for plan, result in run.prune_result.items())


def _plan(run: RunData, plan: str, result: Mapping[str, Any]) -> str:
    replaced = run.replaced_by(plan)
    fates = [fate(name, replaced) for name in run.scores["operator"]]
    inside = fates.count("gone with a replaced one")
    text = f"Plan {plan}: {len(replaced)} of {len(run.scores)} scored operators replaced"
    text += f", {inside} inside them gone along" if inside else ""
    measured, promised = result.get("measured_time_reduction"), result.get("promised_time_reduction")
    if measured is not None:
        text += f"; {time_change(measured)}, measured"
        text += f" ({time_change(promised)} promised)" if promised is not None else ""
    before, after = result.get("params_before"), result.get("params_after")
    if before and after is not None:
        text += f"; {number(after, 0)} parameters ({compared(before, after, 'fewer')})"
    return f"{text}."


def meaning(run: RunData) -> str:
    """What a score is, by the formula that was used."""
    return {
        "avg+std": "how far the mean and the standard deviation of the resulting latents moved, added up",
        "avg": "how far the mean of the resulting latents moved",
        "std": "how far the standard deviation of the resulting latents moved",
        "avg*std": "how far the mean of the resulting latents moved, times how far their spread did",
    }.get(run.score_protocol["formula"], "how far the resulting latents moved")


def certainty(run: RunData) -> str:
    """How sure the scores are; what was not measured is left out."""
    if run.scores.empty:
        return ""
    return " ".join(filter(None, (_effort(run), _agreement(run), _overlaps(run))))


def _effort(run: RunData) -> str:
    """From how many latents, and whether all of them."""
    num, seeds = run.score_protocol["num_latents"], run.score_protocol["num_seeds"]
    text = f"Scores are from {number(num, 0)} latents, from noise of {seeds} seed{'s' * (seeds != 1)}"
    stopped = int(run.scores["stopped_early"].astype(bool).sum())
    if run.score_protocol["early_stop"] is None and not stopped:
        return f"{text}; every operator had all of them (no early stop)."
    if not stopped:
        return f"{text}; early stop was on, and stopped none."
    return f"{text}; {stopped} of {len(run.scores)} operators were stopped early, after fewer of them."


def _agreement(run: RunData) -> str:
    """Spearman's correlation between the scores of one seed and another's, in words."""
    correlation = run.score_protocol["rank_correlation"]
    if correlation is None:
        return ""
    means = next(text for least, text in _AGREEMENT if correlation >= least)
    shown = number(correlation if correlation == 1 else min(correlation, 0.999), 3)
    return f"Spearman's rank correlation between the seeds is {shown} (1: the same order): {means}."


def _overlaps(run: RunData) -> str:
    """How many of the replaced operators can hardly be told from the first one kept."""
    scores = run.scores.sort_values("score", kind="stable")
    fates = scores["operator"].map(lambda name: fate(name, run.replaced))
    known = scores["score_high"].notna() & ~scores["stopped_early"].astype(bool)
    kept, replaced = scores[(fates == "kept") & known], scores[(fates == "replaced") & known]
    if kept.empty or replaced.empty:
        return ""
    first = kept.iloc[0]
    apart = (replaced["score_high"] < first["score_low"]) | (replaced["score_low"] > first["score_high"])
    num, total = int((~apart).sum()), len(replaced)
    whose = f"that of {first['operator']}, the least missed of those kept"
    if not num:
        return f"No 95 % interval of the {total} replaced overlaps {whose}."
    have = "has a 95 % interval" if num == 1 else "have 95 % intervals"
    chance = "there the choice is a matter of chance"
    return f"{num} of the {total} replaced {have} overlapping {whose}: {chance}."


def depth(run: RunData) -> str:
    """In which order the figure of depth is, and the median score of each part of the network."""
    medians = median_by_section(run.scores)
    if "" in medians:
        return "in the order of their names."
    parts = [
        f"{plain_number(value) if math.isfinite(value) else 'infinite'} {_WHERE[part]}"
        for part, value in medians.items()
    ]
    text = "in the order in which the UNet runs them."
    return f"{text} Median score: {listed(parts)}." if len(parts) > 1 else text


def quality(run: RunData) -> str:
    """What pruning did to the pictures, and what training on gave back."""
    column = quality_column(run.frame)
    values = run.frame[column.key].dropna() if column else pd.Series(dtype=float)
    scored = run.scored
    if column is None or scored is None or scored not in values:
        return ""
    text = f"{column.title} ({column.unit}), lower is better: "
    text += f"{column.cell(values[scored])} for the dense {scored}."
    for plan in run.plans:
        rows = [f"{PRUNED}-{plan}", *(row for row, how in run.students.items() if how["plan"] == plan)]
        parts = _distances(rows, run, column)
        text += f" Plan {plan}: {', '.join(parts)}." if parts else ""
    others = [row for row, how in run.students.items() if how["plan"] is None]
    parts = _distances(others, run, column)
    text += f" Not pruned, trained on: {', '.join(parts)}." if parts else ""
    if "real" in values:
        floor = run.modality_names.put("Real pictures against other real pictures")
        text += f" {floor} have {column.cell(values['real'])}: the floor."
    return text


def _distances(rows: Iterable[str], run: RunData, column: Column) -> list[str]:
    """`93.22 distilled (1.6 % worse)` of every row that was measured, against the dense model."""
    values = run.frame[column.key].dropna().to_dict()
    dense = values[run.scored]
    return [
        f"{column.cell(values[row])} {split_row(row, run.plans)[0]} "
        f"({compared(dense, values[row], 'better', 'worse')})"
        for row in rows
        if row in values
    ]


def equal_time(run: RunData) -> str:
    """Each network that is faster against those not pruned that take fewer steps for the same time."""
    if run.scored is None or run.points.empty:
        return ""
    started = [row for row, how in run.students.items() if how["start"] == "pruned"]
    trained = [row for row, how in run.students.items() if how["start"] == "dense"]
    curves = [(run.scored, f"the dense {run.scored}", [*run.cached, *started])]
    curves += [(row, f"{row}, which was trained on unpruned,", started) for row in trained]
    found = [(who, _at_equal_time(run, model, rows)) for model, who, rows in curves]
    parts = [f"{who} with fewer steps has about {listed(text)}" for who, text in found if text]
    if not parts:
        return ""
    return (
        f"Given as much time a {run.modality_names.one}, {'; '.join(parts)} "
        "(straight lines between the numbers of steps that were measured)."
    )


def _at_equal_time(run: RunData, model: str, rows: Iterable[str]) -> list[str]:
    """What a model with several numbers of steps has at the time of each of `rows`."""
    column, points = quality_column(run.frame), run.points
    curve = points[points["model"] == model].sort_values("x")
    if column is None or len(curve) < 2:
        return []
    return [
        f"{column.cell(float(np.interp(row.x, curve['x'], curve['y'])))} "
        f"where {row.model} has {column.cell(row.y)}"
        for row in records(points[points["model"].isin(list(rows))])
        if curve["x"].iloc[0] <= row.x < curve["x"].iloc[-1]
    ]


def controls(run: RunData) -> str:
    """Which students are no worse than the dense model, by the standard errors of paired differences."""
    column = quality_column(run.frame)
    if column is None or run.scored is None:
        return ""
    found: dict[str, list[str]] = {}
    for row in run.students:
        gap = difference(run, row, run.scored, column.key)
        if gap is not None:
            found.setdefault(verdict(*gap), []).append(row)
    if not found:
        return ""
    parts = [f"{listed(rows)} {'is' if len(rows) == 1 else 'are'} {word} it" for word, rows in found.items()]
    text = f"Against the dense {run.scored}, by two standard errors of the paired difference"
    return f"{text}: {'; '.join(parts)}."


def variants(run: RunData) -> str:
    """Which way of training made the best pictures."""
    column = quality_column(run.frame)
    if column is None:
        return ""
    trained = [model for model in run.history if model in run.frame.index]
    values = run.frame.loc[trained, column.key].dropna().sort_values(kind="stable")
    if len(values) < 2:
        return ""
    order = listed(f"{model} ({column.cell(value)})" for model, value in values.items())
    return f"Variants by {column.title} of their samples, best first: {order}."


def verdicts(run: RunData) -> str:
    """What happened to each variant's latent."""
    found = run.collapse.groupby("verdict", sort=False)["variant"].agg(listed)
    text = "; ".join(f"{verdict} in {names}" for verdict, names in found.items())
    return f"Verdict on the latents: {text}." if text else ""


def latents(run: RunData) -> str:
    """How much of the latent the UNet gets to see."""
    scales = listed(
        f"{row.unet_input_std:.2g} in {row.variant}" for row in run.collapse.itertuples(index=False)
    )
    if not scales:
        return ""
    return (
        f"The standard deviation of what the UNet sees is {scales}; near 0 nothing is left to denoise, "
        f"and a low noise loss says nothing about the {run.modality_names.many}."
    )


def caution(run: RunData) -> str:
    """What this run cannot show."""
    text = f"This is one run with one seed ({run.seed}): small differences can be chance"
    text += "; a sweep over seeds shows the spread."
    longer = [row for row, how in run.students.items() if how["start"] == "dense"]
    if run.students and not longer:
        steps = number(max(how["steps"] for how in run.students.values()), 0)
        text += f" The pruned UNets were trained on for {steps} steps that the dense one did not have."
    return text
