"""Configuration, file names and functions of the rules. File names come from pelap.core.paths."""

import json
import os
import sys
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

from jsonschema import Draft202012Validator
from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from pelap.core import files
from pelap.config import load
from pelap.config.load import parse_params, read_yaml, select_keys
from pelap.datasets.locate import DATA_DIR_VARIABLE
from pelap.core.errors import PelapError
from pelap.core.keys import key
from pelap.core.paths import DOWNLOADS, ChoosingPaths, RunPaths, StudyPaths, SweepPaths, TasksPaths, packed_dataset
from pelap.datasets.inputs import inputs_of, seen_last

RESULTS = Path("results")
SUMMARY = SweepPaths(RESULTS / "{grid}")
STUDY = StudyPaths(RESULTS / "collapse_study")
CHOOSING = ChoosingPaths(RESULTS / "choosing")
TASKS = TasksPaths(RESULTS / "tasks")
CELL = RunPaths(RESULTS / "{grid}" / "{dataset}" / "seed{seed}")
MODEL = CELL.train("{variant}")
DATA = Path("data") / "{grid}"
"""Each grid has its own: their parameters may ask for other pictures."""
ARCHIVES = Path("data") / DOWNLOADS
os.environ.setdefault(DATA_DIR_VARIABLE, str(ARCHIVES))
SEEDED_DATASETS = ("photos", "sounds")
"""Data sets that differ from seed to seed; the others are packed once."""
CLUSTER_CORES = 8
"""Threads of a job that times itself, where no --cores is given; a profile's set-threads decides."""


def check_config():
    """Refuse a wrong grid in one line (`snakemake.utils.validate` takes a page)."""
    schema = read_yaml(Path(workflow.basedir) / "workflow" / "schemas" / "config.schema.yaml")
    problems = [
        f"{'.'.join(map(str, error.path)) or 'keys'}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(config)
    ]
    if problems:
        raise WorkflowError(f"workflow/config.yaml (or --config): {'; '.join(problems)}")


class Grid(NamedTuple):
    """Cells with one parameter file: data sets x seeds."""

    params: str
    datasets: list
    seeds: list


check_config()
GRIDS = {
    "sweep": Grid(config["params"], config["datasets"], config["seeds"]),
    "pruning_study": Grid(config["pruning_params"], config["pruning_datasets"], config["pruning_seeds"]),
    "choosing": Grid(config["choosing_params"], config["choosing_datasets"], config["choosing_seeds"]),
    "collapse_study": Grid(config["study_params"], config["study_datasets"], config["study_seeds"]),
    **{
        f"tasks/{name}": Grid(task["params"], [task["dataset"]], config["task_seeds"])
        for name, task in config["tasks"].items()
    },
}
PIPELINE = read_yaml(Path(workflow.basedir) / "dvc.yaml")["stages"]


wildcard_constraints:
    grid="|".join(GRIDS),  # a task's has a slash: results/tasks/<name>, data/tasks/<name>
    dataset="[a-z0-9][a-z0-9_-]*",
    seed=r"\d+",
    variant="[a-z0-9][a-z0-9_-]*",
    place=r"shared|seed\d+",


@cache
def parameters(grid):
    """The raw parameter file of a grid, checked for every cell of it."""
    source, datasets, seeds = GRIDS[grid]
    try:
        raw = load.resolved(Path(source))
        for dataset, seed in product(datasets, seeds):
            parse_params({**raw, "dataset": dataset, "seed": int(seed)}, source)
    except PelapError as error:
        raise WorkflowError(str(error)) from None
    return raw


for name in GRIDS:
    parameters(name)  # here a mistake is told in one line; in a rule's function it may even be passed over


def cell_files(grid, *paths):
    """Files of a cell, in every cell of a grid."""
    return expand(paths, grid=grid, dataset=GRIDS[grid].datasets, seed=GRIDS[grid].seeds)


def task_files(*paths):
    """Files of a cell, in every cell of every task."""
    return [file for name in config["tasks"] for file in cell_files(f"tasks/{name}", *paths)]


def summary_files(grid):
    """What a grid's seeds say together."""
    files = [SUMMARY.summary, SUMMARY.figure, SUMMARY.budget, SUMMARY.budget_figure]
    return expand(files, grid=grid)


def cell_of(wildcards):
    """The folder of one cell."""
    return RunPaths(Path(str(CELL.root).format(**dict(wildcards.items()))))


def every_variant(output):
    """A file of training, for every variant of a cell."""

    def of(wildcards):
        names = parameters(wildcards.grid)["variants"]
        return [str(getattr(cell_of(wildcards).train(name), output)) for name in names]

    return of


def scored_model(wildcards):
    """The variant whose UNet is scored, pruned and distilled."""
    return str(cell_of(wildcards).train(parameters(wildcards.grid)["score"]["variant"]).model)


def shrunk_models(wildcards):
    """What evaluation looks at besides the variants."""
    if parameters(wildcards.grid)["evaluate"]["models"] == "variants":
        return []
    cell = cell_of(wildcards)
    plans, students = [cell.pruned_models, cell.prune_result], [cell.distilled_models, cell.distill_result]
    return [str(path) for path in (*plans, *students, cell.score_protocol)]


def parameter_file(stage):
    """Where a cell's parameters for one stage are; one file for all would rerun everything."""
    return CELL.stage_params / f"{stage}.yaml"


