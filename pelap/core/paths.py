"""The one place where file names exist: what each stage reads and writes under a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Row of another draw of real pictures: what no model can be expected to go below, nor take the name of.
REAL_ROW = "real"
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
    resume = At(".resume")  # state of work that is going on, see `pelap.core.resume`

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
