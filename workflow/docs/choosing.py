"""Tables of docs/choosing.md, and the one that README begins with."""

import itertools
import math
from typing import Any

from pelap.report.tables import SURE, markdown, number
from pelap.report.verdicts import NO_VERDICT
from workflow.docs.results import DATASETS, Found, of_method, read, row_of, spread
from workflow.studies.margins import seeds_needed

METHODS = "choosing/methods"
_MILLION = 1e6
NAMES = {
    "knapsack": "the score, as a knapsack of measured milliseconds",
    "ld-pruner": "LD-Pruner's score, lowest first",
    "per-ms": "the score per millisecond",
    "greedy": "the score, in rounds",
    "greedy-knapsack": "the same as a knapsack",
    "taylor": "Taylor's estimate, lowest first",
    "output-error": "error of single steps",
    "debiased": "LD-Pruner's score without what chance adds, lowest first",
    "knapsack-debiased": "the same, as a knapsack of measured milliseconds",
    "similarity": "block similarity",
    "random": "random",
    "magnitude": "weight magnitude",
}


def lead(method: str, amount: str) -> str:
    """What one way to choose gave at one amount, a column a data set."""
    columns = []
    for dataset in DATASETS:
        row = row_of(METHODS, dataset=dataset, method=method, amount=amount)
        dense = row_of("pruning_study/summary", dataset=dataset, model="dense", metric="params")["mean"]
        size, deviation = row["params_after_mean"] / _MILLION, row["params_after_std"] / _MILLION
        columns.append([
            spread(100 * row["time_reduction_mean"], 100 * row["time_reduction_std"], signed=False),
            f"{number(dense / _MILLION, 2)} → {spread(size, deviation, 2, signed=False)}",
            of_method(row).told(),
            f"{row['n_after']:.0f}",
        ])  # fmt: skip
    names = (
        "UNet time saved, measured (%)",
        "UNet parameters (million)",
        "Fréchet distance above the dense model trained equally long [95 % interval], verdict",
        "seeds",
    )
    return markdown(["", *DATASETS], zip(names, *columns, strict=True))


def choosing_ways(amount: str, methods: str) -> str:
    """What the methods lose after fine-tuning, a column a data set."""
    table = read(METHODS)
    table = table[table["amount"] == float(amount)].set_index(["method", "dataset"])
    rows = []
    for name in methods.split(","):
        found = [table.loc[name, dataset] for dataset in DATASETS]
        seeds = ", ".join(dict.fromkeys(f"{each.n_after:.0f}" for each in found))
        rows.append([NAMES[name], *(of_method(each).told() for each in found), seeds])
    return markdown(["way", *DATASETS, "seeds"], rows)


def choosing_seeds(amount: str, methods: str) -> str:
    """How many seeds it takes to call methods equivalent to the control; see `seeds_needed`."""
    table = read(METHODS)
    table = table[table["amount"] == float(amount)]
    rows = []
    for dataset, name in itertools.product(DATASETS, methods.split(",")):
        family = table[(table["dataset"] == dataset) & (table["n_after"] > 0)]
        (row,) = family[family["method"] == name].itertuples()
        sizes = (1, len(family))
        needed = [
            seeds_needed(row.lost_after_mean, row.lost_after_std, row.margin, size) or "none will do"
            for size in sizes
        ]
        rows.append([f"`{name}`, {dataset}", number(row.margin, 1), f"{row.n_after:.0f}", *needed])
    headings = ("margin", "seeds there are", "needed by itself", "as the clearest of its family")
    return markdown(["way", *headings], rows)


def choosing_at(dataset: str, amount: str) -> str:
    """Every method of a data set at one amount, the least lost first."""
    table = read(METHODS)
    table = table[(table["dataset"] == dataset) & (table["amount"] == float(amount))]
    rows = [
        [
            f"`{row.method}`",
            spread(100 * row.time_reduction_mean, 100 * row.time_reduction_std, signed=False),
            spread(row.lost_before_mean, row.lost_before_std),
            spread(row.lost_after_mean, row.lost_after_std),
            of_method(row).told().partition(" ")[2],
            f"{row.n_after or row.n:.0f}",
            *(_against(row, name) for name in ("vs_random_tuned", "vs_magnitude_tuned", "vs_curve")),
        ]
        for row in table.sort_values(["lost_after_mean", "lost_before_mean"]).itertuples()
    ]
    headings = ("saved (%)", "lost before", "lost after", "95 % interval, verdict", "seeds")
    against = ("after, less `random`", "after, less `magnitude`", "before, less one-shot at the same time")
    return markdown([dataset, *headings, *against], rows)


