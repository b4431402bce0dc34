"""The page of the tasks in Markdown."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from pelap.core.paths import REAL_ROW
from pelap.report.protocol import SOUNDS, guided, modality_names
from pelap.report.tables import DASH, MINUS, PLUS_MINUS, SAME, VOCODED, column, markdown, number
from workflow.studies.common import verdict
from workflow.studies.tasks.cell import (
    AGREEMENT,
    ITEM_TIME_SAVED,
    OPERATORS,
    PARAMS_REMOVED,
    TIME_SAVED,
    TaskCell,
    first_cells,
)

PERCENT = 100
_SOUND = modality_names({"medium": SOUNDS}).one
UNKNOWN = "unknown"
PUBLISHED = (
    ("text-to-image", "Stable Diffusion v1.4", f"{MINUS}34.9 % time", f"FID {MINUS}5.2 %"),
    ("unconditional audio", UNKNOWN, f"{MINUS}19.2 % time, 90 operators modified", "FAD 2.0 (0.5 better)"),
    ("unconditional image", UNKNOWN, UNKNOWN, UNKNOWN),
)
"""Task, model, saved, quality: LD-Pruner (https://arxiv.org/abs/2404.11936), as far as known here."""


class Moments(NamedTuple):
    """Of a metric over seeds."""

    mean: float
    std: float
    n: int


class Table(dict[tuple[str, str], Moments]):
    """The summary of one task, by model and metric; NaN of 0 seeds for what was not measured."""

    def __init__(self, summary: pd.DataFrame, cell: TaskCell) -> None:
        own = summary[(summary["task"] == cell.task) & (summary["dataset"] == cell.dataset)]
        columns = (own[name] for name in ("model", "metric", *Moments._fields))
        super().__init__(
            {(model, metric): Moments(*rest) for model, metric, *rest in zip(*columns, strict=True)}
        )

    def __missing__(self, key: tuple[str, str]) -> Moments:
        return Moments(math.nan, math.nan, 0)

    def has(self, metric: str) -> bool:
        """Whether any model has it."""
        return any(name == metric for _, name in self)


def page(summary: pd.DataFrame, values: pd.DataFrame, cells: Sequence[TaskCell]) -> str:
    """The summary in Markdown: of each task a table and what it says, then LD-Pruner's own figures.

    Args:
        summary: Mean, std and n of every task, data set, model and metric.
        values: From `cell_values`, of every cell.
        cells: All of them.
    """
    parts = ["# The tasks\n", f"{_intro(cells)}\n"]
    for first in first_cells(cells):
        seeds = [cell.seed for cell in cells if cell.place == first.place]
        table, many = Table(summary, first), "s" * (len(seeds) > 1)
        parts.append(f"## {first.task}: {first.dataset}, seed{many} {', '.join(map(str, seeds))}\n")
        parts.append(_table(table, first, len(seeds)))
        parts += [f"{sentence}\n" for sentence in _cautions(first)]
        lines = [*_verdicts(table, values, first), *_vocoded(table, first)]
        parts.append("".join(f"- {line}\n" for line in lines))
    parts.append(
        "## LD-Pruner's own figures\n\n"
        "Of other models, other data and other metrics (FID, FAD) than those above, which have distances of "
        "their own names: no number here can be set against one there; what compares is the direction.\n\n"
        + markdown(("task", "model", "saved", "quality"), PUBLISHED)
    )
    return "\n".join(part for part in parts if part)


def _intro(cells: Sequence[TaskCell]) -> str:
    """What the tables hold."""
    heard = any(cell.item == _SOUND for cell in cells)
    controls = dict.fromkeys(f"`{cell.control}`" for cell in cells if cell.control is not None)
    trained = (
        f"{' and '.join(controls)} {'are' if len(controls) > 1 else 'is'} the dense model trained on for as "
        "many steps as the distilled ones. "
    )
    return (
        f"Mean {PLUS_MINUS} sample standard deviation over seeds, n where it is of fewer than the heading. "
        "Time saved: of one pass of the UNet, by the least of many passes in turns with the dense one; and "
        "of a whole item, which is denoising and decoding"
        f"{', for sounds without Griffin-Lim' if heard else ''}. "
        "Changes of the distance are paired, between models of the same seed. "
        f"{trained if controls else ''}`{REAL_ROW}` is another draw of real items. "
        "Below each table, a change counts as one where its mean over seeds exceeds its standard deviation "
        'over seeds; "not told apart" is no proof that the two are alike. '
        "`tasks.csv` has every metric, `cells.csv` every seed."
    )


def _cautions(cell: TaskCell) -> Iterator[str]:
    """What has to be kept in mind with the table of a task."""
    if cell.by_classifier:
        yield (
            f"{cell.item.capitalize()}s and the classifier trained on them differ from seed to seed: the "
            f"mean {PLUS_MINUS} deviation of {cell.metric} mixes feature spaces, and only the paired "
            "relative changes compare."
        )
    if cell.rows_per_latent != 1:
        yield guided({"rows_per_latent": cell.rows_per_latent})


def _table(table: Table, cell: TaskCell, num_seeds: int) -> str:
    columns: dict[str, tuple[str, tuple[int, float, bool]]] = {
        "UNet time saved (%)": (TIME_SAVED, (1, PERCENT, False)),
        f"time of a {cell.item} saved (%)": (ITEM_TIME_SAVED, (1, PERCENT, False)),
        "operators removed": (OPERATORS, (0, 1, False)),
        "parameters removed (%)": (PARAMS_REMOVED, (1, PERCENT, False)),
        f"{cell.metric} ↓": (cell.metric, (column(cell.metric).decimals, 1, False)),
    }
    for other in cell.references:
        columns[f"change to {other} (%)"] = (f"change_to_{other}", (1, PERCENT, True))
    if table.has(AGREEMENT):
        columns["prompt agreement (%) ↑"] = (AGREEMENT, (1, PERCENT, False))

    def shown(model: str, key: str, how: tuple[int, float, bool]) -> str:
        found = table[model, key]
        return _cell(found, *how) + (f" (n = {found.n})" if 0 < found.n < num_seeds else "")

    rows = [[model, *(shown(model, *each) for each in columns.values())] for model in cell.rows]
    return markdown(["model", *columns], rows)


def _cell(moments: Moments, decimals: int, scale: float, signed: bool) -> str:
    """`12.3 ± 0.4`; a count has a decimal only where seeds differ in it."""
    mean, std = moments.mean * scale, moments.std * scale
    if math.isnan(mean):
        return DASH
    if decimals == 0 and std > 0:
        decimals = 1
    shown = number(mean, decimals, signed)
    return shown if math.isnan(std) else f"{shown} {PLUS_MINUS} {number(std, decimals)}"


def _verdicts(table: Table, values: pd.DataFrame, cell: TaskCell) -> Iterator[str]:
    """Whether each distilled model is worse than the dense one and the one trained as long.

    Distances are compared by their relative change, as each seed may have features of its own.
    """
    kinds = [("change_to", cell.metric, 1.0, " %")]
    if table.has(AGREEMENT):
        kinds.append(("agreement_difference_to", "prompt agreement", -1.0, " points"))
    for model in (name for name in cell.rows if cell.students.get(name) == "pruned"):
        saved = number(table[model, TIME_SAVED].mean * PERCENT, 1)
        for kind, name, sign, unit in kinds:
            parts = []
            for other in cell.references:
                found = table[model, f"{kind}_{other}"]
                if found.n:
                    error = _error(values, cell, model, other) if found.n == 1 and kind == "change_to" else ""
                    said = against(sign * found.mean, found.std)
                    parts.append(f"{said} {other} ({_cell(found, 1, PERCENT, True)}{unit}{error})")
            if parts:
                yield f"{model}, {saved} % less UNet time, by {name}: {'; '.join(parts)}."


def against(mean: float, std: float) -> str:
    """A paired difference (positive is worse) in words, at one standard deviation over seeds."""
    if math.isnan(mean):
        return "no verdict against"
    said = verdict(mean, std)
    if said is None:
        return "one seed, no verdict against"
    return f"{said} from" if said == SAME else f"{said} than"


def _error(values: pd.DataFrame, cell: TaskCell, model: str, other: str) -> str:
    """The difference and its standard error within the only seed."""
    own = values[
        (values["task"] == cell.task) & (values["dataset"] == cell.dataset) & (values["model"] == model)
    ]
    found = own.drop_duplicates("metric").set_index("metric")["value"]
    name, decimals = f"difference_to_{other}", column(cell.metric).decimals
    if not {name, f"{name}_se"} <= set(found.index):
        return ""
    error = number(found[f"{name}_se"], decimals)
    return f"; difference {number(found[name], decimals, signed=True)}, standard error {error}"


def _vocoded(table: Table, cell: TaskCell) -> Iterator[str]:
    """What real sounds lose on the way that made ones go."""
    found = table[REAL_ROW, f"{cell.metric}{VOCODED}"]
    if found.n:
        shown = _cell(found, column(cell.metric).decimals, 1.0, False)
        yield f"{REAL_ROW} after Griffin-Lim, as made sounds are measured: {cell.metric} {shown}."
