"""The one place where file names exist: what each stage reads and writes, and which models a run has."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelap.core import files
from pelap.core.errors import ConfigError, DataError
from pelap.core.names import demand_names

# Row of another draw of real pictures: what no model can be expected to go below, nor take the name of.
REAL_ROW = "real"
DIGESTS = "digests.json"  # SHA-256 of the files of a folder, by their paths below it
GRID = "grid.png"  # overview of the others in a folder of pictures that `pelap sample` writes
DOWNLOADS = "downloads"  # folder below the data folder where archives are looked for and put


def packed_dataset(data: Path, dataset: str) -> Path:
    """The packed file that `download` writes and every other stage reads."""
    return data / f"{dataset}.safetensors"


def packed_key(data: Path, dataset: str) -> Path:
    """What the packed file was made of."""
    return packed_dataset(data, dataset).with_suffix(".key")


def input_file(data: Path, stage: str) -> Path:
    """What a stage reads outside of the run, as `inputs` found it."""
    return data / "inputs" / f"{stage}.json"


def reference_cache(data: Path) -> Path:
    """Folder of the features of real pictures, computed once."""
    return data / ".features"


class At:
    """A path below the `root` of whoever has it as an attribute."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __get__(self, owner: Any, kind: type) -> Path:
        below: Path = owner.root / self._place
        return below


@dataclass(frozen=True)
class TrainPaths:
    """What training one variant leaves."""

    root: Path

    model = At("model")
    history = At("history.csv")  # losses by step
    validation = At("validation.csv")  # losses on test pictures by epoch
    reconstructions = At("reconstructions.png")
    samples = At("samples.png")


@dataclass(frozen=True)
class RunPaths:
    """The files of one run, stage by stage. A stage writes into its own folder alone, but `download`."""

    root: Path

    params = At("params.yaml")  # of this run, where `paper` resolved them
    stage_params = At("params")  # STAGE.yaml, what each stage was run with, where a sweep resolved it
    resume = At(".resume")  # state of work that is going on, see `pelap.core.keys`

    collapse = At("collapse")
    collapse_table = At("collapse/collapse.csv")
    masks_per_class = At("collapse/masks_per_class.csv")
    collapse_epochs = At("collapse/epochs.csv")  # losses and collapse of every variant after every epoch
    collapse_channels = At("collapse/channels.csv")
    collapse_timesteps = At("collapse/timesteps.csv")  # noise loss by time step
    collapse_metrics = At("collapse/metrics.json")  # the numbers of `collapse_table` as DVC's metrics

    score = At("score")
    scores = At("score/scores.csv")
    score_protocol = At("score/protocol.json")  # which model was scored and how

    prune = At("prune")
    plans = At("prune/plans")
    pruned_models = At("prune/models")
    prune_result = At("prune/result.json")  # what was promised and what was measured, by plan
    changes = At("prune/changes.csv")  # every operator before and after, of every plan

    distill = At("distill")
    distilled_models = At("distill/models")
    distill_history = At("distill/history.csv")  # losses by step, of every network that was trained
    distill_validation = At("distill/validation.csv")  # held-out losses and quality on the way
    distill_result = At("distill/result.json")  # how each was trained, and which step of it was kept

    evaluate = At("evaluate")
    metrics = At("evaluate/metrics.json")
    latencies = At("evaluate/latencies.csv")  # of every model by batch size, eager and compiled
    budget = At("evaluate/budget.csv")  # quality against time per image, for several numbers of steps
    differences = At("evaluate/differences.csv")  # Frechet distances from the dense models', with errors
    evaluate_protocol = At("evaluate/protocol.json")  # what the metrics were measured with

    report = At("report")
    report_page = At("report/index.html")
    report_figure = At("report/overview.png")  # the figure of README
    report_table = At("report/overview.md")  # the table of README

    def stage(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.root / stage

    def record(self, stage: str) -> Path:
        """Whether, with which parameters, for how long and where `paper` ran a stage."""
        return self.root / "stages" / f"{stage}.json"

    def train(self, variant: str) -> TrainPaths:
        return TrainPaths(self.root / "train" / variant)

    @property
    def collapse_tables(self) -> dict[str, Path]:
        """All tables of the stage by their names."""
        names = ("collapse", "masks_per_class", "epochs", "channels", "timesteps")
        return {name: self.collapse / f"{name}.csv" for name in names}

    def plan(self, name: str) -> Path:
        return self.plans / f"{name}.json"

    def pruned_model(self, plan: str) -> Path:
        return self.pruned_models / plan

    def distilled_model(self, name: str) -> Path:
        return self.distilled_models / name

    def samples(self, model: str) -> Path:
        """Grid of pictures made from the same noise by every model."""
        return self.evaluate / "samples" / f"{model}.png"

    def samples_sound(self, model: str) -> Path:
        """The first of them to listen to, where they are sounds."""
        return self.evaluate / "samples" / f"{model}.wav"

    def reconstructions(self, model: str) -> Path:
        """Grid of test pictures after encoding and decoding; ``real`` holds the originals."""
        return self.evaluate / "reconstructions" / f"{model}.png"


# --- which models a run has, by what its stages left


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
    scored = scored_variant(paths)
    if scored not in rows:
        raise ConfigError(
            f"variants: lacks {scored}, which {paths.score_protocol} says was scored; add it, or score again"
        )
    for plan in files.read_mappings(paths.prune_result):
        rows[f"pruned-{plan}"] = RunModel(paths.pruned_model(plan), "pruned", plan)
    for name, how in read_students(paths).items():
        rows[name] = RunModel(paths.distilled_model(name), how["start"], how.get("plan"), tuned=True)
    return RunModels(rows, scored)


def scored_variant(paths: RunPaths) -> str:
    """The variant whose UNet was scored, as `score` says; a `DataError` where it does not."""
    from pelap.core.records import ScoreProtocol  # what only names files needs no other package

    name = files.read_mapping(paths.score_protocol, ["variant"], ScoreProtocol)["variant"]
    demand_names([name], f"{paths.score_protocol}: variant")
    return str(name)


def read_students(paths: RunPaths, keys: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """What `distill` says of each network that it trained, by name: how it started, and these keys.

    Raises:
        DataError: That is missing, or a network comes from a plan that `prune` did not leave.
    """
    from pelap.core.records import Student

    students = files.read_mappings(paths.distill_result, ("start", *keys), "distill again", Student)
    plans = files.read_mappings(paths.prune_result)
    for name, how in students.items():
        if how["start"] != "dense" and how.get("plan") not in plans:
            raise DataError(
                f"{paths.distill_result}: {name} is of plan {how.get('plan')}, {paths.prune_result} has "
                f"{', '.join(plans)}; distill again"
            )
    return students
