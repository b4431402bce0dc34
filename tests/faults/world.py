"""Tiny jobs of every kind: what each starts from, its command, and what it leaves undisturbed."""

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tiny import LIGHT, tiny_raw
from trial import Outcome, run_call, run_command

CLOCK = re.compile(
    r"(^|_)(ms|seconds|share|peak_memory_mib|revision)(_|$)|time_(saved|reduction)|images_per|_or_path$"
)
"""Names of what a clock or the place decides: columns and rows of tables, keys of JSON files."""
DRAWN = (
    ".html",
    "overview.png",
    "overview.md",
    "table.md",
    ".tar.xz",
    "digests.json",
)  # hold such numbers among others

_QUICK: dict[str, Any] = {
    "dataset": "photos",
    "download__photos": {"train_per_photo": 8, "test_per_photo": 4, "min_crop": 48, "max_crop": 96},
    "download__image_size": 16,
    "train__epochs": 2,
    "train__steps_per_epoch": 4,
    "prune__max_measurements": 0,
    "evaluate__num_images": 8,
    "evaluate__batch_size": 8,
    "evaluate__num_reference": 16,
    "evaluate__num_reconstructions": 8,
    "evaluate__only_frechet": True,
}
"""A run whose results no clock decides: plans by parameters, not by measured time."""
_PAPER: dict[str, Any] = {
    **LIGHT,
    "train__epochs": 1,
    "train__preview": {"kind": "ddim", "steps": 2},
    "evaluate__latency_repeats": None,
    "evaluate__step_counts": [],
    "evaluate__models": "variants",
}


@dataclass
class Job:
    """A command in a place of its own: a folder with ``run``, ``data``, ``dense`` and so on, as it needs."""

    name: str
    words: str  # {place} and {params} stand for the paths
    needs: list[str]  # what it starts from, below the world
    leaves: str  # what it makes, below the place
    seconds: float = 0.0  # undisturbed
    result: dict[str, str] = field(default_factory=dict)


STAGES = ("train", "collapse", "score", "prune", "distill", "evaluate")
_RUN = "--params {params} --run {place}/run --data {place}/data --device cpu"
_USER = "--params {params} --device cpu"
_SAMPLE = "sample --num 3 --steps 4 --model"
_PAPER_IN = "--study {place}/study/study.yaml --root {place}/root --data {place}/papers"


def _jobs() -> Iterator[Job]:
    """In an order in which each finds what it starts from."""
    runs = [f"run/{stage}" for stage in STAGES]
    yield Job("download", f"download {_RUN}", [], "data")
    for number, stage in enumerate(STAGES):
        yield Job(stage, f"{stage} {_RUN}", ["data", *runs[:number]], f"run/{stage}")
    yield Job("report", f"report {_RUN}", ["data", *runs], "run/report")
    yield Job(
        "sample", f"{_SAMPLE} {{place}}/run/train/invariant/model --out {{place}}/out", ["run/train"], "out"
    )
    yield Job("sample-pipeline", f"{_SAMPLE} {{place}}/dense --out {{place}}/made", ["dense"], "made")
    yield Job(
        "pipeline-score",
        f"pipeline score {{place}}/dense --out {{place}}/table/scores.csv {_USER}",
        ["dense"],
        "table",
    )
    yield Job(
        "pipeline-prune",
        "pipeline prune {place}/dense --scores {place}/table/scores.csv --out {place}/pruned " + _USER,
        ["dense", "table"],
        "pruned",
    )
    yield Job(
        "pipeline-distill",
        "pipeline distill {place}/pruned --teacher {place}/dense --out {place}/student/out "
        f"--data {{place}}/data {_USER}",
        ["dense", "pruned", "data"],
        "student",
    )
    yield Job(
        "pipeline-evaluate",
        "pipeline evaluate {place}/dense {place}/pruned --out {place}/figures/metrics.json "
        f"--data {{place}}/data {_USER}",
        ["dense", "pruned", "data"],
        "figures",
    )
    yield Job("paper", f"paper {_PAPER_IN} --device cpu", ["study"], "root")


