"""The tasks over seeds: what pruning saved and cost in each, beside LD-Pruner's own figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from pelap.config.rules import REAL_ROW
from pelap.report.protocol import CLASSIFIER, SOUNDS, guided, modality_names
from pelap.report.tables import (
    DASH,
    MINUS,
    PLUS_MINUS,
    PRUNED,
    VOCODED,
    column,
    number,
    split_row,
)

PLACE = ["task", "dataset"]
VALUE_COLUMNS = [*PLACE, "seed", "model", "metric", "value"]
SUMMARY_COLUMNS = [*PLACE, "model", "metric", "mean", "std", "n"]
AGREEMENT = "prompt_agreement"
TIME_SAVED, ITEM_TIME_SAVED = "time_saved", "image_time_saved"
"""Shares of the dense model's time: of one pass of the UNet, and of a whole picture or sound."""
OPERATORS, PARAMS_REMOVED = "operators_removed", "params_removed"
_ERRORS = ("_se", "_std", "_iqr_ms")
"""Tails of what is the error of another metric: it has no mean over seeds of its own."""
PERCENT = 100
_SOUND = modality_names({"medium": SOUNDS}).one


class Published(NamedTuple):
    """What LD-Pruner's authors report of a task."""

    task: str
    model: str
    saved: str
    quality: str


UNKNOWN = "unknown"
PUBLISHED = (
    Published("text-to-image", "Stable Diffusion v1.4", f"{MINUS}34.9 % time", f"FID {MINUS}5.2 %"),
    Published(
        "unconditional audio",
        UNKNOWN,
        f"{MINUS}19.2 % time, 90 operators modified",
        "FAD 2.0 (0.5 better)",
    ),
    Published("unconditional image", UNKNOWN, UNKNOWN, UNKNOWN),
)
"""LD-Pruner (https://arxiv.org/abs/2404.11936), as far as its figures are known here."""


@dataclass(frozen=True)
class TaskCell:
    """One seed of a task."""

    task: str
    dataset: str
    seed: int
    item: str
    """What the model makes, in the singular."""
    metric: str
    """The Frechet distance that models are compared by."""
    dense: str
    """The variant that was pruned."""
    students: Mapping[str, str]
    """What each that was trained on started from: pruned, dense or scratch."""
    plans: Mapping[str, Mapping[str, Any]]
    """What each plan of pruning gave, as in `prune/result.json`."""
    metrics: Mapping[str, Mapping[str, float | None]]
    differences: pd.DataFrame
    """As in `evaluate/differences.csv`."""
    rows_per_latent: int = 1
    """Rows that a latent takes in the UNet's batch: 2 with guidance."""

    @property
    def plan_names(self) -> list[str]:
        """In their order."""
        return list(self.plans)

    @property
    def by_classifier(self) -> bool:
        """Whether the distance is in features of a classifier, which is trained for each seed."""
        return self.metric.endswith(f"_{CLASSIFIER}")

    @property
    def place(self) -> tuple[str, str]:
        """What its seeds have in common."""
        return self.task, self.dataset

    @property
    def control(self) -> str | None:
        """The first that was trained on from the dense model, for as many steps."""
        return next((name for name, start in self.students.items() if start == "dense"), None)

    @property
    def references(self) -> list[str]:
        """What every other model is held against."""
        return [self.dense, *([] if self.control is None else [self.control])]

    @property
    def rows(self) -> list[str]:
        """The models of the table, in its order."""
        tuned = [name for name in self.students if name != self.control]
        names = [
            self.dense,
            *(f"{PRUNED}-{plan}" for plan in self.plans),
            *tuned,
            *self.references[1:],
            REAL_ROW,
        ]
        return [name for name in names if name in self.metrics]

    @property
    def distilled(self) -> list[str]:
        """Those that were pruned and trained on."""
        return [name for name in self.rows if self.students.get(name) == "pruned"]


