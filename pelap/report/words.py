"""Sentences that say what the numbers say, computed from them, whichever way they came out."""

import math
from collections.abc import Iterable

import pandas as pd

from pelap.report.data import RunData
from pelap.report.tables import number, quality_column


def headline(run: RunData) -> list[str]:
    """What this run shows, most important first; sentences without data are left out."""
    parts = (pruning(run), quality(run), variants(run), verdicts(run), latents(run), caution(run))
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
    """How much went and what it saved."""
    result = run.prune_result
    text = f"Pruning took out {len(run.removed)} of {len(run.scores)} scored operators."
    measured, promised = result.get("measured_time_reduction"), result.get("promised_time_reduction")
    if measured is not None:
        text += f" The pruned UNet takes {time_change(measured)}, measured"
        text += f" ({time_change(promised)} was promised)." if promised is not None else "."
    before, after = result.get("params_before"), result.get("params_after")
    if before and after is not None:
        change = compared(before, after, "fewer")
        text += f" It has {number(after, 0)} parameters; the dense one had {number(before, 0)} ({change})."
    return text


def quality(run: RunData) -> str:
    """What pruning did to the pictures, and what distillation gave back."""
    column = quality_column(run.frame)
    values = run.frame[column.key].dropna() if column else pd.Series(dtype=float)
    scored = run.scored
    if column is None or scored is None or scored not in values:
        return ""
    dense = values[scored]
    steps = [
        f"{column.cell(values[model])} {when} ({compared(dense, values[model], 'better', 'worse')})"
        for model, when in (("pruned", "right after pruning"), ("distilled", "after distillation"))
        if model in values
    ]
    name = f"{column.title} ({column.unit})"
    text = f"{name}, lower is better: {column.cell(dense)} for the dense {scored}"
    text += "".join(f", {step}" for step in steps) + "."
    if "real" in values:
        text += f" Real pictures against other real pictures have {column.cell(values['real'])}: the floor."
    return text


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
        "and a low noise loss says nothing about the pictures."
    )


def caution(run: RunData) -> str:
    """What this run cannot show."""
    text = f"This is one run with one seed ({run.seed}): small differences can be chance"
    text += "; a sweep over seeds shows the spread."
    if len(run.distill):
        steps = number(run.distill["step"].max(), 0)
        text += f" The distilled UNet was trained for {steps} steps that the dense one did not have."
    return text
