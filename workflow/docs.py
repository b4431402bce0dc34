"""Tables and figures of README and docs, from results/: ``python -m workflow.docs`` writes the tables anew.

A table stands between ``<!-- table: NAME key=value ... -->`` and ``<!-- end -->``. A number of the text may
be followed by ``<!-- FILE COLUMN key=value ... -->``: what that row of ``results/FILE.csv`` has in COLUMN, of
a mean with its deviation in the columns that begin so. Both are checked by a test.
"""

import itertools
import math
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from pelap.core import files
from pelap.report import verdicts
from pelap.report.tables import MINUS, PLUS_MINUS, markdown, number

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLE = re.compile(r"(<!-- table: (\w+)((?: \S+=\S+)*) -->\n).*?(<!-- end -->)", re.DOTALL)
NUMBER = re.compile(
    "([+\N{MINUS SIGN}]"
    r"?\d[\d,]*(?:\.\d+)?)(?: ± (\d[\d,]*(?:\.\d+)?))?( %)?<!-- (\S+/\S+) (\S+)((?: \S+=\S+)*) -->"
)
NAMES = {
    "knapsack": "the score, as a knapsack of measured milliseconds",
    "ld-pruner": "LD-Pruner's score, lowest first",
    "per-ms": "the score per millisecond",
    "greedy": "the score, in rounds",
    "greedy-knapsack": "the same as a knapsack",
    "taylor": "Taylor's estimate, lowest first",
    "output-error": "error of single steps",
    "similarity": "block similarity",
    "random": "random",
    "magnitude": "weight magnitude",
}
MASK_COLUMNS = {
    "mean_mask": ("mean mask", 3),
    "active_channels": ("active", 1),
    "unet_input_std": ("UNet input std", 3),
    "diffusion_loss": ("noise loss", 3),
    "gaussian_floor": ("Gaussian floor", 4),
    "recon_mse": ("recon. from z", 0),
    "masked_recon_mse": ("from z·m", 0),
    "fd_effnet_lite0": ("Fréchet distance", 0),
}


def up_to_date(page: Path) -> str:
    """A page with its tables made anew."""
    return TABLE.sub(_table, page.read_text(encoding="utf-8"))


def wrong_numbers(page: Path) -> Iterator[str]:
    """The marked numbers of a page that are not those of their files, and marks that stand behind none."""
    text_of_page = page.read_text(encoding="utf-8")
    read = {match.start(): match for match in NUMBER.finditer(text_of_page)}
    marks = len(re.findall("<!-- (?!end )", TABLE.sub("", text_of_page)))
    if marks != len(read):
        yield f"{page.name}: {marks - len(read)} marks are behind no number, or of a table without an end"
    for match in read.values():
        text, spread, percent, file, column, keys = match.groups()
        row, scale = _row(file, _options(keys)), 100 if percent else 1
        names = [(f"{column}_mean", f"{column}_std"), (column, f"{column}_std"), ("mean", "std")]
        mean, std = next(pair for pair in names if {*pair} <= {*row.index}) if spread else (column, "")
        for shown, name in ((text, mean), (spread, std)):
            if shown is not None and not _is_rounded(shown, scale * float(row[name])):
                yield f"{page.name}: {shown} is {scale * float(row[name]):.6g} in {file}.csv, {name}{keys}"


def _is_rounded(text: str, value: float) -> bool:
    decimals = len(text.partition(".")[2])
    return math.isclose(
        float(text.replace(MINUS, "-").replace(",", "")), round(value, decimals), abs_tol=1e-9
    )


def _options(text: str) -> dict[str, Any]:
    return dict(word.split("=", 1) for word in text.split())


@cache
def _read(file: str) -> Any:  # a frame, whose cells are of many types
    return files.read_csv(ROOT / "results" / f"{file}.csv")


def _row(file: str, keys: dict[str, str]) -> "pd.Series[Any]":
    table = _read(file)
    for name, value in keys.items():
        column = table[name]
        table = table[column == (float(value) if pd.api.types.is_numeric_dtype(column) else value)]
    if len(table) != 1:
        raise ValueError(f"results/{file}.csv: {len(table)} rows have {keys}")
    found: pd.Series[Any] = table.iloc[0]
    return found


def _table(match: re.Match[str]) -> str:
    head, name, options, end = match.groups()
    return f"{head}{TABLES[name](**_options(options))}{end}"


def _pm(mean: float, std: float, decimals: int = 1, signed: bool = True) -> str:
    if math.isnan(mean):
        return ""
    return f"{number(mean, decimals, signed)} {PLUS_MINUS} {number(std, decimals)}"


def _judged(row: Any) -> str:
    """`+1.5 [-5.9, +8.9], not told apart`."""
    if math.isnan(row.lost_after_mean):
        return ""
    low, high = (number(each, 1, signed=True) for each in (row.lost_after_low, row.lost_after_high))
    return f"{number(row.lost_after_mean, 1, signed=True)} [{low}, {high}], {row.verdict}"


