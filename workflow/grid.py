"""The grids of the Snakefile in plain Python: which cells there are, of which parameters, made of what."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped]

from pelap.commands.studies import load_study
from pelap.config.load import parse_params, resolved, select_keys
from pelap.config.yaml import read_yaml
from pelap.core import digests, files
from pelap.core.errors import ConfigError
from pelap.core.keys import key
from pelap.core.names import NAME
from pelap.core.paths import RunPaths, packed_dataset
from pelap.datasets.sources import inputs_of, seen_last

ROOT = Path(__file__).parents[1]
RESULTS, DATA = (
    Path("results"),
    Path("data"),
)  # each grid has a folder below both: it may have its own pictures
SEEDED_DATASETS = ("photos", "sounds")  # data sets that differ from seed to seed; the others are packed once
WITHOUT_DATA = ("score", "prune", "report")  # stages that read no packed data set
PREFIXES = {"sweep": "", "pruning_study": "pruning_", "choosing": "choosing_", "collapse_study": "study_"}
"""How the keys of a grid of a parameter file, data sets and seeds begin in the configuration."""

TEXTS = {"name": NAME, "module": r"[a-z0-9][a-z0-9_]{0,63}", "seed": r"[0-9]{1,18}"}
"""Formats of the schema; JSON Schema's own patterns would let a line end behind what they match."""


class Grid(NamedTuple):
    """Cells ``NAME/seedN`` in a folder of their own."""

    raws: Mapping[str, Mapping[str, Any]]  # parameters by the name of a data set, or of a part of the paper
    seeds: tuple[int, ...]
    stages: Mapping[str, tuple[str, ...]] = {}  # of the paper's parts: what each is run for

    def cells(self, above: str = "") -> list[str]:
        """All of them as paths."""
        return [f"{above}{name}/seed{seed}" for name in self.raws for seed in self.seeds]


def check(config: Mapping[str, Any]) -> None:
    """Refuse a wrong configuration in one line (`snakemake.utils.validate` takes a page)."""
    schema = read_yaml(ROOT / "workflow" / "schemas" / "config.schema.yaml")
    formats = FormatChecker(())
    for name, pattern in TEXTS.items():
        formats.checks(name)(lambda it, like=pattern: not isinstance(it, str) or re.fullmatch(like, it))
    problems = [
        f"{'.'.join(map(str, error.path)) or 'keys'}: {error.message}"
        for error in Draft202012Validator(schema, format_checker=formats).iter_errors(config)
    ]
    if problems:
        raise ConfigError(f"workflow/config.yaml (or --config): {'; '.join(problems)}")


def grids(config: Mapping[str, Any]) -> dict[str, Grid]:
    """Every grid by its folder, its parameters checked for every cell.

    Raises:
        ConfigError: One line: what is wrong where.
    """
    check(config)
    found = {
        name: _grid(*(config[f"{prefix}{what}"] for what in ("params", "datasets", "seeds")))
        for name, prefix in PREFIXES.items()
    }
    for name, study in config.get("studies", {}).items():
        found[name] = _grid(study["params"], study["datasets"], study["seeds"])
    for name, task in config["tasks"].items():
        found[f"tasks/{name}"] = _grid(task["params"], [task["dataset"]], config["task_seeds"])
    asked = load_study(Path(config["paper"]))
    seeds = tuple(dict.fromkeys(cell.seed for cell in asked.cells))
    raws, stages = (
        {name: getattr(cell, what) for name, cell in asked.parts.items()} for what in ("raw", "stages")
    )
    return found | {f"paper/{asked.dataset}": Grid(raws, seeds, stages)}


def _grid(source: str, datasets: Iterable[str], seeds: Iterable[int | str]) -> Grid:
    raw = resolved(Path(source))
    grid = Grid({name: {**raw, "dataset": name} for name in datasets}, tuple(map(int, seeds)))
    for name in grid.raws:
        for seed in grid.seeds:
            parse_params({**grid.raws[name], "seed": seed}, source)
    return grid