def cell_values(cell: TaskCell) -> pd.DataFrame:
    """Every value of a cell, measured and derived: see `VALUE_COLUMNS`.

    Derived are shares (0..1) of time, parameters and operators that went, and against the dense model and
    the one trained as long the difference of the distance and of the prompt agreement, and the relative
    change of the distance.
    """
    rows = [
        (cell.task, cell.dataset, cell.seed, model, metric, value)
        for model, values in cell.metrics.items()
        for metric, value in [*values.items(), *_derived(cell, model)]
        if value is not None and not math.isnan(value)
    ]
    return pd.DataFrame(rows, columns=VALUE_COLUMNS)


def _derived(cell: TaskCell, model: str) -> Iterator[tuple[str, float | None]]:
    plan = cell.plans.get(split_row(model, list(cell.plans))[1] or "")
    if plan is not None:
        passes = _values(cell, "latency_least_ms", model, cell.dense)
        yield TIME_SAVED, 1 - passes[0] / passes[1] if passes else plan["measured_time_reduction"]
        yield OPERATORS, plan["num_operators"]
        yield PARAMS_REMOVED, 1 - plan["params_after"] / plan["params_before"]
    times = _values(cell, "image_ms", model, cell.dense)
    if model != cell.dense and times is not None and times[1]:
        yield ITEM_TIME_SAVED, 1 - times[0] / times[1]
    for other in cell.references:
        if model not in (other, REAL_ROW):
            yield from _against(cell, model, other)


def _against(cell: TaskCell, model: str, other: str) -> Iterator[tuple[str, float]]:
    """Differences to another model at the same seed."""
    distances = _values(cell, cell.metric, model, other)
    if distances is not None:
        yield f"difference_to_{other}", distances[0] - distances[1]
        if distances[1]:
            yield f"change_to_{other}", distances[0] / distances[1] - 1
        table = cell.differences
        found = table[
            (table["model"] == model) & (table["against"] == other) & (table["metric"] == cell.metric)
        ]
        if len(found):
            yield f"difference_to_{other}_se", float(found["se"].iloc[0])
    agreements = _values(cell, AGREEMENT, model, other)
    if agreements is not None:
        yield f"agreement_difference_to_{other}", agreements[0] - agreements[1]


def _values(cell: TaskCell, metric: str, *models: str) -> list[float] | None:
    """A metric of each of these models, if all have it."""
    found = [cell.metrics.get(model, {}).get(metric) for model in models]
    known = [value for value in found if value is not None and not math.isnan(value)]
    return known if len(known) == len(models) else None


def summarise(values: pd.DataFrame) -> pd.DataFrame:
    """Mean, sample standard deviation (NaN of one seed) and number of seeds, in order of appearance.

    Args:
        values: Of every cell; errors of metrics are left out.
    """
    measured = values[~values["metric"].str.endswith(_ERRORS)]
    rows = [
        (*keys, float(group["value"].mean()), float(group["value"].std(ddof=1)), len(group))
        for keys, group in measured.groupby([*PLACE, "model", "metric"], sort=False)
    ]
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


class Moments(NamedTuple):
    """Of a metric over seeds."""

    mean: float
    std: float
    n: int


class Table:
    """The summary of one task, to look values up in."""

    def __init__(self, summary: pd.DataFrame, cell: TaskCell) -> None:
        inside = (summary["task"] == cell.task) & (summary["dataset"] == cell.dataset)
        self._values = {
            (str(model), str(metric)): Moments(mean, std, n)
            for model, metric, mean, std, n in summary.loc[inside, SUMMARY_COLUMNS[2:]].itertuples(
                index=False
            )
        }

    def of(self, model: str, metric: str) -> Moments:
        """NaN where it was not measured."""
        return self._values.get((model, metric), Moments(math.nan, math.nan, 0))

    def has(self, metric: str) -> bool:
        """Whether any model has it."""
        return any(name == metric for _, name in self._values)


