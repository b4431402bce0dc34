"""Tables of the other studies, and those of several."""

from collections.abc import Iterator
from itertools import product

from pelap.core import files
from pelap.distillation.objective import TERMS
from pelap.report import verdicts
from pelap.report.tables import markdown, number
from workflow.docs.results import (
    CONTROL,
    DATASETS,
    DISTANCE,
    NOTHING,
    RESULTS,
    TASKS,
    Found,
    of_method,
    of_model,
    of_seeds,
    of_task,
    read,
    row_of,
    spread,
)
from workflow.studies.paper.page import PAPER_FIGURES
from workflow.studies.seeds.summarise import LOST_BY_STEPS
from workflow.studies.tasks.cell import HALF_STEPS

MASK_COLUMNS = {
    "mean_mask": ("mean mask", 3),
    "active_channels": ("active", 1),
    "unet_input_std": ("UNet input std", 3),
    "diffusion_loss": ("noise loss", 3),
    "gaussian_floor": ("Gaussian floor", 4),
    "recon_mse": ("recon. from z", 0),
    "masked_recon_mse": ("from z·m", 0),
    DISTANCE: ("Fréchet distance", 0),
}
COLLAPSE_PAIRS = (
    ("invariant-topk", "unit-variance-4", "masked_recon_mse"),
    ("invariant-topk", "unit-variance-4", DISTANCE),
    ("invariant-topk", "unit-variance", "masked_recon_mse"),
    ("invariant-hc-1e-1", "unit-variance", "masked_recon_mse"),
    ("invariant-hc-5e-2", "unit-variance", "masked_recon_mse"),
    ("invariant-hc-3e-2", "unit-variance", "masked_recon_mse"),
)
"""Of the collapse study, what docs/collapse.md compares: one control less another, and by what."""
PAPER_ROWS = {
    "diffusion_loss": ("noise loss", 4),
    "recon_mse": ("reconstruction from z, summed squared error", 2),
    "mean_mask": ("mean mask", 7),
    "unet_input_std": ("standard deviation of the UNet's input (noise: 1)", 5),
    "zero_latent_floor": ("least noise loss of this UNet at z = 0", 4),
    "masked_recon_mse": ("reconstruction from z·m, which the UNet is trained on", 2),
}


def pruning(dataset: str) -> str:
    """The pruning study: distances beside those of the dense network trained as long."""
    table = read("pruning_study/summary")
    table = table[table["dataset"] == dataset].set_index(["model", "metric"])
    rows = []
    for model in dict.fromkeys(name for name, _ in table.index):
        own = table.loc[model, DISTANCE]
        recovered = table.loc[model, "recovered"] if (model, "recovered") in table.index else None
        distance = spread(own["mean"], own["std"], signed=False)
        share = "" if recovered is None else number(100 * recovered["mean"], 0)
        share += "" if recovered is None else f" ({recovered['n']:.0f} of {own['n']:.0f} seeds)"
        less = "0" if model == CONTROL else "" if model == "real" else of_model(dataset, model).told()
        rows.append([model, _time(dataset, model), distance, less, share])
    headings = (f"`{DISTANCE}`", f"less that of `{CONTROL}` [95 % interval], verdict", "recovered (%)")
    return markdown([dataset, "UNet time (%)", *headings], rows)


def distillation(amount: str) -> str:
    """What pruning cost at one amount, and what distillation brought back, a column a data set."""
    models = {
        f"pruned-{amount}": "pruned",
        f"distilled-{amount}": "distilled",
        f"scratch-{amount}": "the same network from scratch",
        "dense": "the dense model without further training",
    }
    times = [_time(name, f"distilled-{amount}") for name in DATASETS]
    rows = [[f"UNet time of `distilled-{amount}` (%)", *times]]
    rows += [[said, *(of_model(name, model).told() for name in DATASETS)] for model, said in models.items()]
    return markdown(["", *DATASETS], rows)


def _time(dataset: str, model: str) -> str:
    """Change of the UNet's time against the dense model's in %, of means over seeds."""
    table = read("pruning_study/summary")
    times = table[(table["dataset"] == dataset) & (table["metric"] == "latency_ms")].set_index("model")[
        "mean"
    ]
    return number(100 * (times[model] / times["dense"] - 1), 1, signed=True) if model in times else ""


def terms() -> str:
    """What each term of distillation's loss is of the whole in %: least and largest of the seeds."""
    table = read("terms/shares")
    shares = [f"{term}_{kind}_share" for kind in ("loss", "gradient") for term in TERMS]
    rows = []
    for (student, step), own in table.groupby(["student", "step"], sort=False):
        ends = (own[name].agg(["min", "max"]) * 100 for name in shares)
        shown = (" to ".join(number(end, 1) for end in pair) if pair.notna().all() else "" for pair in ends)
        rows.append([f"`{student}`", f"{step}", *shown])
    headings = [f"{term}, {kind}" for kind in ("loss", "gradient") for term in TERMS]
    return markdown(["student", "step", *headings], rows)


