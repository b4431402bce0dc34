"""What a run shows, first of all: the headline, the table behind it, and how sure the scores are."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pelap.core.paths import REAL_ROW
from pelap.report.data import RunData
from pelap.report.figures.operators import fates_of, median_by_section
from pelap.report.figures.style import plain_number
from pelap.report.tables import (
    CERTAIN,
    DASH,
    PLUS_MINUS,
    Column,
    Heading,
    Sheet,
    listed,
    number,
    percent,
    quality_column,
    verdict,
)

_FIXED_SPACE = "\N{NO-BREAK SPACE}"


def headline(run: RunData) -> list[str]:
    """What each plan saved and its students are worth, what became of the latents, and what to beware of."""
    found = run.collapse.groupby("verdict", sort=False)["variant"].agg(listed)
    latents = "; ".join(f"{said} in {names}" for said, names in found.items())
    plans = [" ".join(_plan(run, plan, result)) for plan, result in run.prune_result.items()]
    return [*plans, *([f"Latents: {latents}."] if latents else []), _caution(run)]


def _plan(run: RunData, plan: str, result: Mapping[str, Any]) -> Iterator[str]:
    saved = [f"{len(run.replaced_by(plan))} operators replaced"]
    for name, share in (
        ("UNet time", -value(result, "measured_time_reduction")),
        ("parameters", shrunk(result)),
    ):
        saved += [] if math.isnan(share) else [f"{name} {percent(share)}"]
    yield f"Plan {plan}: {', '.join(saved)}."
    key = quality.key if (quality := quality_column(run.frame)) else ""
    for control in run.unpruned:
        words: dict[str, list[str]] = {}
        for row, how in run.students.items():
            gap = run.difference(row, control, key)
            if how["plan"] == plan and gap is not None:
                words.setdefault(verdict(gap[0], CERTAIN * gap[1]), []).append(row)
        parts = [f"{listed(rows)} {word}" for word, rows in words.items()]
        yield from [f"Against {control}: {'; '.join(parts)}."] if parts else []


def value(result: Mapping[str, Any], key: str) -> float:
    """A number of `prune/result.json`; NaN where there is none."""
    return math.nan if result.get(key) is None else float(result[key])


def shrunk(result: Mapping[str, Any]) -> float:
    """Relative change of the number of parameters; NaN where it is not known."""
    before = value(result, "params_before")
    return value(result, "params_after") / before - 1 if before else math.nan


def _caution(run: RunData) -> str:
    """What this run cannot show."""
    text = f"This is one run with one seed ({run.seed}): small differences can be chance"
    text += "; a sweep over seeds shows the spread."
    if run.students and not run.started("dense"):
        steps = number(max(how["steps"] for how in run.students.values()), 0)
        text += f" The pruned UNets were trained on for {steps} steps that the dense one did not have."
    return text


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
    lines = zip(rows, zip(*shown.values(), strict=True), strict=True)
    return Sheet("findings", "model", list(shown), list(lines))


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
    return f"{verdict(gap[0], CERTAIN * gap[1])} ({_FIXED_SPACE.join(shown)})"


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
