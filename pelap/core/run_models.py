"""Which models a run has, by what its stages left."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelap.core import files
from pelap.core.errors import ConfigError, DataError
from pelap.core.paths import RunPaths


@dataclass(frozen=True)
class RunModel:
    """A model of a run."""

    folder: Path
    start: str | None = None  # what its UNet is, or was before it was trained further; None for a variant
    plan: str | None = None  # that it was pruned by
    tuned: bool = False  # whether `distill` trained it


@dataclass(frozen=True)
class RunModels:
    """All models of a run by name, and the variant that the others come from; None where there are none."""

    rows: dict[str, RunModel]
    scored: str | None = None

    def of_start(self, start: str) -> list[str]:
        """Names of the models that started so."""
        return [name for name, row in self.rows.items() if row.start == start]

    @property
    def derived(self) -> list[str]:
        """Names of all models but the variants."""
        return [name for name, row in self.rows.items() if row.start is not None]

    @property
    def tuned_from(self) -> dict[str, str]:
        """Of every network that was trained after pruning, the name of the pruned one."""
        tuned = {name: self.rows[name] for name in self.of_start("pruned") if self.rows[name].tuned}
        return {name: f"pruned-{row.plan}" for name, row in tuned.items()}

    def describe(self) -> dict[str, Any]:
        """Which models there are, for a protocol."""
        pruned = [name for name in self.of_start("pruned") if name not in self.tuned_from]
        return {
            "scored_variant": self.scored,
            "plans": [self.rows[name].plan for name in pruned],
            "students": {name: row.start for name, row in self.rows.items() if row.tuned},
            "dense_students": self.of_start("dense"),
        }

    def budget(
        self, steps: int, step_counts: Iterable[int], intervals: Iterable[int]
    ) -> list[tuple[str, int]]:
        """What can be had for less time: names and numbers of sampling steps.

        That is the scored variant, and what was trained on from it, in fewer steps (`step_counts`); the
        scored variant whose steps share deep features (`intervals`); and every network that was pruned.
        """
        if self.scored is None:
            return []
        every = sorted({steps, *step_counts}, reverse=True)
        return [
            *((self.scored, number) for number in every),
            *((cached_name(interval), steps) for interval in intervals),
            *((name, number) for name in self.of_start("dense") for number in every),
            *((name, steps) for name in self.of_start("pruned")),
        ]


def cached_name(interval: int) -> str:
    """Name of the scored variant where its steps share deep features, see `pelap.models.deep_cache`."""
    return f"cached-{interval}"


def run_models(paths: RunPaths, variants: Iterable[str], only_variants: bool = False) -> RunModels:
    """The variants, the networks that were pruned, and those that were trained further.

    Raises:
        ConfigError: The variant that was scored is not among `variants`.
        DataError: A result is missing, or those of two stages do not fit together.
    """
    rows = {name: RunModel(paths.train(name).model) for name in variants}
    if only_variants:
        return RunModels(rows)
    scored = files.read_mapping(paths.score_protocol, ["variant"])["variant"]
    if scored not in rows:
        raise ConfigError(
            f"variants: lacks {scored}, which {paths.score_protocol} says was scored; add it, or score again"
        )
    for plan in files.read_mapping(paths.prune_result):
        rows[f"pruned-{plan}"] = RunModel(paths.pruned_model(plan), "pruned", plan)
    for name, how in read_students(paths).items():
        rows[name] = RunModel(paths.distilled_model(name), how["start"], how.get("plan"), tuned=True)
    return RunModels(rows, scored)


def read_students(paths: RunPaths, keys: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """What `distill` says of each network that it trained, by name: how it started, and these keys.

    Raises:
        DataError: That is missing, or a network comes from a plan that `prune` did not leave.
    """
    students = files.read_mappings(paths.distill_result, ("start", *keys), "distill again")
    plans = files.read_mapping(paths.prune_result)
    for name, how in students.items():
        if how["start"] != "dense" and how.get("plan") not in plans:
            raise DataError(
                f"{paths.distill_result}: {name} is of plan {how.get('plan')}, {paths.prune_result} has "
                f"{', '.join(plans)}; distill again"
            )
    return students
