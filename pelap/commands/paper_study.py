"""The study file of `paper`: parts, each a preset with changes, and the runs that they stand for."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, ValidationError

from pelap.config import Params, Section
from pelap.config.load import STAGE_KEYS, explain, load_params, parse_params, read_yaml, resolved, select_keys
from pelap.config.model import Name
from pelap.config.rules import STAGES
from pelap.core import files
from pelap.core.errors import ConfigError

Stage: TypeAlias = Literal["train", "collapse", "score", "prune", "distill", "evaluate", "report"]
NEEDS: dict[str, tuple[str, ...]] = {
    "train": (),
    "collapse": ("train",),
    "score": ("train",),
    "prune": ("train", "score"),
    "distill": ("train", "score", "prune"),
    "evaluate": ("train", "score", "prune", "distill"),
    "report": ("train", "collapse", "score", "prune", "distill", "evaluate"),
}
"""The stages whose results a stage reads; `evaluate` with `models: variants` reads those of `train` alone."""
HOW_NOT_WHAT = ("execution", "parallel_variants")
"""Keys that say how something is computed and change no result: nothing is run again for them."""
SHARED = {"dataset": "dataset", "seed": "seeds"}
"""Parameters that all parts have in common, and where the study file gives them."""


class PartFile(Section):
    """A part: what a preset is run for."""

    preset: str
    stages: Annotated[tuple[Stage, ...], Field(strict=False, min_length=1)]
    variants: Annotated[tuple[Name, ...] | None, Field(strict=False, min_length=1)] = None
    changes: Annotated[dict[str, Any], Field(alias="set", default_factory=dict)]


class StudyFile(Section):
    """A whole study file."""

    dataset: Name
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)]
    budget: Annotated[str, Field(min_length=1)]
    parts: Annotated[dict[Name, PartFile], Field(min_length=1)]


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: a part with one seed."""

    part: str
    seed: int
    stages: tuple[str, ...]
    raw: dict[str, Any]
    """The parameters that its stages read, as they would be parsed."""
    params: Params

    @property
    def dataset(self) -> str:
        return self.params.dataset

    @property
    def name(self) -> str:
        return f"{self.part} seed {self.seed}"

    def digest(self, stage: str) -> str:
        """Of the parameters that a stage and all that it builds on read, and that its results depend on."""
        before = [self.digest(needed) for needed in needs(stage, self.params)]
        chosen = {
            name: {key: value for key, value in section.items() if key not in HOW_NOT_WHAT}
            if isinstance(section, Mapping)
            else section
            for name, section in select_keys(self.raw, stage).items()
        }
        pictures = _pictures(self.params) if stage == "train" else ()
        return files.digest([stage, chosen, before, *map(str, pictures)])


@dataclass(frozen=True)
class Study:
    """What is to be run."""

    source: str
    budget: str
    cells: tuple[Cell, ...]
    """In the order in which they are run: the first seed of every part, the second, ..."""

    @property
    def dataset(self) -> str:
        return self.cells[0].dataset

    @cached_property
    def parts(self) -> dict[str, Cell]:
        """The first cell of every part."""
        found: dict[str, Cell] = {}
        for cell in self.cells:
            found.setdefault(cell.part, cell)
        return found


def needs(stage: str, params: Params) -> tuple[str, ...]:
    """The stages whose results `stage` reads in a run with these parameters."""
    if stage == "evaluate" and params.evaluate.models == "variants":
        return ("train",)
    return NEEDS[stage]


def load_study(path: Path, dataset: str | None = None) -> Study:
    """Read and check a study file and every run that it asks for.

    Args:
        path: YAML file; the presets' paths are relative to its folder.
        dataset: Instead of the file's.

    Raises:
        ConfigError: One line: what is wrong where.
    """
    try:
        file = StudyFile(**_mapping(read_yaml(path), path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from None
    if len(set(file.seeds)) < len(file.seeds):
        raise ConfigError(f"{path}: seeds: one is given twice; remove it")
    presets = {name: _preset(path, name, part) for name, part in file.parts.items()}
    cells = tuple(
        _cell(path, name, part, presets[name], dataset or file.dataset, seed)
        for seed in file.seeds
        for name, part in file.parts.items()
    )
    _demand_same_pictures(path, cells)
    return Study(str(path), file.budget, cells)


def _mapping(raw: Any, path: Path) -> dict[str, Any]:
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{path}: expected a mapping; start from workflow/paper.yaml of PeLAP")
    return raw


def _preset(path: Path, name: str, part: PartFile) -> dict[str, Any]:
    """All parameters of a preset, once they are known to be as they must be."""
    preset = path.parent / part.preset
    if not preset.is_file():
        raise ConfigError(
            f"{path}: parts.{name}.preset: no file {preset}; give a path from the study's folder"
        )
    load_params(preset)
    return resolved(preset)


def _cell(path: Path, name: str, part: PartFile, preset: Mapping[str, Any], dataset: str, seed: int) -> Cell:
    where = f"{path}: parts.{name}"
    keys = {key for stage in ("download", *part.stages) for key in STAGE_KEYS[stage]}
    raw = {key: copy.deepcopy(value) for key, value in preset.items() if key in keys}
    if part.variants is not None:
        raw["variants"] = _chosen(raw["variants"], part.variants, where)
    for key, value in part.changes.items():
        _change(raw, key, value, f"{where}.set.{key}")
    raw |= {"dataset": dataset, "seed": seed}
    params = parse_params(raw, where, demanded=keys)
    _demand_order(part.stages, params, where)
    return Cell(name, seed, part.stages, raw, params)


def _chosen(variants: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    unknown = [name for name in names if name not in variants]
    if unknown:
        raise ConfigError(
            f"{where}.variants: the preset has no {', '.join(unknown)}; use some of {', '.join(variants)}"
        )
    return {name: variants[name] for name in names}


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


def _demand_order(stages: tuple[str, ...], params: Params, where: str) -> None:
    """Refuse stages in another order, twice, or without what they build on."""
    order = [stage for stage in STAGES if stage in stages]
    if list(stages) != order:
        raise ConfigError(f"{where}.stages: they run in the order {', '.join(order)}; write each once, so")
    for stage in stages:
        missing = [needed for needed in needs(stage, params) if needed not in stages]
        if missing:
            hint = " (or evaluate.models: variants)" if stage == "evaluate" else ""
            raise ConfigError(f"{where}.stages: {stage} needs {', '.join(missing)} too; add it{hint}")
        if stage == "report" and params.evaluate.models == "variants":
            raise ConfigError(f"{where}.stages: report needs evaluate.models: all; set that")


def _demand_same_pictures(path: Path, cells: tuple[Cell, ...]) -> None:
    """One packed data set serves all parts."""
    first = cells[0]
    for cell in cells:
        if _pictures(cell.params) != _pictures(first.params):
            raise ConfigError(
                f"{path}: parts.{cell.part}: its section download makes other pictures than that of "
                f"{first.part}; they share one packed data set, so set it alike"
            )


def _pictures(params: Params) -> tuple[Any, ...]:
    """What the packed data set depends on, beside the seed of photos: that of the first cell is taken."""
    made, dataset = params.download, params.dataset
    sounds = made.sounds if dataset == "sounds" or dataset in made.folders else None
    return made.image_size, made.folders.get(dataset), made.photos if dataset == "photos" else None, sounds
