"""The page of the tasks in Markdown."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import pandas as pd

from pelap.core.paths import REAL_ROW
from pelap.report import verdicts
from pelap.report.protocol import guided
from pelap.report.tables import DASH, HIGHER, LOWER, MINUS, PLUS_MINUS, VOCODED, Column, column, markdown
from pelap.report.verdicts import LEVEL, SAME
from workflow.studies.common import over_seeds
from workflow.studies.margins import REASON, Place, margins_of
from workflow.studies.tasks.cell import (
    AGREEMENT,
    AGREEMENT_LESS,
    HALF_STEPS,
    ITEM_TIME_SAVED,
    KEYS,
    OPERATORS,
    PARAMS_REMOVED,
    TIME_SAVED,
    TaskCell,
    first_cells,
)

PERCENT = 100
LEGEND = f"""\
Mean {PLUS_MINUS} sample standard deviation over seeds, n where it is of fewer than the heading; `tasks.csv`
has every metric, `cells.csv` every seed.

- Trained on from: what a network was before further training, of equally many steps for all.
- Time saved: of one pass of the UNet, by the least of many passes in turns with the dense one; and of a whole
  item, which is denoising and decoding (of a sound: without Griffin-Lim).
- Changes and differences are paired, between models of the same seed; the verdict is that of a t-test,
  corrected for the number of models in its column (Holm, {100 * LEVEL:g} %). `{SAME}` is no proof that two
  are alike; that is `equivalent`, within the margin that stands below a table, if there is one.
- A classifier is trained for each seed: the mean of `fd_classifier` mixes feature spaces, and only relative
  changes compare.