def collapse(dataset: str) -> str:
    """The controls of the collapse study."""
    table = read("collapse_study/summary")
    table = table[table["dataset"] == dataset].set_index(["control", "metric"])
    rows = [
        [
            control,
            *(
                spread(table.loc[control, key]["mean"], table.loc[control, key]["std"], decimals, False)
                if (control, key) in table.index
                else ""
                for key, (_, decimals) in MASK_COLUMNS.items()
            ),
        ]
        for control in dict.fromkeys(name for name, _ in table.index)
    ]
    return markdown(["control", *(title for title, _ in MASK_COLUMNS.values())], rows)


def collapse_pairs() -> str:
    """Differences between controls, a column a data set, which is a family."""
    columns = []
    for dataset in DATASETS:
        cells = read("collapse_study/cells")
        own = cells[cells["dataset"] == dataset]
        seeds = own.pivot(index="seed", columns=["control", "metric"], values="value")
        families = [seeds[one, metric] - seeds[other, metric] for one, other, metric in COLLAPSE_PAIRS]
        table = verdicts.over_seeds(families)[["difference", "low", "high", "n", "verdict"]]
        columns.append([Found(*row).told() for row in table.itertuples(index=False)])
    names = [[f"`{one}` less `{other}`", MASK_COLUMNS[metric][0]] for one, other, metric in COLLAPSE_PAIRS]
    rows = [[*name, *cells] for name, *cells in zip(names, *columns, strict=True)]
    return markdown(["", "of", *DATASETS], rows, left=(0, 1))


def open_channels() -> str:
    """How many of 8 channels the hard concrete gates leave open at each penalty."""
    rows = []
    for weight in ("1e-2", "3e-2", "5e-2", "1e-1", "3e-1"):
        keys = {"control": f"invariant-hc-{weight}", "metric": "active_channels"}
        found = [row_of("collapse_study/summary", dataset=dataset, **keys) for dataset in DATASETS]
        rows.append([f"{float(weight):g}", *(spread(row["mean"], row["std"], signed=False) for row in found)])
    return markdown(["penalty", *(f"open of 8, {dataset}" for dataset in DATASETS)], rows)


def paper() -> str:
    """The paper's configuration on one seed beside the paper's own figures."""
    found = read("paper-h100/collapse").set_index("variant")
    rows = []
    for metric, (title, decimals) in PAPER_ROWS.items():
        row = [title]
        for model in ("baseline", "pelap"):
            here = number(found.loc[model, metric], decimals)
            here = here.rstrip("0").rstrip(".") if decimals > 4 else here
            row += [PAPER_FIGURES.get((model, metric), ""), here]
        rows.append(row)
    return markdown(["", "paper, `baseline`", "here", "paper, `pelap`", "here"], rows)


def tasks(task: str) -> str:
    """A table of results/tasks/tasks.md."""
    text = (RESULTS / "tasks" / "tasks.md").read_text(encoding="utf-8")
    section = text.partition(f"## {task}:")[2].partition("\n## ")[0]
    return "".join(f"{line}\n" for line in section.splitlines() if line.startswith("|"))


def tasks_found() -> str:
    """What pruning at 35 % cost in every task, against the dense model."""
    rows = [[f"{task}, {model}", *_task_cells(task, model)] for task, model in _task_models()]
    change = "change of the Fréchet distance (%) [95 % interval], verdict"
    return markdown(["", "UNet time saved (%)", change, "change of the prompt agreement (points)"], rows)


def _task_models() -> Iterator[tuple[str, str]]:
    for task in TASKS:
        yield from ((task, f"{name}-35") for name in ("pruned", "distilled"))
    yield "audio", "distilled-20"


def _task_cells(task: str, model: str) -> Iterator[str]:
    saved = row_of("tasks/tasks", task=task, model=model, metric="time_saved")
    yield spread(100 * saved["mean"], 100 * saved["std"], signed=False)
    for key in ("change_to_dense", "agreement_difference_to_dense"):
        yield of_task(task, model, key).told()