def choosing_ways(amount: str, methods: str) -> str:
    """What the methods lose after fine-tuning, a column a data set."""
    table = _read("choosing/methods")
    table = table[table["amount"] == float(amount)].set_index(["method", "dataset"])
    datasets = sorted({dataset for _, dataset in table.index}, reverse=True)
    rows = [
        [NAMES[name], *(_judged(table.loc[name, dataset]) for dataset in datasets)]
        for name in methods.split(",")
    ]
    return markdown(["way", *datasets], rows)


def choosing_at(dataset: str, amount: str) -> str:
    """Every method of a data set at one amount, the least lost first."""
    table = _read("choosing/methods")
    table = table[(table["dataset"] == dataset) & (table["amount"] == float(amount))]
    rows = [
        [
            f"`{row.method}`",
            _pm(100 * row.time_reduction_mean, 100 * row.time_reduction_std, signed=False),
            _pm(row.lost_before_mean, row.lost_before_std),
            _pm(row.lost_after_mean, row.lost_after_std),
            _judged(row).partition(" ")[2],
            _pm(row.vs_random_tuned, row.vs_random_tuned_std),
            _pm(row.vs_curve, row.vs_curve_std),
        ]
        for row in table.sort_values(["lost_after_mean", "lost_before_mean"]).itertuples()
    ]
    headings = ("saved (%)", "lost before", "lost after", "95 % interval, verdict", "after, less `random`")
    return markdown([dataset, *headings, "before, less one-shot at the same time"], rows)


def choosing_reach(dataset: str) -> str:
    """Methods with several amounts, and what saves time without pruning."""
    methods, rivals = (_read(f"choosing/{name}") for name in ("methods", "rivals"))
    own = methods[methods["dataset"] == dataset]
    own = own[own.groupby("method")["amount"].transform("nunique") > 1]
    rows = [
        [
            f"`{row.method}`, {row.amount:g} % asked",
            _pm(100 * row.time_reduction_mean, 100 * row.time_reduction_std, signed=False),
            _pm(row.lost_before_mean, row.lost_before_std),
            _judged(row),
        ]
        for row in own.itertuples()
    ]
    for row in rivals[(rivals["dataset"] == dataset) & (rivals["fd_less_full_mean"] != 0)].itertuples():
        saved = _pm(100 * row.time_saved_mean, 100 * row.time_saved_std, signed=False)
        lost = (
            _pm(row.fd_less_full_mean, row.fd_less_full_std),
            _pm(row.fd_less_control_mean, row.fd_less_control_std),
        )
        rows.append(
            [
                f"`{row.model}`, {row.steps:g} steps",
                f"{saved} of a picture",
                f"{lost[0]} (less itself)",
                lost[1],
            ]
        )
    return markdown([dataset, "time saved (%)", "lost before", "lost after [95 % interval], verdict"], rows)


def additivity() -> str:
    """Joint scores in units of sums."""
    rows = [
        [
            row["dataset"] + (", all" if math.isnan(row["amount"]) else f", {row['amount']:g} % asked"),
            row["n"],
            *(
                f"{row[f'joint_over_{kind}_median']:.2f} "
                f"({row[f'joint_over_{kind}_q1']:.2f} to {row[f'joint_over_{kind}_q3']:.2f})"
                for kind in ("sum", "norm")
            ),
            *(number(row[f"rho_{kind}"], 2) for kind in ("sum", "norm")),
        ]
        for row in _read("choosing/additivity").to_dict("records")
    ]
    joint = ("joint / sum: median (quartiles)", "joint / root of squares: median (quartiles)")
    return markdown(["", "plans", *joint, "Spearman with sum", "with root"], rows)


def prediction(of: str) -> str:
    """Rank correlations, of plans within a seed or of single operators."""
    table = _read("choosing/prediction")
    table = table[table["of"] == of.replace("_", " ")]
    targets = ["lost_before", "lost_after"] if of != "operators" else ["lost_before"]
    places = [(dataset, target) for dataset in ("photos", "cifar10-jpeg") for target in targets]
    rows = []
    for predictor, own in table.groupby("predictor", sort=False):
        found = own.set_index(["dataset", "target"])
        cells = [found.loc[place] if place in found.index else None for place in places]
        shown = (
            ""
            if each is None
            else number(each.rho, 2)
            if of == "operators"
            else _pm(each.rho, each.rho_std, 2, False)
            for each in cells
        )
        rows.append([f"`{predictor}`", *shown])
    return markdown([of.replace("_", " "), *(f"{dataset}, {target[5:]}" for dataset, target in places)], rows)


def pruning(dataset: str) -> str:
    """The pruning study: distances beside those of the dense network trained as long."""
    table = _read("pruning_study/summary")
    table = table[table["dataset"] == dataset].set_index(["model", "metric"])
    rows, control = [], "dense-finetuned"
    for model in dict.fromkeys(name for name, _ in table.index):
        own = table.loc[model, "fd_effnet_lite0"]
        said = own[f"verdict_to_{control}"] if isinstance(own[f"verdict_to_{control}"], str) else ""
        less = "" if model == "real" else _pm(own[f"diff_to_{control}"], own[f"diff_to_{control}_std"])
        time = table["mean"].get((model, "latency_ms"))
        saved = (
            "" if time is None else number(100 * (time / table["mean"]["dense", "latency_ms"] - 1), 1, True)
        )
        recovered = table.loc[model, "recovered"] if (model, "recovered") in table.index else None
        share = (
            "" if recovered is None else f"{number(100 * recovered['mean'], 0)} ({recovered['n']:.0f} seeds)"
        )
        distance = _pm(own["mean"], own["std"], signed=False)
        against = ["0", ""] if model == control else [less, said]
        rows.append([model, saved, distance, *against, share])
    headings = ("UNet time (%)", "`fd_effnet_lite0`", f"less that of `{control}`", "verdict", "recovered (%)")
    return markdown([dataset, *headings], rows)


