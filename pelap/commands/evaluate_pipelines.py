"""evaluate, for diffusers pipelines: dense, pruned and distilled ones side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from pelap.config import EvaluateParams, Params
from pelap.core import files
from pelap.core.device import protocol_beside
from pelap.core.errors import ConfigError
from pelap.core.paths import packed_dataset, reference_cache
from pelap.data.dataset import ImageDataset, load_dataset
from pelap.evaluation.evaluation_reference import EvaluationReference
from pelap.evaluation.evaluator import Evaluator
from pelap.evaluation.features import CLASSIFIER
from pelap.evaluation.image_metrics import REAL_ROW
from pelap.pipelines import LatentPipeline
from pelap.pipelines.agreement import class_numbers, demand_pictures_of, differences_in_training
from pelap.pipelines.pipeline_denoiser import pipeline_denoiser
from pelap.pipelines.pipeline_io import open_pipeline
from pelap.report import protocol as protocol_of
from pelap.report.tables import metrics_frame, rich_table


def evaluate_pipelines(
    params: Params,
    folders: Sequence[Path],
    data: Path,
    out: Path,
    device: torch.device,
    prompts: Path | None,
) -> None:
    """Write ``{pipeline: {metric: number}}`` with the floor, the protocol beside it, and print the table.

    Args:
        params: `dataset`, `seed` and the section `evaluate` are read. Of its sampler only the steps: every
            pipeline keeps its own scheduler.
        folders: Pipelines, pruned or not, each called by its folder's name. Times, and pictures one by one,
            are compared with the first's.
        data: Folder of the packed data sets.
        out: The JSON file.
        device: Where to compute.
        prompts: One prompt a line, for text-to-image.

    Raises:
        ConfigError: Two folders have the same name, prompts are missing or out of place, or the data set
            holds sounds.
        ModelError: Not a pipeline that can be used, or one for pictures of another size.
        DataError: The data set is not there or too small.
    """
    named = _by_name(folders)
    with files.exclusive(out):
        dataset = load_dataset(packed_dataset(data, params.dataset))
        pipelines = _open(params.evaluate, named, dataset, device, prompts)
        first = next(iter(named))
        evaluate = _without_idle_classifier(params.evaluate)
        reference = EvaluationReference.of(dataset, evaluate, device, reference_cache(data))
        evaluator = Evaluator(reference, evaluate, params.seed, device)
        metrics, protocol = evaluator.compare(
            pipelines,
            {
                name: pipeline_denoiser(pipe, name, params.seed, precision=evaluate.precision)
                for name, pipe in pipelines.items()
            },
            {name: folder / pipelines[name].part for name, folder in named.items()},
            pipelines={
                name: pipe.describe() | {"rows_per_latent": pipe.copies} for name, pipe in pipelines.items()
            },
        )
        files.write_json(out, metrics)
        files.write_json(protocol_beside(out), protocol)
    Console().print(rich_table(metrics_frame(metrics, scored=first), network="denoiser"))
    print(protocol_of.terminal(protocol))
    print(f"time change: against {first}; figures in {out}")


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name == REAL_ROW or name in named:
            other = "the row of real pictures" if name == REAL_ROW else str(named[name])
            raise ConfigError(
                f"{folder}: has the name of {other}; rename it, rows are called by folder names"
            )
        named[name] = folder
    return named


def _without_idle_classifier(params: EvaluateParams) -> EvaluateParams:
    """A pipeline's pictures are not asked to be of a class: as an extractor or not at all."""
    idle = CLASSIFIER not in params.extractors
    return params.model_copy(update={"classifier": None}) if idle else params


def _open(
    params: EvaluateParams,
    named: Mapping[str, Path],
    dataset: ImageDataset,
    device: torch.device,
    prompts: Path | None,
) -> dict[str, LatentPipeline]:
    pipelines = {}
    for name, folder in named.items():
        pipelines[name] = open_pipeline(folder, params.sampler.steps, device, prompts, params.precision)
        demand_pictures_of(pipelines[name], folder, dataset)
        if pipelines[name].classes:
            # As the data have each of them about equally often, and others not at all.
            pipelines[name].classes = class_numbers(
                pipelines[name].pipe, pipelines[name].denoiser, dataset.class_names
            )
    first, *others = pipelines
    for name in others:
        differing = differences_in_training(pipelines[name].pipe, pipelines[first].pipe)
        if differing:
            print(
                f"warning: {name} has another {', '.join(differing)} than {first}: one of them may be wrong"
            )
    return pipelines