def default_run() -> str:
    """The main columns of the default run's table."""
    text = (RESULTS / "default" / "report" / "overview.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    shown = ("model", "Fréchet", "recovered", "UNet time", "time change", "time per", "parameters")
    places = [next(i for i, name in enumerate(rows[0]) if name.startswith(start)) for start in shown]
    return markdown([rows[0][i] for i in places], [[row[i] for i in places] for row in rows[2:]])


def demo() -> str:
    """What each stage of the default run takes and computes."""
    kept = files.read_json(RESULTS / "bench" / "demo.json")
    rows = [
        [stage, number(row["seconds"], 1), f"{row['gflop']:,}", number(row["gflop"] / row["seconds"], 0)]
        for stage, row in kept["stages"].items()
    ]
    total = {key: sum(row[key] for row in kept["stages"].values()) for key in ("seconds", "gflop")}
    rows.append(["all", number(total["seconds"], 1), f"{total['gflop']:,}", ""])
    where = f"{kept['device']}, {kept['precision']}"
    return markdown([where, "seconds", "GFLOP", "GFLOP/s"], rows)


def claims() -> str:
    """What README says of seeds, each with its interval, verdict and command."""
    rows = [
        [what, f"{found.n:.0f}", found.interval(decimals), found.verdict or "", command]
        for what, found, decimals, command in _claims()
    ]
    headings = ["claim", "seeds", "mean [95 % interval]", "verdict", "`snakemake --cores 4 ...`"]
    return markdown(headings, rows, left=(0, 4))


def _claims() -> Iterator[tuple[str, Found, int, str]]:
    above = "distance above the dense model trained as long"
    row = row_of("sweep/summary", dataset="digits", model="invariant", metric=DISTANCE)
    found = Found(*row[["diff_to_baseline", "diff_low", "diff_high", "diff_n", "verdict"]])
    yield "default run, invariant, digits: distance above the baseline", found, 1, "all_seeds"
    for model in ("pruned-35", "distilled-35", "scratch-35"):
        yield f"default run, {model}, digits: {above}", of_model("digits", model, "sweep"), 1, "all_seeds"
    choices = [*product(DATASETS, ("knapsack", "ld-pruner", "magnitude"), ("35",))]
    choices += [("cifar10-jpeg", method, "60") for method in ("ld-pruner", "greedy-knapsack")]
    for dataset, method, amount in choices:
        found = of_method(row_of("choosing/methods", dataset=dataset, method=method, amount=amount))
        yield f"{amount} % less time, `{method}`, {dataset}: {above}", found, 1, "choosing"
    for dataset in DATASETS:
        row = row_of("choosing/rivals", dataset=dataset, model="dense", steps="10")
        found = of_seeds(row["fd_less_control_mean"], row["fd_less_control_std"], row["n"])
        yield f"half of the steps, {dataset}: {above}", found, 1, "choosing"
    for dataset, model in product(DATASETS, ("pruned-35", "distilled-35", "scratch-35")):
        yield f"{model}, {dataset}: {above}", of_model(dataset, model), 1, "pruning_study"
    for task in TASKS:
        what = f"{task}, distilled-35: change of the distance against the dense model (%)"
        yield what, of_task(task, "distilled-35", "change_to_dense"), 1, "all_tasks"
    for (penalty, control), dataset in product((("0", "pelap-0"), ("0.01", "pelap-1e-2")), DATASETS):
        row = row_of("collapse_study/summary", dataset=dataset, control=control, metric="mean_mask")
        found = of_seeds(row["mean"], row["std"], row["n"])
        yield f"mean mask at lambda {penalty}, {dataset}", found, 3, "collapse_study"


def margins() -> str:
    """What half of the sampling steps cost the dense model, where a study measured it."""
    rows = [[study, dataset, *_shown(found)] for study, dataset, found in _margins()]
    return markdown(["study", "data set", "margin [95 % interval]", "seeds"], rows, left=(0, 1))


def _shown(found: Found) -> list[str]:
    return [found.interval(), f"{found.n:.0f}"] if found.mean > 0 else ["none", ""]


def _margins() -> Iterator[tuple[str, str, Found]]:
    half = {"model": "dense", "steps": "10"}
    for dataset in DATASETS:
        row = row_of("choosing/rivals", dataset=dataset, **half)
        yield "choosing", dataset, of_seeds(row["fd_less_full_mean"], row["fd_less_full_std"], row["n"])
    for dataset in DATASETS:
        row = row_of("pruning_study/budget", dataset=dataset, metric=LOST_BY_STEPS, **half)
        yield "pruning_study", dataset, of_seeds(row["mean"], row["std"], row["n"])
    tasks = read("tasks/tasks")
    for task in TASKS:
        own = tasks[(tasks["task"] == task) & (tasks["metric"] == HALF_STEPS)].to_dict("records")
        measured = [of_seeds(100 * row["mean"], 100 * row["std"], row["n"]) for row in own]
        yield "all_tasks", f"{task} (%)", next(iter(measured), NOTHING)
    yield "collapse_study", "both", NOTHING


TABLES = (
    *(claims, collapse, collapse_pairs, default_run, demo, distillation, margins),
    *(open_channels, paper, pruning, tasks, tasks_found, terms),
)