- `{REAL_ROW}`: another draw of real items.
"""
UNKNOWN = "unknown"
PUBLISHED = (
    ("text-to-image", "Stable Diffusion v1.4", f"{MINUS}34.9 % time", f"FID {MINUS}5.2 %"),
    ("unconditional audio", UNKNOWN, f"{MINUS}19.2 % time, 90 operators modified", "FAD 2.0 (0.5 better)"),
    ("unconditional image", UNKNOWN, UNKNOWN, UNKNOWN),
)
"""Task, model, saved, quality: LD-Pruner (https://arxiv.org/abs/2404.11936), as far as known here."""
PUBLISHED_NOTE = (
    "Of other models, other data and other metrics (FID, FAD) than those above, which have distances of "
    "their own names: no number here can be set against one there; what compares is the direction.\n"
)


class Moments(NamedTuple):
    """Of a metric over seeds."""

    mean: float
    std: float
    n: int


class Table(dict[tuple[str, str], Moments]):
    """The figures of one task over seeds, by model and metric; NaN of 0 seeds for what was not measured."""

    def __init__(self, summary: pd.DataFrame, cell: TaskCell) -> None:
        own = summary[(summary["task"] == cell.task) & (summary["dataset"] == cell.dataset)]
        columns = (own[name] for name in ("model", "metric", *Moments._fields))
        super().__init__(
            {(model, metric): Moments(*rest) for model, metric, *rest in zip(*columns, strict=True)}
        )

    def __missing__(self, key: tuple[str, str]) -> Moments:
        return Moments(math.nan, math.nan, 0)


def page(values: pd.DataFrame, cells: Sequence[TaskCell]) -> str:
    """What the tasks gave in Markdown, a table each by `cell_values`; then LD-Pruner's own figures."""
    parts, summary, margins = ["# The tasks\n", LEGEND], over_seeds(values, KEYS), margins_of_tasks(values)
    for first in first_cells(cells):
        seeds = [str(cell.seed) for cell in cells if cell.place == first.place]
        parts.append(f"## {first.task}: {first.dataset}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}\n")
        own = values[(values["task"] == first.task) & (values["dataset"] == first.dataset)]
        table, margin = Table(summary, first), margins.get(first.place)
        parts += [
            _table(table, own, first, len(seeds), margin),
            _what_is_told(table, first, len(seeds), margin),
        ]
        parts += [f"{text}\n" for text in [guided({"rows_per_latent": first.rows_per_latent})] if text]
    published = markdown(("task", "model", "saved", "quality"), PUBLISHED)
    return "\n".join([*parts, "## LD-Pruner's own figures\n", PUBLISHED_NOTE, published])


def margins_of_tasks(values: pd.DataFrame) -> dict[Place, float]:
    """The margins of relative changes, by task and data set; see `cell_values`."""
    rows = values[values["metric"] == HALF_STEPS]
    places = zip(rows["task"], rows["dataset"], strict=True)
    return margins_of(zip(places, rows["seed"], rows["value"], strict=True))


def judged(values: pd.DataFrame, key: str, margin: float | None) -> pd.DataFrame:
    """What `pelap.report.verdicts` says of a change or a difference, by model.

    Args:
        values: The rows of `cell_values` of one task.
        key: A metric such as `change_to_dense`; all models that have it are one family.
        margin: Of relative changes.
    """
    models = dict(list(values[values["metric"] == key].groupby("model", sort=False)["value"]))
    of_agreement = key.startswith(AGREEMENT_LESS)
    table = verdicts.over_seeds(models.values(), None if of_agreement else margin, of_agreement)
    return table.set_index(pd.Index(list(models)))


def _table(table: Table, values: pd.DataFrame, cell: TaskCell, num_seeds: int, margin: float | None) -> str:
    metrics = {metric for _, metric in table}
    columns = [each for each in _columns(cell, num_seeds) if each.key in metrics]
    told = [each.key for each in columns if each.signed and num_seeds > 1]
    words = {
        (key, model): word for key in told for model, word in judged(values, key, margin)["verdict"].items()
    }
    rows = (
        [
            model,
            cell.students.get(model, DASH),
            *(_shown(table, model, each, num_seeds, words.get((each.key, model), "")) for each in columns),
        ]
        for model in cell.rows
    )
    return markdown(["model", "trained on from", *(each.heading for each in columns)], rows, left=(0, 1))


def _what_is_told(table: Table, cell: TaskCell, num_seeds: int, margin: float | None) -> str:
    """The margin of a task's verdicts, or why there is none."""
    if num_seeds == 1:
        return "One seed: no verdicts.\n"
    cost = table[cell.dense, HALF_STEPS]
    shown = f"{Column('', '', decimals=1, scale=PERCENT).cell(cost.mean, cost.std)} %, {REASON}"
    if margin is not None:
        return f"Margin of the changes: {shown}, over {cost.n} seeds.\n"
    why = f"it would be {shown}" if cost.n else "nothing was sampled in half of the steps"
    return f"No margin, so no change can be called equivalent: {why}.\n"


def _columns(cell: TaskCell, num_seeds: int) -> Iterator[Column]:
    """What a task's table may have; of what is signed there is a verdict."""
    share = Column("", "", "%", decimals=1, scale=PERCENT)
    change = replace(share, signed=True)
    yield replace(share, key=TIME_SAVED, title="UNet time saved")
    yield replace(share, key=ITEM_TIME_SAVED, title=f"time of a {cell.item} saved")
    yield Column(OPERATORS, "operators removed", decimals=0)
    yield replace(share, key=PARAMS_REMOVED, title="parameters removed")
    distance = Column(cell.metric, cell.metric, better=LOWER, decimals=column(cell.metric).decimals)
    yield distance
    yield replace(distance, key=f"{cell.metric}{VOCODED}", title=f"{cell.metric} after Griffin-Lim")
    for other in cell.references:
        yield replace(change, key=f"change_to_{other}", title=f"change to {other}", better=LOWER)
        if num_seeds == 1:  # which has no deviation, but an error of its own
            key, unit = f"difference_to_{other}", f"{PLUS_MINUS} standard error"
            difference = replace(distance, key=key, title=f"difference to {other}", unit=unit)
            yield replace(difference, signed=True, error=f"{key}_se")
    yield replace(share, key=AGREEMENT, title="prompt agreement", better=HIGHER)
    for other in cell.references:
        key, title = f"{AGREEMENT_LESS}{other}", f"agreement less that of {other}"
        yield replace(change, key=key, title=title, unit="points", better=HIGHER)


def _shown(table: Table, model: str, each: Column, num_seeds: int, said: str) -> str:
    """`+12.3 ± 0.4, worse (n = 2)`; a count has a decimal only where seeds differ in it."""
    mean, std, n = table[model, each.key]
    if each.error:
        std = table[model, each.error].mean
    if each.decimals == 0 and std > 0:
        each = replace(each, decimals=1)
    text = each.cell(mean, std)
    text += f", {said}" if said else ""
    return text + (f" (n = {n})" if 0 < n < num_seeds else "")
