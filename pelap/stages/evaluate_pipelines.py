"""evaluate, for diffusers pipelines: dense, pruned and distilled ones side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from pelap import io
from pelap.data.dataset import ImageDataset, load_dataset
from pelap.errors import ConfigError
from pelap.evaluation.distances import FLOOR, Reference, measure_distances
from pelap.params import Params
from pelap.paths import packed_dataset
from pelap.pipelines import LatentPipeline
from pelap.report.tables import metrics_frame, rich_table
from pelap.stages.figures import compare_costs, protocol_of_figures
from pelap.stages.piped import demand_pictures_of, open_pipeline
from pelap.stages.protocol import protocol_beside
from pelap.stages.subject import pipeline_subject


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
        folders: Pipelines, pruned or not, each called by its folder's name. Times are compared with the
            first's.
        data: Folder of the packed data sets.
        out: The JSON file.
        device: Where to compute.
        prompts: One prompt a line, for text-to-image.

    Raises:
        ConfigError: Two folders have the same name, or prompts are missing or out of place.
        ModelError: Not a pipeline that can be used, or one for pictures of another size.
        DataError: The data set is not there or too small.
    """
    named = _by_name(folders)
    with io.exclusive(out):
        dataset = load_dataset(packed_dataset(data, params.dataset))
        reference = Reference(dataset.train, params.evaluate, device)
        pipelines = _open(params, named, dataset, device, prompts)
        metrics = _measure(params, pipelines, reference)
        extra = {"pipelines": {name: _describe(pipeline) for name, pipeline in pipelines.items()}}
        protocol = protocol_of_figures(dataset, reference, params.seed, device, extra)
        io.write_json(out, metrics)
        io.write_json(protocol_beside(out), protocol)
    first = next(iter(named))
    Console().print(rich_table(metrics_frame(metrics, scored=first), network="denoiser"))
    print(f"time change: against {first}; figures in {out}")


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name == FLOOR or name in named:
            other = "the row of real pictures" if name == FLOOR else str(named[name])
            raise ConfigError(
                f"{folder}: has the name of {other}; rename it, rows are called by folder names"
            )
        named[name] = folder
    return named


def _open(
    params: Params,
    named: Mapping[str, Path],
    dataset: ImageDataset,
    device: torch.device,
    prompts: Path | None,
) -> dict[str, LatentPipeline]:
    pipelines = {}
    for name, folder in named.items():
        pipelines[name] = open_pipeline(folder, params.evaluate.sampler.steps, device, prompts)
        demand_pictures_of(pipelines[name], folder, dataset)
    return pipelines


def _measure(
    params: Params, pipelines: Mapping[str, LatentPipeline], reference: Reference
) -> dict[str, dict[str, float]]:
    distances = measure_distances(pipelines, reference, params.seed)
    subjects = {name: pipeline_subject(pipe, name, params.seed) for name, pipe in pipelines.items()}
    costs = compare_costs(subjects, params.evaluate, reference.device)
    return {name: row | costs.get(name, {}) for name, row in distances.items()}


def _describe(pipeline: LatentPipeline) -> dict[str, object]:
    return pipeline.describe() | {"rows_per_latent": pipeline.copies}