class Cell(NamedTuple):
    """What a job's wildcards stand for: a cell of a grid, or the data of some of them."""

    grid: Grid
    folder: Path  # of the grid, below `RESULTS` and `DATA`
    name: str
    seed: int | None
    place: str  # folder of the packed data set
    variant: str | None

    @property
    def raw(self) -> dict[str, Any]:
        """All parameters."""
        raws = self.grid.raws  # data has the name of the data set
        raw = raws.get(self.name) or next(each for each in raws.values() if each["dataset"] == self.name)
        return {**raw, "seed": raw["seed"] if self.seed is None else self.seed}

    @property
    def paths(self) -> RunPaths:
        return RunPaths(RESULTS / self.folder / self.name / f"seed{self.seed}")

    @property
    def data(self) -> Path:
        """Folder of its packed data set."""
        return DATA / self.folder / self.place

    @property
    def packed(self) -> Path:
        """The packed data set."""
        return packed_dataset(self.data, self.raw["dataset"])

    @property
    def scored_model(self) -> str:
        """The variant whose UNet is scored, pruned and distilled."""
        return str(self.paths.train(self.raw["score"]["variant"]).model)

    @property
    def shrunk_models(self) -> list[str]:
        """What evaluation looks at besides the variants."""
        plans, students = ("pruned_models", "prune_result"), ("distilled_models", "distill_result")
        names = (*plans, *students, "score_protocol") if self.raw["evaluate"]["models"] == "all" else ()
        return [str(getattr(self.paths, name)) for name in names]

    @property
    def timed(self) -> bool:
        """Whether evaluation times the models."""
        return self.raw["evaluate"]["latency_repeats"] is not None

    def trained(self, output: str) -> list[str]:
        """A file of training, of every variant."""
        return [str(getattr(self.paths.train(name), output)) for name in self.raw["variants"]]

    def options(self, stage: str) -> list[str]:
        """What a stage's command is told beside its run and parameters."""
        variant = [] if self.variant is None else ["--variant", self.variant]
        return variant + ([] if stage in WITHOUT_DATA else ["--data", str(self.data)])

    def parameters(self, stage: str) -> str:
        """What a stage reads, as its job writes it down: JSON, hence YAML."""
        return json.dumps(select_keys(self.raw, stage, self.variant), indent=2)

    def parts(self, stage: str) -> dict[str, str | None]:
        """Digests of all that a stage is made of besides the files of the stages before it."""
        made = key(**select_keys(self.raw, stage, self.variant), code=stage_code(stage)).parts
        return {**made, **inputs_of(stage, self.raw, self.data, self.variant)}


def cell_of(found: Mapping[str, Grid], wildcards: Mapping[str, str]) -> Cell:
    """The cell that a job is of."""
    grid, name = found[wildcards["grid"]], wildcards["dataset"]
    seed, place = wildcards.get("seed"), wildcards.get("place")
    if place is None:
        raw = grid.raws[name]
        place = f"seed{seed}" if raw["dataset"] in SEEDED_DATASETS else "shared"
    elif place != "shared":
        seed = place.removeprefix("seed")
    number = None if seed is None else int(seed)
    return Cell(grid, Path(wildcards["grid"]), name, number, place, wildcards.get("variant"))


def noted_jobs(grid: Grid, root: Path) -> list[str]:
    """The parameters that every job of the paper's cells leaves."""
    found = []
    for part, stages in grid.stages.items():
        trained = [f"train-{variant}" for variant in grid.raws[part]["variants"]]
        for seed in grid.seeds:
            params = RunPaths(root / part / f"seed{seed}").stage_params
            found += [str(params / f"{job}.yaml") for job in (*trained, *stages) if job != "train"]
    return found


def written(file: Path, parts: Mapping[str, Any]) -> str:
    """A file that holds digests; it is older than what was made of the same.

    It is written when it differs from what it was, and only then, so that its time says when something
    changed last. Snakemake's own memory of parameters and code is in .snakemake, and may be lost.
    """
    before = files.read_noted(file)
    now = seen_last(parts, before)
    if now != before:
        files.write_json(file, now)
    return str(file)


@cache
def code(*paths: str) -> str:
    """Digest of source files, so that an edit reruns what imports them."""
    found = []
    for path in (ROOT / path for path in paths):
        inside = path.rglob("*") if path.is_dir() else [path]
        found += [file for file in inside if file.is_file() and "__pycache__" not in file.parts]
    return digests.digest({str(file.relative_to(ROOT)): digests.sha256(file) for file in sorted(found)})


@cache
def stage_code(stage: str) -> str:
    """Digest of the modules that dvc.yaml lists for a stage."""
    definition = read_yaml(ROOT / "dvc.yaml")["stages"][stage]
    depends = definition.get("do", definition)["deps"]
    return code(*(path for path in depends if path.startswith("pelap/")))


def summary_parts(study: str, cells: Iterable[str]) -> Mapping[str, str]:
    """Digests of what a summary, made by a package, is made of besides the files of its cells."""
    sources = (study.replace(".", "/"), "workflow/studies/common.py", "pelap/report")
    return key(cells=list(cells), code=code(*sources)).parts


def torch_threads(threads: int, cores: int | None) -> int:
    """A job's share of the processors; more would only make the jobs wait for each other."""
    if cores is None:  # a cluster
        return threads
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here * threads // cores)
