"""Studies: their summaries, and the study file of `paper`, the cells that it asks for, what is done of each.

Summaries are part of the project's folder, not of the package.

A study file names parts: each a preset with changes, and the stages that it is run for. A cell is a part
with a seed, a run folder ``ROOT/<dataset>/<part>/seed<k>`` whose `stages/STAGE.json` say what is done. Torch
is not imported: Snakemake reads study files too.
"""

import copy
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from pelap.config import Params, Section
from pelap.config.load import STAGE_KEYS, explain, load_params, parse_params, resolved, select_keys
from pelap.config.model import Name, Seed
from pelap.config.rules import STAGES
from pelap.config.yaml import read_yaml
from pelap.core import digests, files
from pelap.core.errors import ConfigError, DataError
from pelap.core.keys import working_folder_on_path
from pelap.core.paths import RunPaths

# Commands, and the studies that they summarise: `python -m workflow.studies.NAME` is the same.
STUDIES = {"compare": "seeds", "study": "collapse", "choosing": "choosing", "tasks": "tasks"}


def summarise(command: str, root: Path, asked: Sequence[str] | None) -> None:
    """Write what the finished cells under `root` say together, or those that are asked for."""
    study_module(f"{STUDIES[command]}.summarise").summarise(root, asked)


def study_module(name: str) -> Any:
    """A module of ``workflow.studies``; a `ConfigError` says that the working folder is not the project's."""
    with working_folder_on_path():
        try:
            return importlib.import_module(f"workflow.studies.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or not f"workflow.studies.{name}".startswith(error.name):
                raise
            raise ConfigError(
                f"workflow/studies/{name.replace('.', '/')}: is not here; run it in PeLAP's folder"
            ) from None


# --- the study file

Stage: TypeAlias = Literal["train", "collapse", "score", "prune", "distill", "evaluate", "report"]
# The stages whose results a stage reads; `evaluate` with `models: variants` reads those of `train` alone.
NEEDS: dict[str, tuple[str, ...]] = {
    "train": (),
    "collapse": ("train",),
    "score": ("train",),
    "prune": ("train", "score"),
    "distill": ("train", "score", "prune"),
    "evaluate": ("train", "score", "prune", "distill"),
    "report": ("train", "collapse", "score", "prune", "distill", "evaluate"),
}
# Keys that say how something is computed and change no result: nothing is run again for them.
HOW_NOT_WHAT = ("execution", "parallel_variants")
# Parameters that all parts have in common, and where the study file gives them.
SHARED = {"dataset": "dataset", "seed": "seeds"}


class PartFile(Section):
    """A part: what a preset is run for."""

    preset: str
    stages: Annotated[tuple[Stage, ...], Field(strict=False, min_length=1)]
    variants: Annotated[tuple[Name, ...] | None, Field(strict=False, min_length=1)] = None
    changes: Annotated[dict[str, Any], Field(alias="set", default_factory=dict)]


class StudyFile(Section):
    """A whole study file."""

    dataset: Name
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]
    budget: Annotated[str, Field(min_length=1)]
    parts: Annotated[dict[Name, PartFile], Field(min_length=1)]


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: a part with one seed."""

    part: str
    seed: int
    stages: tuple[str, ...]
    raw: dict[str, Any]  # the parameters that its stages read, as they would be parsed
    params: Params

    @property
    def name(self) -> str:
        return f"{self.part} seed {self.seed}"

    def paths(self, root: Path) -> RunPaths:
        return RunPaths(root / self.params.dataset / self.part / f"seed{self.seed}")

    def needs(self, stage: str) -> tuple[str, ...]:
        """The stages whose results `stage` reads."""
        alone = stage == "evaluate" and self.params.evaluate.models == "variants"
        return ("train",) if alone else NEEDS[stage]

    def digest(self, stage: str) -> str:
        """Of the parameters that a stage and all that it builds on read, and that its results depend on."""
        chosen = {
            name: {key: value for key, value in section.items() if key not in HOW_NOT_WHAT}
            if isinstance(section, Mapping)
            else section
            for name, section in select_keys(self.raw, stage).items()
        }
        pictures = pictures_of(self.params) if stage == "train" else ()
        before = [self.digest(needed) for needed in self.needs(stage)]
        return digests.digest([stage, chosen, before, *map(str, pictures)])


@dataclass(frozen=True)
class Study:
    """What is to be run."""

    source: Path
    budget: str
    cells: tuple[Cell, ...]  # in the order of running: the first seed of every part, the second, ...

    @property
    def dataset(self) -> str:
        return self.cells[0].params.dataset

    @property
    def parts(self) -> dict[str, Cell]:
        """The first cell of every part."""
        return {cell.part: cell for cell in self.cells if cell.seed == self.cells[0].seed}


def load_study(path: Path, dataset: str | None = None) -> Study:
    """Read and check a study file, whose presets' paths are relative to it, and every run that it asks for.

    Raises:
        ConfigError: One line: what is wrong where.
    """
    raw = read_yaml(path, "give a study file with --study")
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{path}: expected a mapping; start from workflow/paper.yaml of PeLAP")
    try:
        file = StudyFile(**raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None
    if len(set(file.seeds)) < len(file.seeds):
        raise ConfigError(f"{path}: seeds: one is given twice; remove it")
    shared = {"dataset": dataset or file.dataset}
    raws = {name: _parameters(path, name, part) | shared for name, part in file.parts.items()}
    cells = tuple(
        _cell(f"{path}: parts.{name}", name, part.stages, raws[name] | {"seed": seed})
        for seed in file.seeds
        for name, part in file.parts.items()
    )
    for cell in cells:
        if pictures_of(cell.params) != pictures_of(cells[0].params):
            raise ConfigError(
                f"{path}: parts.{cell.part}: its section download makes other pictures than that of "
                f"{cells[0].part}; they share one packed data set, so set it alike"
            )
    return Study(path, file.budget, cells)


def _parameters(path: Path, name: str, part: PartFile) -> dict[str, Any]:
    """What the stages of a part read: its preset, changed."""
    where, preset = f"{path}: parts.{name}", path.parent / part.preset
    if not preset.is_file():
        raise ConfigError(f"{where}.preset: no file {preset}; give a path from the study's folder")
    load_params(preset)  # a whole parameter file
    keys = {key for stage in ("download", *part.stages) for key in STAGE_KEYS[stage]}
    raw = {key: value for key, value in resolved(preset).items() if key in keys}
    if part.variants is not None:
        known = raw["variants"]
        unknown = ", ".join(variant for variant in part.variants if variant not in known)
        if unknown:
            raise ConfigError(
                f"{where}.variants: the preset has no {unknown}; use some of {', '.join(known)}"
            )
        raw["variants"] = {variant: known[variant] for variant in part.variants}
    for key, value in part.changes.items():
        _change(raw, key, value, f"{where}.set.{key}")
    return raw


def _change(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Replace the value of a dotted key in place."""
    if key in SHARED:
        raise ConfigError(f"{where}: all parts share it; give it as {SHARED[key]} of the study")
    *sections, last = key.split(".")
    target: Any = raw
    for section in sections:
        target = target.get(section) if isinstance(target, dict) else None
    if not isinstance(target, dict) or last not in target:
        raise ConfigError(f"{where}: no stage of the part reads such a key; correct it or remove it")
    target[last] = copy.deepcopy(value)


