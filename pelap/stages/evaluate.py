"""evaluate: quality and cost of every model, measured alike."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pelap import io
from pelap.data.dataset import ImageDataset, Split, to_float, to_uint8
from pelap.data.grid import save_grid
from pelap.errors import DataError
from pelap.evaluation.features import METRIC_NAMES, EffNetLite0, Extractor, Inception2015
from pelap.evaluation.frechet import FeatureStatistics, frechet_distance
from pelap.evaluation.quality import psnr, ssim
from pelap.measure.cost import count_macs, count_params, peak_memory_mib
from pelap.measure.latency import measure_latency
from pelap.models.ldm import LatentDiffusion
from pelap.params import EvaluateParams
from pelap.progress import progress
from pelap.sampling import sample_images
from pelap.stages.context import Context
from pelap.stages.protocol import environment
from pelap.stages.score import forward_pass
from pelap.stages.trained import trained_model

NUM_SHOWN = 32
FLOOR = "real"
"""Row of another draw of real train pictures: what no model can be expected to go below."""

Models = Mapping[str, LatentDiffusion]


def run(context: Context) -> None:
    """Write one object a model into `metrics.json`, and what it was measured with beside it."""
    params, paths = context.params.evaluate, context.paths
    with io.exclusive(paths.evaluate):
        dataset = context.dataset()
        _check_size(dataset.train, params)
        models = _models(context, dataset)
        extractors = _extractors(params, context.device)
        with io.atomic_dir(paths.evaluate) as partial:
            distances = _distances(context, models, dataset.train, extractors, partial)
            reconstructions = _reconstructions(context, models, dataset.test, partial)
            costs = _costs(models, params.latency_batch_size, params.latency_repeats, context.device)
            metrics = {
                name: distances[name] | reconstructions.get(name, {}) | costs.get(name, {})
                for name in distances
            }
            io.write_json(partial / paths.metrics.name, metrics)
            protocol = _protocol(context, models, dataset, extractors)
            io.write_json(partial / paths.evaluate_protocol.name, protocol)


def _check_size(train: Split, params: EvaluateParams) -> None:
    wanted = params.num_reference + params.num_images
    if wanted > len(train):
        raise DataError(
            f"evaluate: num_reference + num_images is {wanted}, but there are {len(train)} train pictures "
            "to take the reference and the floor from; lower one of them"
        )


def _models(context: Context, dataset: ImageDataset) -> dict[str, LatentDiffusion]:
    folders = {name: context.paths.train(name).model for name in context.params.variants}
    if context.params.evaluate.models == "all":
        folders |= {"pruned": context.paths.pruned_model, "distilled": context.paths.distilled_model}
    return {name: trained_model(context, folder, dataset) for name, folder in folders.items()}


def _extractors(params: EvaluateParams, device: torch.device) -> list[Extractor]:
    extractors: list[Extractor] = [EffNetLite0(device)]
    if params.inception_weights is not None:
        extractors.append(Inception2015(Path(params.inception_weights), device))
    return extractors


def _distances(
    context: Context, models: Models, train: Split, extractors: list[Extractor], folder: Path
) -> dict[str, dict[str, float]]:
    """Frechet distances of every model's samples, and of the floor, to the train split."""
    params, seed = context.params.evaluate, context.params.seed
    end = params.num_reference + params.num_images
    references = [_statistics(e, train.images[: params.num_reference]) for e in extractors]
    result = {}
    with progress("evaluate samples", len(models) + 1) as report:
        for done, name in enumerate([*models, FLOOR]):
            if name == FLOOR:
                images = train.images[params.num_reference : end]
            else:
                images = sample_images(
                    models[name], params.sampler, params.num_images, seed, params.batch_size
                )
            save_grid(images[:NUM_SHOWN], _inside(folder, context, context.paths.samples(name)))
            result[name] = {
                METRIC_NAMES[extractor.name]: frechet_distance(_statistics(extractor, images), reference)
                for extractor, reference in zip(extractors, references, strict=True)
            }
            report(done + 1, name)
    return result


def _statistics(extractor: Extractor, images: torch.Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics()
    for chunk in images.split(256):
        statistics.update(extractor(chunk))
    return statistics


def _inside(folder: Path, context: Context, path: Path) -> Path:
    """Where a file of this stage lies while the stage's folder is still being filled."""
    return folder / path.relative_to(context.paths.evaluate)


@torch.no_grad()
def _reconstructions(
    context: Context, models: Models, test: Split, folder: Path
) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of test pictures through each autoencoder, the way its variant decodes."""
    params = context.params.evaluate
    originals = test.images[: params.num_reconstructions]
    save_grid(originals[:NUM_SHOWN], _inside(folder, context, context.paths.reconstructions(FLOOR)))
    result = {}
    for name, model in models.items():
        batches = [to_float(b.to(context.device)) for b in originals.split(params.batch_size)]
        decoded = torch.cat([to_uint8(model.reconstruct(batch)).cpu() for batch in batches])
        save_grid(decoded[:NUM_SHOWN], _inside(folder, context, context.paths.reconstructions(name)))
        result[name] = {"psnr": psnr(decoded, originals), "ssim": ssim(decoded, originals)}
    return result


def _costs(
    models: Models, batch_size: int, repeats: int | None, device: torch.device
) -> dict[str, dict[str, float]]:
    """What one pass of each UNet costs; all are timed in turns, so that they can be compared."""
    if repeats is None:
        return {}
    passes = {name: forward_pass(model, batch_size) for name, model in models.items()}
    latency = measure_latency(passes, device, repeats)
    return {
        name: {
            "latency_ms": latency[name].median_ms,
            "latency_iqr_ms": latency[name].iqr_ms,
            "params": count_params(model.unet),
            "macs": count_macs(model.unet, passes[name])[""],
            "peak_memory_mib": peak_memory_mib(model.unet, passes[name], device),
        }
        for name, model in models.items()
    }


def _scored_variant(context: Context) -> str | None:
    if context.params.evaluate.models == "variants":
        return None
    variant: str = io.read_mapping(context.paths.score_protocol, ["variant"])["variant"]
    return variant


def _protocol(
    context: Context, models: Models, dataset: ImageDataset, extractors: list[Extractor]
) -> dict[str, Any]:
    params = context.params.evaluate
    return {
        "dataset": dataset.name,
        "dataset_checksum": dataset.checksum,
        "reference_split": "train",
        "num_reference": params.num_reference,
        "num_images": params.num_images,
        "extractors": {e.name: {"input_size": e.input_size, "sha256": e.checksum} for e in extractors},
        "sampler": params.sampler.model_dump(),
        "ema_decay": {name: model.info.ema_decay for name, model in models.items()},
        "scored_variant": _scored_variant(context),
        "num_reconstructions": min(params.num_reconstructions, len(dataset.test)),
        "latency_batch_size": params.latency_batch_size,
        "latency_repeats": params.latency_repeats,
        "seed": context.params.seed,
        **environment(context.device),
    }
