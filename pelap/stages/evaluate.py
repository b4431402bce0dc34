"""evaluate: quality and cost of every model, measured alike."""

from collections.abc import Mapping
from pathlib import Path

import torch

from pelap import io
from pelap.data.dataset import ImageDataset, Split, to_float, to_uint8
from pelap.data.grid import save_grid
from pelap.evaluation.distances import FLOOR, Reference, measure_distances
from pelap.evaluation.quality import psnr, ssim
from pelap.models.ldm import LatentDiffusion
from pelap.params import SamplerParams
from pelap.sampling import ModelSource
from pelap.stages.context import Context
from pelap.stages.figures import compare_costs, protocol_of_figures
from pelap.stages.subject import model_subject
from pelap.stages.trained import trained_model

NUM_SHOWN = 32

Models = Mapping[str, LatentDiffusion]


def run(context: Context) -> None:
    """Write one object a model into `metrics.json`, and what it was measured with beside it."""
    params, paths = context.params.evaluate, context.paths
    with io.exclusive(paths.evaluate):
        dataset = context.dataset()
        reference = Reference(dataset.train, params, context.device)
        models = _models(context, dataset)
        with io.atomic_dir(paths.evaluate) as partial:
            distances = _distances(context, models, reference, partial)
            reconstructions = _reconstructions(context, models, dataset.test, partial)
            costs = _costs(context, models)
            metrics = {
                name: distances[name] | reconstructions.get(name, {}) | costs.get(name, {})
                for name in distances
            }
            io.write_json(partial / paths.metrics.name, metrics)
            extra = {
                "sampler": params.sampler.model_dump(),
                "ema_decay": {name: model.info.ema_decay for name, model in models.items()},
                "scored_variant": _scored_variant(context),
                "num_reconstructions": min(params.num_reconstructions, len(dataset.test)),
            }
            protocol = protocol_of_figures(dataset, reference, context.params.seed, context.device, extra)
            io.write_json(partial / paths.evaluate_protocol.name, protocol)


def _models(context: Context, dataset: ImageDataset) -> dict[str, LatentDiffusion]:
    folders = {name: context.paths.train(name).model for name in context.params.variants}
    if context.params.evaluate.models == "all":
        folders |= {"pruned": context.paths.pruned_model, "distilled": context.paths.distilled_model}
    return {name: trained_model(context, folder, dataset) for name, folder in folders.items()}


def _distances(
    context: Context, models: Models, reference: Reference, folder: Path
) -> dict[str, dict[str, float]]:
    """Frechet distances of every model's samples, whose first ones are shown in `folder`."""

    def show(name: str, images: torch.Tensor) -> None:
        save_grid(images[:NUM_SHOWN], _inside(folder, context, context.paths.samples(name)))

    sampler = context.params.evaluate.sampler
    sources = {name: ModelSource(model, sampler) for name, model in models.items()}
    return measure_distances(sources, reference, context.params.seed, show)


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


def _costs(context: Context, models: Models) -> dict[str, dict[str, float]]:
    """What one pass of each UNet costs."""
    # Any sampler: only the first call of the network is taken from its run.
    sampler = SamplerParams(kind="ddim", steps=1)
    subjects = {name: model_subject(model, sampler, context.params.seed) for name, model in models.items()}
    return compare_costs(subjects, context.params.evaluate, context.device)


def _scored_variant(context: Context) -> str | None:
    if context.params.evaluate.models == "variants":
        return None
    variant: str = io.read_mapping(context.paths.score_protocol, ["variant"])["variant"]
    return variant
