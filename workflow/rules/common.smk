"""Names and functions of the rules. Files have their names from pelap.core.paths, cells from workflow.grid."""

import os
import sys
from importlib import import_module
from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError

sys.path.insert(0, str(workflow.basedir))

from pelap.core import digests, files, names
from pelap.core.errors import PelapError
from pelap.core.paths import DIGESTS, DOWNLOADS, RunPaths, packed_dataset
from pelap.datasets.sources import DATA_DIR_VARIABLE
from workflow import grid
from workflow.studies import choosing, collapse, paper, seeds, tasks

CELL = RunPaths(grid.RESULTS / "{grid}" / "{dataset}" / "seed{seed}")
PLACE = grid.DATA / "{grid}" / "{place}"
os.environ.setdefault(DATA_DIR_VARIABLE, str(grid.DATA / DOWNLOADS))
CLUSTER_CORES = 8
"""Threads of a job that times itself, where no --cores is given; a profile's set-threads decides."""
try:
    GRIDS = grid.grids(config)  # here a mistake is told in one line; in a rule's function it may be passed over
except PelapError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    grid="|".join(GRIDS),  # a task's has a slash: results/tasks/<name>, data/tasks/<name>
    dataset=names.NAME,
    seed=r"\d+",
    variant=names.NAME,
    place=r"shared|seed\d+",


def of_cell(name, *arguments):
    """Something of the cell that a job is of: a property or method of `workflow.grid.Cell`."""

    def found(wildcards):
        value = getattr(grid.cell_of(GRIDS, dict(wildcards.items())), name)
        return value(*arguments) if arguments else value

    return found


def key_file(parameters, wildcards):
    """Beside the parameters of a stage or a summary."""
    return Path(str(parameters).format(**dict(wildcards.items()))).with_suffix(".key")


def made_of(parameters, parts):
    """The key of all that a job's results depend on besides its other inputs, in a file."""
    return lambda wildcards: grid.written(key_file(parameters, wildcards), parts(wildcards))


def noted(parameters):
    """The digest of that key, for Snakemake's own memory of parameters.

    The file's time says nothing where the key changed while a job ran: what the job made is newer, and old.
    Of wildcards alone: parameters that come from the input are not remembered.
    """
    return lambda wildcards: digests.digest(files.read_mapping(key_file(parameters, wildcards)))


def cell_folders(folder):
    """Every cell of a grid, or of those below it."""
    inside = [name for name in GRIDS if name == folder or name.startswith(f"{folder}/")]
    return [grid.RESULTS / path for name in inside for path in GRIDS[name].cells(f"{name}/")]


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
    return all_cores(wildcards) if of_cell("timed")(wildcards) else 2


# The `pelap` of the environment that Snakemake runs in, unless another is activated (or in the container).
shell.prefix(f'set -euo pipefail; PATH="$PATH":{quote(str(Path(sys.executable).parent))}; ')

# Snakemake sets MKL_NUM_THREADS to a rule's threads, and torch takes the larger of the two.
PREPARE = (
    "echo {params.parameters:q} > {output.parameters:q}; "
    f'export {DATA_DIR_VARIABLE}="${{{{{DATA_DIR_VARIABLE}:-{grid.DATA / DOWNLOADS}}}}}"; '
    "export OMP_NUM_THREADS={resources.torch_threads} MKL_NUM_THREADS={resources.torch_threads}; "
)
"""How every stage's job starts: its parameters written down, its share of the processors set."""
