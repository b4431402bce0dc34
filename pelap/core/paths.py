"""The one place where file names exist: what each stage reads and writes under a run folder."""

from dataclasses import dataclass
from pathlib import Path

GRID = "grid.png"
"""Overview of the others in a folder of pictures that `pelap sample` writes."""
DOWNLOADS = "downloads"
"""Folder below the data folder where archives are looked for and put."""


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


@dataclass(frozen=True)
class TrainPaths:
    """What training one variant leaves."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def history(self) -> Path:
        """Losses by step."""
        return self.folder / "history.csv"

    @property
    def validation(self) -> Path:
        """Losses on test pictures by epoch."""
        return self.folder / "validation.csv"

    @property
    def reconstructions(self) -> Path:
        return self.folder / "reconstructions.png"

    @property
    def samples(self) -> Path:
        return self.folder / "samples.png"


@dataclass(frozen=True)
class RunPaths:
    """The files of one run, stage by stage."""

    root: Path

    @property
    def params(self) -> Path:
        """The parameters of this run, where `paper` resolved them."""
        return self.root / "params.yaml"

    @property
    def stage_params(self) -> Path:
        """Folder of what each stage was run with, where a sweep resolved it: ``STAGE.yaml``."""
        return self.root / "params"

    def stage(self, stage: str) -> Path:
        """The folder of a stage; each writes nowhere else, but `download`."""
        return self.root / stage

    def record(self, stage: str) -> Path:
        """Whether, with which parameters, for how long and where `paper` ran a stage."""
        return self.root / "stages" / f"{stage}.json"

    def train(self, variant: str) -> TrainPaths:
        return TrainPaths(self.root / "train" / variant)

    @property
    def resume(self) -> Path:
        """State of work that is going on, for `pelap.core.resume.ResumeState`."""
        return self.root / ".resume"

    @property
    def collapse(self) -> Path:
        return self.root / "collapse"

    @property
    def collapse_table(self) -> Path:
        return self.collapse / "collapse.csv"

    @property
    def masks_per_class(self) -> Path:
        return self.collapse / "masks_per_class.csv"

    @property
    def collapse_epochs(self) -> Path:
        """Losses and collapse of every variant after every epoch."""
        return self.collapse / "epochs.csv"

    @property
    def collapse_channels(self) -> Path:
        return self.collapse / "channels.csv"

    @property
    def collapse_timesteps(self) -> Path:
        """Noise loss by time step."""
        return self.collapse / "timesteps.csv"

    @property
    def collapse_metrics(self) -> Path:
        """The numbers of `collapse_table` as DVC's metrics."""
        return self.collapse / "metrics.json"

    @property
    def collapse_tables(self) -> dict[str, Path]:
        """All tables of the stage by their names."""
        tables = (
            self.collapse_table,
            self.masks_per_class,
            self.collapse_epochs,
            self.collapse_channels,
            self.collapse_timesteps,
        )
        return {path.stem: path for path in tables}

    @property
    def score(self) -> Path:
        return self.root / "score"

    @property
    def scores(self) -> Path:
        return self.score / "scores.csv"

    @property
    def score_protocol(self) -> Path:
        """Which model was scored and how."""
        return self.score / "protocol.json"

    @property
    def prune(self) -> Path:
        return self.root / "prune"

    @property
    def plans(self) -> Path:
        """Folder of the plans, ``<plan>.json``."""
        return self.prune / "plans"

    def plan(self, name: str) -> Path:
        return self.plans / f"{name}.json"

    @property
    def pruned_models(self) -> Path:
        return self.prune / "models"

    def pruned_model(self, plan: str) -> Path:
        return self.pruned_models / plan

    @property
    def prune_result(self) -> Path:
        """What was promised and what was measured, by plan."""
        return self.prune / "result.json"

    @property
    def changes(self) -> Path:
        """Every operator before and after, of every plan."""
        return self.prune / "changes.csv"

    @property
    def distill(self) -> Path:
        return self.root / "distill"

    @property
    def distilled_models(self) -> Path:
        return self.distill / "models"

    def distilled_model(self, name: str) -> Path:
        return self.distilled_models / name

    @property
    def distill_history(self) -> Path:
        """Losses by step, of every network that was trained."""
        return self.distill / "history.csv"

    @property
    def distill_validation(self) -> Path:
        """Held-out losses and quality on the way."""
        return self.distill / "validation.csv"

    @property
    def distill_result(self) -> Path:
        """How each network was trained, and which step of it was kept."""
        return self.distill / "result.json"

    @property
    def evaluate(self) -> Path:
        return self.root / "evaluate"

    @property
    def metrics(self) -> Path:
        return self.evaluate / "metrics.json"

    @property
    def latencies(self) -> Path:
        """Time of every model by batch size, eager and compiled."""
        return self.evaluate / "latencies.csv"

    @property
    def budget(self) -> Path:
        """Quality against time per image, for several numbers of sampling steps."""
        return self.evaluate / "budget.csv"

    @property
    def differences(self) -> Path:
        """Frechet distances against those of the dense models, each with its standard error."""
        return self.evaluate / "differences.csv"

    @property
    def evaluate_protocol(self) -> Path:
        """What the metrics were measured with."""
        return self.evaluate / "protocol.json"

    def samples(self, model: str) -> Path:
        """Grid of pictures made from the same noise by every model."""
        return self.evaluate / "samples" / f"{model}.png"

    def samples_sound(self, model: str) -> Path:
        """The first of them to listen to, where they are sounds."""
        return self.evaluate / "samples" / f"{model}.wav"

    def reconstructions(self, model: str) -> Path:
        """Grid of test pictures after encoding and decoding; ``real`` holds the originals."""
        return self.evaluate / "reconstructions" / f"{model}.png"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def report_page(self) -> Path:
        return self.report / "index.html"

    @property
    def report_figure(self) -> Path:
        """The figure of README."""
        return self.report / "overview.png"

    @property
    def report_table(self) -> Path:
        """The table of README, in Markdown."""
        return self.report / "overview.md"
