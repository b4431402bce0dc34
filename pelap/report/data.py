"""What the report is made from: a run's tables, dictionaries and pictures."""

import math
import wave
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from pelap.core import files
from pelap.core.digests import demand_unchanged
from pelap.core.errors import DataError
from pelap.core.paths import REAL_ROW, RunPaths, cached_name, read_students
from pelap.core.records import EvaluateProtocol, PlanResult, ScoreProtocol
from pelap.core.tables import read_table
from pelap.core.terminal import QUANTITIES, changed
from pelap.report.protocol import SOUNDS, ModalityNames, modality_names
from pelap.report.tables import PRUNED, SURE, metrics_frame, quality_column
from pelap.report.verdicts import judged

_LOSSES = ("step", "noise", "recon", "mean_mask")
_SCORES = (
    *("operator", "kind", "parent", "score", "score_low", "score_high"),
    *("num_latents", "stopped_early", "latency_share"),
)
_CHANGES = [f"{name}_{side}" for name in QUANTITIES for side in ("before", "after")]


@dataclass(frozen=True)
class RunData:
    """One run. Tables and mappings are those of the files of the same names in `RunPaths`."""

    dataset: str
    seed: int
    metrics: Mapping[str, Mapping[str, float | None]]
    protocol: Mapping[str, Any]  # that of the evaluation
    history: Mapping[str, pd.DataFrame]  # training losses by step, per variant
    validation: Mapping[str, pd.DataFrame]  # losses on test pictures by epoch, per variant
    collapse: pd.DataFrame  # a row a variant; the next two have its numbers by epoch and by time step
    epochs: pd.DataFrame
    timesteps: pd.DataFrame
    masks: pd.DataFrame
    scores: pd.DataFrame  # a row an operator
    score_protocol: Mapping[str, Any]
    changes: pd.DataFrame  # operators before and after pruning, of every plan, the whole denoiser first
    prune_result: Mapping[str, Mapping[str, Any]]  # what was promised and what was measured, by plan
    distill: pd.DataFrame
    distill_validation: pd.DataFrame
    students: Mapping[str, Mapping[str, Any]]  # how each was trained, and which step of it was kept
    latencies: pd.DataFrame
    budget: pd.DataFrame
    differences: pd.DataFrame
    samples: Mapping[str, bytes]  # PNG grids by model, from the same noise; `real` holds train pictures
    reconstructions: Mapping[str, bytes]  # PNG grids by model; `real` holds the originals
    sounds: Mapping[str, bytes]  # WAV files of the first samples, by model; empty where models make pictures

    @cached_property
    def frame(self) -> pd.DataFrame:
        return metrics_frame(self.metrics, self.scored)

    @property
    def modality_names(self) -> ModalityNames:
        return modality_names(self.protocol)

    @property
    def timed(self) -> bool:
        return "latency_ms" in self.frame

    @property
    def scored(self) -> str | None:
        """The variant whose UNet was pruned."""
        return self.protocol.get("scored_variant")

    @property
    def models(self) -> list[str]:
        """Everything with a colour of its own, in the table's order."""
        return list(dict.fromkeys([*self.metrics, *self.history, *self.students, *self.cached]))

    @property
    def plans(self) -> list[str]:
        return list(self.prune_result)

    @property
    def cached(self) -> list[str]:
        """Rows of the scored variant whose sampling steps share deep features."""
        return [cached_name(interval) for interval in self.protocol.get("deepcache_intervals", [])]

    @property
    def denoisers(self) -> list[str]:
        """The scored variant and what became of it: the rows that are compared at equal time."""
        dense = [] if self.scored is None else [self.scored]
        return [*dense, *(f"{PRUNED}-{plan}" for plan in self.plans), *self.students, *self.cached]

    def started(self, start: str) -> list[str]:
        """Students that were trained on from this: `pruned`, `dense` or `scratch`."""
        return [row for row, how in self.students.items() if how["start"] == start]

    @property
    def unpruned(self) -> list[str]:
        """What pruned networks are held against: the scored variant, and what was trained on from it."""
        return [*([] if self.scored is None else [self.scored]), *self.started("dense")]

    @cached_property
    def points(self) -> pd.DataFrame:
        """Time per image and quality of `denoisers`, as `figures.overview.draw` takes them."""
        column = quality_column(self.frame)
        if column is None or column.key not in self.budget:
            return pd.DataFrame(columns=["model", "steps", "x", "x_err", "y", "y_err"])
        return budget_points(self.budget[self.budget["model"].isin(self.denoisers)], column.key)

    @cached_property
    def replaced(self) -> dict[str, str]:
        """What stands in the place of each operator that the first plan replaced."""
        return self.replaced_by(self.plans[0]) if self.plans else {}

    def replaced_by(self, plan: str) -> dict[str, str]:
        """What stands in the place of each operator that a plan replaced."""
        rows = self.changed_by(plan).iloc[1:]
        return dict(zip(rows["operator"], rows["action"], strict=True))

    def changed_by(self, plan: str) -> pd.DataFrame:
        """The whole denoiser and the replaced operators of a plan."""
        return changed(self.changes[self.changes["plan"] == plan])

    @cached_property
    def judged(self) -> pd.DataFrame:
        """`differences` with the verdict on each; all that are against one model are a family."""
        known = self.differences.dropna(subset=["difference", "se"])
        freedom = int(self.protocol.get("jackknife_groups", 10)) - 1
        families = [
            own.assign(verdict=list(judged(own["difference"], own["se"], freedom)["verdict"]))
            for _, own in known.groupby(["against", "metric"], sort=False)
        ]
        return pd.concat([known.assign(verdict="").iloc[:0], *families])

    def difference(self, model: str, against: str, metric: str) -> tuple[float, float, str] | None:
        """Difference of two models in a metric, its standard error and the verdict, if it was measured."""
        table = self.judged
        found = table[(table["model"] == model) & (table["against"] == against) & (table["metric"] == metric)]
        rows = found[["difference", "se", "verdict"]].itertuples(index=False, name=None)
        return next(rows, None)