def page(summary: pd.DataFrame, values: pd.DataFrame, cells: Sequence[TaskCell]) -> str:
    """The summary in Markdown: of each task a table and what it says, then LD-Pruner's own figures.

    Args:
        summary: From `summarise`.
        values: From `cell_values`, of every cell.
        cells: All of them.
    """
    parts = ["# The tasks\n", f"{_intro(cells)}\n"]
    for first in first_cells(cells):
        seeds = [cell.seed for cell in cells if cell.place == first.place]
        parts.append(f"## {first.task}: {first.dataset}, {_seeds(seeds)}\n")
        parts.append(_markdown(*_table(Table(summary, first), first, len(seeds))))
        parts += [f"{sentence}\n" for sentence in _cautions(first)]
        lines = verdicts(Table(summary, first), values, first)
        lines += _vocoded(Table(summary, first), first)
        parts.append("".join(f"- {line}\n" for line in lines))
    parts.append(_published())
    return "\n".join(part for part in parts if part)


def _intro(cells: Sequence[TaskCell]) -> str:
    """What the tables hold."""
    heard = any(cell.item == _SOUND for cell in cells)
    controls = dict.fromkeys(f"`{cell.control}`" for cell in cells if cell.control is not None)
    many = len(controls) > 1
    sentences = [
        f"Mean {PLUS_MINUS} sample standard deviation over seeds, n where it is of fewer than the heading.",
        "Time saved: of one pass of the UNet, by the least of many passes in turns with the dense one; and "
        "of a whole item, "
        f"which is denoising and decoding{', for sounds without Griffin-Lim' if heard else ''}.",
        "Changes of the distance are paired, between models of the same seed.",
    ]
    if controls:
        sentences.append(
            f"{' and '.join(controls)} {'are' if many else 'is'} the dense model trained on for as many "
            "steps as the distilled ones."
        )
    sentences += [
        f"`{REAL_ROW}` is another draw of real items.",
        "Below each table, a change counts as one where its mean over seeds exceeds its standard deviation "
        'over seeds; "not told apart" is no proof that the two are alike.',
        "`tasks.csv` has every metric, `cells.csv` every seed.",
    ]
    return " ".join(sentences)


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


def first_cells(cells: Sequence[TaskCell]) -> list[TaskCell]:
    """One cell of each task and data set."""
    first: dict[tuple[str, str], TaskCell] = {}
    for cell in cells:
        first.setdefault(cell.place, cell)
    return list(first.values())


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _table(table: Table, cell: TaskCell, num_seeds: int) -> tuple[list[str], list[list[str]]]:
    """Headings and rows."""
    distance = column(cell.metric)
    columns: dict[str, tuple[str, tuple[int, float, bool]]] = {
        "UNet time saved (%)": (TIME_SAVED, (1, PERCENT, False)),
        f"time of a {cell.item} saved (%)": (ITEM_TIME_SAVED, (1, PERCENT, False)),
        "operators removed": (OPERATORS, (0, 1, False)),
        "parameters removed (%)": (PARAMS_REMOVED, (1, PERCENT, False)),
        f"{cell.metric} ↓": (cell.metric, (distance.decimals, 1, False)),
    }
    for other in cell.references:
        columns[f"change to {other} (%)"] = (f"change_to_{other}", (1, PERCENT, True))
    if table.has(AGREEMENT):
        columns["prompt agreement (%) ↑"] = (AGREEMENT, (1, PERCENT, False))
    rows = [
        [model, *(_of_fewer(table.of(model, key), num_seeds, *how) for key, how in columns.values())]
        for model in cell.rows
    ]
    return ["model", *columns], rows


def _of_fewer(moments: Moments, num_seeds: int, decimals: int, scale: float, signed: bool) -> str:
    """`12.3 ± 0.4 (n = 2)`: how many seeds it is of, where it is not of all."""
    fewer = f" (n = {moments.n})" if 0 < moments.n < num_seeds else ""
    return _cell(moments, decimals, scale, signed) + fewer


