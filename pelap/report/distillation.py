"""The students as cells for the page: how each was trained, and what its controls say."""

import math
from collections.abc import Iterator

import pandas as pd

from pelap.report.data import RunData
from pelap.report.rows import PRUNED
from pelap.report.tables import (
    DASH,
    MINUS,
    PLUS_MINUS,
    Column,
    number,
    quality_column,
)

CERTAIN = 2
"""Standard errors that a difference must exceed to be called one."""
_RULES = {
    "last": "the last",
    "loss": "least held-out task loss",
    "distance": "least Fréchet distance on the way",
}
_STARTS = {"pruned": "the pruned weights", "scratch": "fresh weights", "dense": "the dense network"}
_TERMS = ("task", "output", "feature")


def verdict(difference: float, se: float) -> str:
    """A difference of distances (lower is better) in words, at two standard errors."""
    if abs(difference) <= CERTAIN * se:
        return "no worse than"
    return "worse than" if difference > 0 else "better than"


def trained(run: RunData) -> list[tuple[str, list[str]]]:
    """How each student was trained: start, weights of the three terms, steps, the step kept and its rule."""
    return [
        (
            row,
            [
                _STARTS.get(how["start"], str(how["start"])),
                *(f"{how[f'{term}_weight']:g}" for term in _TERMS),
                number(how["steps"], 0),
                number(how["kept_step"], 0),
                _RULES.get(how["select"], str(how["select"])),
            ],
        )
        for row, how in run.students.items()
    ]


def controls(run: RunData) -> list[str]:
    """What students are held against: the scored variant, and what was trained on from it."""
    against = run.differences["against"].drop_duplicates()
    return [name for name in _dense(run) if name in set(against)]


def compared(run: RunData) -> list[tuple[str, list[str]]]:
    """Each student against each of `controls`, the difference with its standard error and in words."""
    column = quality_column(run.frame)
    if column is None:
        return []
    rows = []
    for student in run.students:
        cells = [_difference(run, student, control, column) for control in controls(run)]
        rows.append((student, [*cells, _recovered(run, student, column)]))
    return rows


def difference(run: RunData, model: str, against: str, metric: str) -> tuple[float, float] | None:
    """Difference of two models in a metric and its standard error, if it was measured."""
    table = run.differences
    found = table[(table["model"] == model) & (table["against"] == against) & (table["metric"] == metric)]
    if found.empty or found[["difference", "se"]].iloc[0].isna().any():
        return None
    return float(found["difference"].iloc[0]), float(found["se"].iloc[0])


def _dense(run: RunData) -> Iterator[str]:
    if run.scored is not None:
        yield run.scored
    yield from (row for row, how in run.students.items() if how["start"] == "dense")


def _difference(run: RunData, student: str, control: str, column: Column) -> str:
    found = difference(run, student, control, column.key)
    if student == control or found is None:
        return DASH
    value, se = found
    sign = "+" if value > 0 else MINUS if value < 0 else ""
    shown = f"{sign}{number(abs(value), column.decimals)} {PLUS_MINUS} {number(se, column.decimals)}"
    return f"{verdict(value, se)} {control} ({shown})"


def _recovered(run: RunData, student: str, column: Column) -> str:
    """The share of the gap that was closed, or why there is none."""
    how = run.students[student]
    if how["start"] != "pruned":
        return DASH
    share = run.metrics.get(student, {}).get("recovered")
    if share is not None and not math.isnan(share):
        return f"{number(100 * share, 0)} %"
    gap = difference(run, f"{PRUNED}-{how['plan']}", run.scored or "", column.key)
    if gap is not None and gap[0] <= CERTAIN * gap[1]:
        return "not stated: the gap that pruning left is within two standard errors"
    return DASH


def latencies(table: pd.DataFrame) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Times of one pass: a heading for each mode and batch size, and the cells of every model."""
    kinds = list(table[["mode", "batch_size"]].drop_duplicates().itertuples(index=False, name=None))
    rows = []
    for model, times in table.groupby("model", sort=False):
        rows.append((str(model), [_time(times, *kind) for kind in kinds]))
    return [f"{mode}, {size} latent{'s' * (size != 1)}" for mode, size in kinds], rows


def _time(times: pd.DataFrame, mode: str, size: int) -> str:
    found = times[(times["mode"] == mode) & (times["batch_size"] == size)].dropna(subset=["median_ms"])
    if found.empty:
        return DASH
    return f"{number(found['median_ms'].iloc[0], 2)} {PLUS_MINUS} {number(found['iqr_ms'].iloc[0] / 2, 2)}"