def budget_points(budget: pd.DataFrame, key: str) -> pd.DataFrame:
    """The points of `budget.csv`: x is the time per image, y the distance `key`, with half their bars."""
    table = pd.DataFrame(
        {
            "model": budget["model"].astype(str),
            "steps": budget["steps"],
            "x": budget["image_ms"],
            "x_err": budget["image_iqr_ms"] / 2,
            "y": budget[key],
            "y_err": SURE * budget[f"{key}_se"] if f"{key}_se" in budget else float("nan"),
        }
    )
    return table.dropna(subset=["x", "y"]).reset_index(drop=True)


def read_run(dataset: str, seed: int, variants: Iterable[str], paths: RunPaths) -> RunData:
    """Read everything that the report shows.

    Raises:
        DataError: A file of an earlier stage is missing or not what it should be.
    """
    metrics = files.read_metrics(paths.metrics)
    protocol = files.read_mapping(paths.evaluate_protocol, kind=EvaluateProtocol)
    variants, heard = tuple(variants), modality_names(protocol).many == SOUNDS
    plans = files.read_mappings(paths.prune_result, kind=PlanResult)
    students = read_students(
        paths, ["plan", "steps", "kept_step", "select", "task_weight", "output_weight", "feature_weight"]
    )
    run = RunData(
        dataset=dataset,
        seed=seed,
        metrics=metrics,
        protocol=protocol,
        history={name: files.read_csv(paths.train(name).history, _LOSSES) for name in variants},
        validation={name: files.read_csv(paths.train(name).validation, _LOSSES) for name in variants},
        collapse=_table(paths.collapse_table, "variant verdict reason unet_input_std", variants),
        epochs=_table(paths.collapse_epochs, "variant epoch", variants),
        timesteps=_table(
            paths.collapse_timesteps, "variant first_step last_step diffusion_loss gaussian_floor", variants
        ),
        masks=_table(paths.masks_per_class, "variant class_name channel mean_mask", variants),
        scores=read_table(
            paths.scores, paths.score_protocol, _SCORES
        ),  # an operator may be infinitely important
        score_protocol=files.read_mapping(
            paths.score_protocol,
            ["num_latents", "num_seeds", "formula", "early_stop", "rank_correlation", "latency_batch_size"],
            ScoreProtocol,
        ),
        changes=files.read_csv(paths.changes, ["plan", "operator", "action", *_CHANGES]),
        prune_result=plans,
        distill=_table(paths.distill_history, "student step loss", students),
        distill_validation=_table(paths.distill_validation, "student step task", students),
        students=students,
        latencies=_table(paths.latencies, "model batch_size mode median_ms iqr_ms"),
        budget=_table(paths.budget, "model steps image_ms image_iqr_ms"),
        differences=_table(paths.differences, "model against metric difference se"),
        samples={name: read_png(paths.samples(name)) for name in metrics},
        # Of the originals and of variants: pruning leaves the autoencoder alone.
        reconstructions={name: read_png(paths.reconstructions(name)) for name in (REAL_ROW, *variants)},
        sounds={name: read_wav(paths.samples_sound(name)) for name in metrics} if heard else {},
    )
    trained = [paths.train(name).root for name in variants]
    for made in (*trained, paths.collapse, paths.score, paths.prune, paths.distill, paths.evaluate):
        demand_unchanged(made)
    return run


def _table(path: Path, columns: str, known: Collection[str] | None = None) -> pd.DataFrame:
    """A table of finite numbers and empty cells; what its first column names has to be `known`."""
    names = columns.split()
    table = files.read_csv(path, names)
    strange = ~table[names[0]].isin(known) if known is not None else pd.Series(False, index=table.index)
    if strange.any():
        row, name = int(strange.argmax()) + 1, str(table.loc[strange, names[0]].iloc[0])
        raise DataError(f"{path}: row {row}: the {names[0]} {name[:40]} is none of the run's; make it again")
    for column in table.select_dtypes("number"):
        if (infinite := table[column].isin([math.inf, -math.inf])).any():
            row = int(infinite.argmax()) + 1
            raise DataError(f"{path}: row {row}, column {column}: is not finite; make the table again")
    return table


def read_png(path: Path) -> bytes:
    """Read a picture and check that it is a whole PNG file."""
    from PIL import Image

    content = _content(path)
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = files.one_line(error)
        raise DataError(f"{path}: not a readable PNG picture ({reason}); make it again") from None
    return content


def read_wav(path: Path) -> bytes:
    """Read a sound and check that it is a whole WAV file that browsers play."""
    content = _content(path)
    try:
        with wave.open(BytesIO(content)) as sound:
            expected = sound.getnframes() * sound.getnchannels() * sound.getsampwidth()
            complete = len(sound.readframes(sound.getnframes())) == expected > 0
    except (wave.Error, EOFError) as error:
        raise DataError(f"{path}: not a readable WAV file ({files.one_line(error)}); make it again") from None
    if not complete:
        raise DataError(f"{path}: the WAV file ends early; make it again")
    return content


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise files.missing(path)
    files.demand_file(path)
    return path.read_bytes()