def collapse(dataset: str) -> str:
    """The controls of the collapse study."""
    table = _read("collapse_study/summary")
    table = table[table["dataset"] == dataset].set_index(["control", "metric"])
    rows = [
        [
            control,
            *(
                _pm(table.loc[control, key]["mean"], table.loc[control, key]["std"], decimals, False)
                if (control, key) in table.index
                else ""
                for key, (_, decimals) in MASK_COLUMNS.items()
            ),
        ]
        for control in dict.fromkeys(name for name, _ in table.index)
    ]
    return markdown(["control", *(title for title, _ in MASK_COLUMNS.values())], rows)


def tasks(task: str) -> str:
    """A table of results/tasks/tasks.md."""
    text = (ROOT / "results" / "tasks" / "tasks.md").read_text(encoding="utf-8")
    section = text.partition(f"## {task}:")[2].partition("\n## ")[0]
    return "".join(f"{line}\n" for line in section.splitlines() if line.startswith("|"))


def default_run() -> str:
    """The main columns of the default run's table."""
    text = (ROOT / "results" / "default" / "report" / "overview.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    shown = ("model", "Fréchet", "recovered", "UNet time", "time change", "time per", "parameters")
    places = [next(i for i, name in enumerate(rows[0]) if name.startswith(start)) for start in shown]
    return markdown([rows[0][i] for i in places], [[row[i] for i in places] for row in rows[2:]])


def claims() -> str:
    """What README says of seeds, each with its interval, verdict and command."""
    rows: list[list[object]] = []
    datasets = ("photos", "cifar10-jpeg")
    for dataset, method in itertools.product(datasets, ("knapsack", "ld-pruner", "magnitude")):
        row = _row("choosing/methods", {"dataset": dataset, "method": method, "amount": "35"})
        interval = _interval(row["lost_after_mean"], row["lost_after_std"], row["n_after"])
        what = f"35 % less time, `{method}`, {dataset}: distance above the dense model trained as long"
        rows.append([what, int(row["n_after"]), interval, row["verdict"], "choosing"])
    for dataset, model in itertools.product(datasets, ("pruned-35", "distilled-35", "scratch-35")):
        keys = {"dataset": dataset, "model": model, "metric": "fd_effnet_lite0"}
        row = _row("pruning_study/summary", keys)
        mean, std = row["diff_to_dense-finetuned"], row["diff_to_dense-finetuned_std"]
        interval, word = _interval(mean, std, row["n"]), row["verdict_to_dense-finetuned"]
        rows.append([f"{model}, {dataset}: the same", row["n"], interval, word, "pruning_study"])
    cells = _read("tasks/cells")
    for task in ("image", "text", "audio"):
        own = cells[(cells["task"] == task) & (cells["metric"] == "change_to_dense")]
        family = {model: 100 * each for model, each in own.groupby("model", sort=False)["value"]}
        word = dict(zip(family, verdicts.over_seeds(family.values())["verdict"], strict=True))["distilled-35"]
        seeds = family["distilled-35"]
        interval = _interval(seeds.mean(), seeds.std(), len(seeds))
        what = f"{task}, distilled-35: change of the distance against the dense model (%)"
        rows.append([what, len(seeds), interval, word, "all_tasks"])
    for (penalty, control), dataset in itertools.product(
        (("0", "pelap-0"), ("0.01", "pelap-1e-2")), datasets
    ):
        row = _row("collapse_study/summary", {"control": control, "dataset": dataset, "metric": "mean_mask"})
        interval = _interval(row["mean"], row["std"], row["n"], 3)
        rows.append([f"mean mask at lambda {penalty}, {dataset}", row["n"], interval, "", "collapse_study"])
    headings = ["claim", "seeds", "mean [95 % interval]", "verdict", "`snakemake --cores 4 ...`"]
    return markdown(headings, rows, left=(0, 4))


def _interval(mean: float, std: float, n: int, decimals: int = 1) -> str:
    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    low, high, middle = (number(each, decimals, signed=True) for each in (mean - half, mean + half, mean))
    return f"{middle} [{low}, {high}]"


TABLES = {
    each.__name__: each
    for each in (
        claims,
        default_run,
        choosing_ways,
        choosing_at,
        choosing_reach,
        additivity,
        prediction,
        pruning,
        collapse,
        tasks,
    )
}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(up_to_date(page), encoding="utf-8")
    sys.exit("\n".join(problem for page in PAGES for problem in wrong_numbers(page)))