def _cell(where: str, part: str, stages: tuple[str, ...], raw: dict[str, Any]) -> Cell:
    """A cell, unless its stages are in another order, twice, or lack what they build on."""
    cell = Cell(part, raw["seed"], stages, raw, parse_params(raw, where, demanded=raw))
    order = [stage for stage in STAGES if stage in stages]
    if list(stages) != order:
        raise ConfigError(f"{where}.stages: they run in the order {', '.join(order)}; write each once, so")
    for stage in stages:
        missing = ", ".join(needed for needed in cell.needs(stage) if needed not in stages)
        if missing:
            hint = " (or evaluate.models: variants)" if stage == "evaluate" else ""
            raise ConfigError(f"{where}.stages: {stage} needs {missing} too; add it{hint}")
        if stage == "report" and cell.params.evaluate.models == "variants":
            raise ConfigError(f"{where}.stages: report needs evaluate.models: all; set that")
    return cell


def pictures_of(params: Params) -> tuple[Any, ...]:
    """What the packed data set depends on, beside the seed of photos: that of the first cell is taken."""
    made, dataset = params.download, params.dataset
    sounds = made.sounds if dataset == "sounds" or dataset in made.folders else None
    return made.image_size, made.folders.get(dataset), made.photos if dataset == "photos" else None, sounds


@dataclass
class Record:
    """One stage of one run, with the parameters that `digest` stands for."""

    digest: str
    finished: bool = False
    seconds: float = 0.0  # over all attempts; of one that was killed nothing is known
    cut_off: int = 0  # how often the time limit ended it
    environment: dict[str, Any] = field(default_factory=dict)  # device, versions, precision
    code: str = ""  # digest of what it was finished with


def read_record(cell: Cell, root: Path, stage: str) -> Record:
    """The record of a stage with the parameters of this cell; a fresh one if there is none, or another's."""
    run, digest = cell.paths(root), cell.digest(stage)
    try:
        record = TypeAdapter(Record).validate_python(files.read_mapping(run.record(stage)))
    except (DataError, ValidationError):
        return _snakemakes(cell, root, stage) or Record(digest)
    return record if record.digest == digest else Record(digest)


def _snakemakes(cell: Cell, root: Path, stage: str) -> Record | None:
    """Of a stage that Snakemake ran with these parameters, as it ran all that this builds on."""
    run, seconds = cell.paths(root), 0.0
    variants = list(cell.params.variants) if stage == "train" else [None]
    for variant in variants:
        job = f"{stage}-{variant}" if variant else stage
        noted, timed = run.stage_params / f"{job}.yaml", run.root / "benchmarks" / f"{job}.tsv"
        wanted = select_keys(cell.raw, stage, variant)
        if not noted.is_file() or digests.digest(files.read_json(noted)) != digests.digest(wanted):
            return None
        if timed.is_file():
            seconds += float(timed.read_text().splitlines()[1].split()[0])
    if all(read_record(cell, root, needed).finished for needed in cell.needs(stage)):
        return Record(cell.digest(stage), True, seconds)
    return None


def finished_stages(cell: Cell, root: Path) -> list[str]:
    """The stages that are done with the parameters of this cell."""
    return [stage for stage in cell.stages if read_record(cell, root, stage).finished]
