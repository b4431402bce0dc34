"""What the pages' tables are made of: rows of results/, and how numbers are written."""

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

from pelap.core import files
from pelap.report.tables import PLUS_MINUS, number
from workflow.studies.tasks.page import judged, margins_of_tasks

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
DATASETS = ("photos", "cifar10-jpeg")
TASKS = {"image": "photos", "text": "photos", "audio": "sounds"}
CONTROL, DISTANCE = "dense-finetuned", "fd_effnet_lite0"


@cache
def read(file: str) -> Any:  # a frame, whose cells are of many types
    """``results/FILE.csv``."""
    return files.read_csv(RESULTS / f"{file}.csv")


def row_of(file: str, **keys: str) -> "pd.Series[Any]":
    """Its one row that has these values in these columns.

    Raises:
        ValueError: None has, or several have.
    """
    table = read(file)
    for name, value in keys.items():
        column = table[name]
        table = table[column == (float(value) if pd.api.types.is_numeric_dtype(column) else value)]
    if len(table) != 1:
        raise ValueError(f"results/{file}.csv: {len(table)} rows have {keys}")
    found: pd.Series[Any] = table.iloc[0]
    return found


def spread(mean: float, std: float, decimals: int = 1, signed: bool = True) -> str:
    """`+1.5 ± 3.0`; of a single seed `+1.5`, nothing where there is no mean."""
    if math.isnan(mean):
        return ""
    shown = number(mean, decimals, signed)
    return shown if math.isnan(std) else f"{shown} {PLUS_MINUS} {number(std, decimals)}"


class Found(NamedTuple):
    """What a study found of a mean over seeds: its 95 % interval, and what the one rule says if it does."""

    mean: float
    low: float
    high: float
    n: float
    verdict: Any = None

    def interval(self, decimals: int = 1) -> str:
        """`+1.5 [-5.9, +8.9]`; of a single seed `+1.5`, nothing where there is no mean."""
        if math.isnan(self.mean):
            return ""
        middle, low, high = (number(each, decimals, signed=True) for each in self[:3])
        return middle if math.isnan(self.low) else f"{middle} [{low}, {high}]"

    def told(self) -> str:
        """`+1.5 [-5.9, +8.9], not told apart`."""
        interval = self.interval()
        return f"{interval}, {self.verdict}" if interval and isinstance(self.verdict, str) else interval


NOTHING = Found(math.nan, math.nan, math.nan, 0)


def of_seeds(mean: float, std: float, n: float) -> Found:
    """By mean and standard deviation over seeds: Student's interval."""
    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Found(mean, mean - half, mean + half, n)


def of_method(row: Any) -> Found:
    """What a row of choosing/methods lost after fine-tuning."""
    return Found(row.lost_after_mean, row.lost_after_low, row.lost_after_high, row.n_after, row.verdict)


def of_model(dataset: str, model: str, study: str = "pruning_study") -> Found:
    """The distance of a model of a study less that of the dense one trained as long."""
    row = row_of(f"{study}/summary", dataset=dataset, model=model, metric=DISTANCE)
    head = f"diff_to_{CONTROL}"
    mean, low, high, n = row[[head, *(f"{head}_{end}" for end in ("low", "high", "n"))]]
    return Found(mean, low, high, n, row[f"verdict_to_{CONTROL}"])


def of_task(task: str, model: str, key: str) -> Found:
    """A relative change, or a difference of shares, of a model of a task, in %; see `judged`."""
    values = read("tasks/cells")
    own = values[(values["task"] == task) & (values["dataset"] == TASKS[task])]
    table = judged(own, key, margins_of_tasks(values).get((task, TASKS[task])))
    if model not in table.index:
        return NOTHING
    row: Any = table.loc[model]
    return Found(100 * row.difference, 100 * row.low, 100 * row.high, row.n, row.verdict)
