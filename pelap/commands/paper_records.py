"""What `paper` notes down about the stages of its runs: that they are done, how, and for how long."""

import shutil
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch

from pelap.commands.paper_study import Cell
from pelap.core import files
from pelap.core.device import has_fast_bf16
from pelap.core.errors import DataError
from pelap.core.keys import code_of
from pelap.core.paths import RunPaths


@dataclass
class Record:
    """One stage of one run, with the parameters that `digest` stands for."""

    digest: str
    finished: bool = False
    seconds: float = 0.0
    """Over all attempts; of one that was killed nothing is known."""
    cut_off: int = 0
    """How often the time limit ended it."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Where it was finished: device, versions, precision."""
    code: str = ""
    """Digest of what it was finished with."""


def read_record(cell: Cell, paths: RunPaths, stage: str) -> Record:
    """The record of a stage with the parameters of this cell; a fresh one if there is none, or another's."""
    fresh = Record(cell.digest(stage))
    try:
        record = Record(**files.read_mapping(paths.record(stage)))
    except (DataError, TypeError):
        return fresh
    return record if record.digest == fresh.digest else fresh


def write_record(paths: RunPaths, stage: str, record: Record) -> None:
    """Write it atomically: a stage is done once its record says so."""
    files.write_json(paths.record(stage), asdict(record))


def finished_stages(cell: Cell, paths: RunPaths) -> list[str]:
    """The stages that are done with the parameters of this cell."""
    return [stage for stage in cell.stages if read_record(cell, paths, stage).finished]


@cache
def stage_code(stage: str) -> str:
    """Digest of a stage's code, as it is now."""
    return code_of(f"pelap.stages.{stage}")


def aged_stages(cell: Cell, paths: RunPaths) -> list[str]:
    """The finished stages whose code was another one than now."""
    records = {stage: read_record(cell, paths, stage) for stage in finished_stages(cell, paths)}
    return [stage for stage, record in records.items() if record.code not in ("", stage_code(stage))]


def begin(cell: Cell, paths: RunPaths, stage: str) -> Record:
    """Note that a stage is about to run; what other parameters left of it goes."""
    record = read_record(cell, paths, stage)
    if (
        not paths.record(stage).is_file()
        or files.read_mapping(paths.record(stage)).get("digest") != record.digest
    ):
        shutil.rmtree(paths.stage(stage), ignore_errors=True)
    write_record(paths, stage, record)
    return record


def precision_of(cell: Cell, stage: str, device: torch.device) -> str | None:
    """What a stage computes in, None where it has no choice."""
    if stage not in ("train", "distill", "evaluate"):
        return None
    asked: str = getattr(cell.params, stage).precision
    if asked != "auto":
        return asked
    return "bf16" if has_fast_bf16(device) else "fp32"