def _against(row: Any, name: str) -> str:
    """Difference to another method, and the verdict on it where there is one."""
    verdict = getattr(row, f"{name}_verdict")
    found = spread(getattr(row, name), getattr(row, f"{name}_std"))
    return found if verdict == NO_VERDICT else f"{found}, {verdict}"


def choosing_reach(dataset: str) -> str:
    """Methods with several amounts, and what saves time without pruning."""
    methods, rivals = (read(f"choosing/{name}") for name in ("methods", "rivals"))
    own = methods[methods["dataset"] == dataset]
    own = own[own.groupby("method")["amount"].transform("nunique") > 1]
    rows = [
        [
            f"`{row.method}`, {row.amount:g} % asked",
            spread(100 * row.time_reduction_mean, 100 * row.time_reduction_std, signed=False),
            spread(row.lost_before_mean, row.lost_before_std),
            of_method(row).told(),
        ]
        for row in own.itertuples()
    ]
    for row in rivals[(rivals["dataset"] == dataset) & (rivals["fd_less_full_mean"] != 0)].itertuples():
        saved = spread(100 * row.time_saved_mean, 100 * row.time_saved_std, signed=False)
        lost = (
            spread(row.fd_less_full_mean, row.fd_less_full_std),
            spread(row.fd_less_control_mean, row.fd_less_control_std),
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
        for row in read("choosing/additivity").to_dict("records")
    ]
    joint = ("joint / sum: median (quartiles)", "joint / root of squares: median (quartiles)")
    return markdown(["", "plans", *joint, "Spearman with sum", "with root"], rows)


def debiased() -> str:
    """What choosing by debiased scores changed."""
    rows = [
        [
            f"`{row.method}`, {row.dataset}",
            f"{row.n}",
            spread(row.rho_mean, row.rho_std, 3, signed=False),
            spread(100 * row.common_mean, 100 * row.common_std, 0, signed=False),
            Found(row.difference, row.low, row.high, row.n, row.verdict).told(),
        ]
        for row in read("choosing/debiased").itertuples()
    ]
    headings = ("networks", "Spearman, all operators", "operators in both plans (%)", "lost after, more")
    return markdown(["by debiased scores instead", *headings], rows)


def prediction(of: str) -> str:
    """Rank correlations of plans, within a seed."""
    table = read("choosing/prediction")
    table = table[table["of"] == of]
    places = list(itertools.product(DATASETS, ("lost_before", "lost_after")))
    rows = []
    for predictor, own in table.groupby("predictor", sort=False):
        found = own.set_index(["dataset", "target"])
        cells = (found.loc[place] if place in found.index else None for place in places)
        shown = ("" if each is None else spread(each.rho, each.rho_std, 2, False) for each in cells)
        rows.append([f"`{predictor}`", *shown])
    return markdown([of, *(f"{dataset}, {target[5:]}" for dataset, target in places)], rows)


def prediction_of_operators() -> str:
    """Rank correlations of single operators, of all seeds together, with the loss and with its two parts.

    Source of the intervals: Bonett and Wright, 2000, https://doi.org/10.1007/BF02294183
    """
    table = read("choosing/prediction")
    table = table[table["of"] == "operators"].set_index(["predictor", "dataset", "target"])
    rows = []
    for predictor in dict.fromkeys(table.index.get_level_values(0)):
        places = [(predictor, dataset, "lost_before") for dataset in DATASETS]
        own = [table.loc[place] if place in table.index else None for place in places]
        shown = ("" if each is None else _correlation(each.rho, each.n) for each in own)
        rows.append([f"`{predictor}`", *shown])
    return markdown(["operators", *(f"{dataset}, before" for dataset in DATASETS)], rows)


def _correlation(rho: float, n: float) -> str:
    """`0.64 [0.04, 0.90], 12 operators`; no interval where there are too few, or the order is the same."""
    if n <= 3 or abs(rho) == 1:
        return f"{number(rho, 2)}, {n:.0f} operators"
    half = SURE * math.sqrt((1 + rho**2 / 2) / (n - 3))
    low, high = (number(math.tanh(math.atanh(rho) + side), 2) for side in (-half, half))
    return f"{number(rho, 2)} [{low}, {high}], {n:.0f} operators"


TABLES = (
    *(additivity, debiased, choosing_at, choosing_reach, choosing_seeds, choosing_ways),
    *(lead, prediction, prediction_of_operators),
)