class World:
    """What trials start from; made once."""

    def __init__(self, root: Path, names: Container[str] | None = None) -> None:
        self.root, self.params = root, root / "params.yaml"
        self.jobs = {job.name: job for job in _jobs() if names is None or job.name in names}

    @classmethod
    def make(cls, root: Path, names: Container[str] | None = None) -> "World":
        """Every job, or those with these names, to its end, each from what the others left."""
        load_libraries()
        world = cls(root, names)
        root.mkdir(parents=True, exist_ok=True)
        write_yaml(world.params, tiny_raw(**_QUICK))
        _write_study(root / "study")
        _expect_success(run_call(lambda: _make_pipeline(root / "dense")))
        for job in world.jobs.values():
            outcome = run_command(world.words(job, root), seconds=600)
            _expect_success(outcome)
            job.seconds, job.result = outcome.seconds, contents(root / job.leaves)
        return world

    def words(self, job: Job, place: Path) -> list[str]:
        return [word.format(place=place, params=self.params) for word in job.words.split()]

    def prepare(self, job: Job, place: Path) -> None:
        """A copy of what the job starts from, in a new folder."""
        place.mkdir(parents=True)
        for name in job.needs:
            shutil.copytree(self.root / name, place / name)

    def run(self, job: Job, place: Path, **how: Any) -> Outcome:
        return run_command(self.words(job, place), **how)


def _expect_success(outcome: Outcome) -> None:
    if outcome.status:
        raise RuntimeError(f"an undisturbed command failed: {outcome}")


def _write_study(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write_yaml(folder / "tiny.yaml", tiny_raw(**(_QUICK | _PAPER)))
    part = {
        "preset": "tiny.yaml",
        "stages": ["train", "collapse", "evaluate"],
        "variants": ["baseline", "pelap"],
    }
    study = {"dataset": "photos", "seeds": [0, 1], "budget": "tiny", "parts": {"pelap-a": part}}
    write_yaml(folder / "study.yaml", study)


def write_yaml(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(value, file)


def _make_pipeline(folder: Path) -> int:
    from diffusers import DDIMPipeline, DDIMScheduler
    from tiny_pipelines import unet2d

    DDIMPipeline(unet2d(3, sample_size=16), DDIMScheduler()).save_pretrained(folder)
    return 0


def contents(root: Path) -> dict[str, str]:
    """A digest for every file below `root`, times aside; what shows such numbers has to be there."""
    return {name: "" if name.endswith(DRAWN) else _digest(root / name) for name in visible(root)}


def visible(root: Path) -> Iterator[str]:
    """Files under a final name, as paths below `root`."""
    for path in sorted(root.rglob("*")):
        below = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in below.parts):
            yield str(below)


def hidden(root: Path) -> list[str]:
    """What a killed command may leave and the next one has to remove: half-written files and folders."""
    names = (str(path.relative_to(root)) for path in root.rglob(".*"))
    return sorted(name for name in names if name.endswith((".partial", ".old")))


def _digest(path: Path) -> str:
    if path.suffix == ".json":
        value = json.dumps(_without_clock(json.loads(path.read_text())), sort_keys=True).encode()
    elif path.suffix == ".csv":
        value = _table(path)
    else:
        value = path.read_bytes()
    return hashlib.sha256(value).hexdigest()[:16]


def _table(path: Path) -> bytes:
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    kept = [number for number, name in enumerate(head) if not CLOCK.search(name)]
    return repr(
        [[row[number] for number in kept] for row in rows if not any(map(CLOCK.search, row))]
    ).encode()


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clock(each) for key, each in value.items() if not CLOCK.search(key)}
    return [_without_clock(each) for each in value] if isinstance(value, list) else value


def load_libraries() -> None:
    """What every trial needs, before the first fork; one thread, as threads do not survive a fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    import torch

    torch.set_num_threads(1)
    stages = ("download", "train", "collapse", "score", "prune", "distill", "evaluate", "report")
    for name in (
        "commands.pipelines",
        "commands.paper",
        "report.page",
        *(f"stages.{each}" for each in stages),
    ):
        import_module(f"pelap.{name}")