def log_file(stage):
    return CELL.root / "logs" / f"{stage}.log"


def benchmark_file(stage):
    return CELL.root / "benchmarks" / f"{stage}.tsv"


def summary_made_of(command, study, root, cells):
    """The key of a summary: its cells and its code."""
    sources = (f"workflow/studies/{study}", "workflow/studies/cells.py", "pelap/report")
    return written(root / "params" / f"{command}.key", key(cells=cells, code=code(*sources)).parts)


def cells_asked(*grids):
    """Cells as a summary is told which to take, from the folder that holds them."""
    above = {grid: f"{Path(grid).name}/" if grid.startswith("tasks/") else "" for grid in grids}
    return [
        f"{above[grid]}{dataset}/seed{seed}"
        for grid in grids
        for dataset, seed in product(GRIDS[grid].datasets, GRIDS[grid].seeds)
    ]


def place_of(dataset, seed):
    return f"seed{seed}" if dataset in SEEDED_DATASETS else "shared"


def packed(wildcards):
    """The packed data set of a cell."""
    place = place_of(wildcards.dataset, wildcards.seed)
    return packed_dataset(Path(str(DATA).format(grid=wildcards.grid)) / place, wildcards.dataset)


def raw_parameters(wildcards):
    """All parameters of a cell."""
    given, seed = parameters(wildcards.grid), wildcards.get("seed")
    if seed is None:
        seed = wildcards.place.removeprefix("seed").replace("shared", str(given["seed"]))
    return {**given, "dataset": wildcards.dataset, "seed": int(seed)}


def chosen_parameters(stage, wildcards):
    """What one stage reads of them."""
    return select_keys(raw_parameters(wildcards), stage, wildcards.get("variant"))


def resolved(stage):
    """The parameters of one stage in a cell: the job writes them down. JSON, hence YAML."""

    def of(wildcards):
        return json.dumps(chosen_parameters(stage, wildcards), indent=2)

    return of


def key_file(parameter_file, wildcards):
    """Beside the parameters of a stage or a summary."""
    return Path(str(parameter_file).format(**dict(wildcards.items()))).with_suffix(".key")


def made_of(stage, parameter_file):
    """The key of all that a stage is made of besides its other inputs, in a file beside its parameters.

    It is written when it differs from what it was, and only then, so that its time says when something
    changed last. Snakemake's own memory of parameters and code is in .snakemake, and may be lost.
    """

    def of(wildcards):
        parts = key(**chosen_parameters(stage, wildcards), code=stage_code(stage)).parts
        return written(key_file(parameter_file, wildcards), {**parts, **inputs_here(stage, wildcards)})

    return of


def noted(parameter_file):
    """The digest of that key, for Snakemake's own memory of parameters.

    The file's time says nothing where the key changed while a job ran: what the job made is newer, and old.
    Of wildcards alone: parameters that come from the input are not remembered.
    """

    def of(wildcards):
        return files.digest(files.read_mapping(key_file(parameter_file, wildcards)))

    return of


def inputs_here(stage, wildcards):
    """What the parameters name outside of the run."""
    data = Path(str(DATA).format(grid=wildcards.grid)) / wildcards.get("place", "")
    return inputs_of(stage, raw_parameters(wildcards), data, wildcards.get("variant"))


def written(file, parts):
    """A file that holds the parts of a key; it is older than what was made of the same."""
    before = files.read_mapping(file) if file.is_file() else {}
    now = seen_last(parts, before)
    if now != before:
        files.write_json(file, now)
    return str(file)


@cache
def code(*paths):
    """Digest of source files, so that an edit reruns what imports them."""
    found = []
    for path in (Path(workflow.basedir) / path for path in paths):
        inside = path.rglob("*") if path.is_dir() else [path]
        found += [file for file in inside if file.is_file() and "__pycache__" not in file.parts]
    return files.digest({str(file.relative_to(workflow.basedir)): files.sha256(file) for file in sorted(found)})


def stage_code(stage):
    """Digest of the modules that dvc.yaml lists for a stage."""
    definition = PIPELINE[stage].get("do", PIPELINE[stage])
    return code(*(path for path in definition["deps"] if path.startswith("pelap/")))


def given_cores():
    """What --cores says; None on a cluster."""
    try:
        return workflow.cores
    except WorkflowError:
        return None


def all_cores(wildcards):
    """For jobs that time themselves: they need the machine for themselves."""
    return given_cores() or CLUSTER_CORES


def evaluate_cores(wildcards):
    """All of them where evaluation times the models."""
    timed = parameters(wildcards.grid)["evaluate"]["latency_repeats"] is not None
    return all_cores(wildcards) if timed else 2


def torch_threads(wildcards, threads):
    """This job's share of the processors; more would only make the jobs wait for each other."""
    if given_cores() is None:
        return threads
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, here * threads // given_cores())


# The `pelap` of the environment that Snakemake runs in, unless another is activated (or in the container).
shell.prefix(f'set -euo pipefail; PATH="$PATH:{Path(sys.executable).parent}"; ')

# Snakemake sets MKL_NUM_THREADS to a rule's threads, and torch takes the larger of the two.
PREPARE = (
    "echo {params.parameters:q} > {output.parameters}; "
    "export OMP_NUM_THREADS={resources.torch_threads} MKL_NUM_THREADS={resources.torch_threads}; "
)
"""How every stage's job starts: its parameters written down, its share of the processors set."""