def _cell(moments: Moments, decimals: int, scale: float, signed: bool) -> str:
    """`12.3 ± 0.4`; a count has a decimal only where seeds differ in it."""
    mean, std = moments.mean * scale, moments.std * scale
    if math.isnan(mean):
        return DASH
    if decimals == 0 and std > 0:
        decimals = 1
    shown = number(mean, decimals, signed)
    return shown if math.isnan(std) else f"{shown} {PLUS_MINUS} {number(std, decimals)}"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, [":--", *["--:"] * (len(headings) - 1)], *rows]
    return "".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |\n" for line in lines)


def verdicts(table: Table, values: pd.DataFrame, cell: TaskCell) -> list[str]:
    """Whether each distilled model is worse than the dense one and the one trained as long.

    A change is one where its mean over seeds exceeds its standard deviation over seeds. Distances are
    compared by their relative change, as each seed may have features of its own.
    """
    kinds = [("change_to", cell.metric, 1.0, " %")]
    if table.has(AGREEMENT):
        kinds.append(("agreement_difference_to", "prompt agreement", -1.0, " points"))
    lines = []
    for model in cell.distilled:
        saved = table.of(model, TIME_SAVED).mean * PERCENT
        for kind, name, sign, unit in kinds:
            parts = []
            for other in cell.references:
                found = table.of(model, f"{kind}_{other}")
                if found.n:
                    shown = _cell(found, 1, PERCENT, True)
                    said = f"{verdict(sign * found.mean, found.std)} {other}"
                    parts.append(
                        f"{said} ({shown}{unit}{_one_seed(found, values, cell, model, other, kind)})"
                    )
            if parts:
                lines.append(f"{model}, {number(saved, 1)} % less UNet time, by {name}: {'; '.join(parts)}.")
    return lines


def _vocoded(table: Table, cell: TaskCell) -> list[str]:
    """What real sounds lose on the way that made ones go."""
    found = table.of(REAL_ROW, f"{cell.metric}{VOCODED}")
    if not found.n:
        return []
    shown = _cell(found, column(cell.metric).decimals, 1.0, False)
    return [f"{REAL_ROW} after Griffin-Lim, as made sounds are measured: {cell.metric} {shown}."]


def verdict(mean: float, std: float) -> str:
    """A paired difference (positive is worse) in words, at one standard deviation over seeds."""
    if math.isnan(mean):
        return "no verdict against"
    if math.isnan(std):
        return "one seed, no verdict against"
    if abs(mean) <= std:
        return "not told apart from"
    return "worse than" if mean > 0 else "better than"


def _one_seed(found: Moments, values: pd.DataFrame, cell: TaskCell, model: str, other: str, kind: str) -> str:
    """The difference and its standard error within the seed, where there is but one."""
    if found.n > 1 or kind != "change_to":
        return ""
    inside = (values[PLACE] == list(cell.place)).all(axis=1) & (values["model"] == model)
    name, decimals = f"difference_to_{other}", column(cell.metric).decimals
    shown = []
    for key, signed in ((name, True), (f"{name}_se", False)):
        one = values.loc[inside & (values["metric"] == key), "value"]
        shown += [number(float(one.iloc[0]), decimals, signed)] if len(one) else []
    return f"; difference {shown[0]}, standard error {shown[1]}" if len(shown) > 1 else ""


def _published() -> str:
    text = (
        "## LD-Pruner's own figures\n\n"
        "Of other models, other data and other metrics (FID, FAD) than those above, which have distances of "
        "their own names: no number here can be set against one there; what compares is the direction.\n\n"
    )
    headings = ("task", "model", "saved", "quality")
    return text + _markdown(headings, [list(row) for row in PUBLISHED])
